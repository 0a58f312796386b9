"""Training data: dual-grid targets and pictures of made-up objects, in shards that load by memory map.

A shard is `shard_NNNNN.safetensors` of consecutive seeds. With n objects, pictures of S pixels and grid R its arrays are

    seeds              int64  [n]
    offsets_R          int64  [n + 1]            rows of object i: offsets_R[i] : offsets_R[i + 1]
    coords_R           uint8  [N, 3]             active voxels, lexicographic
    dual_R             uint8  [N, 3]             dual vertex in its voxel, floor(255 * x)
    intersected_R      uint8  [N]                bit a: flag of axis a
    attrs_R            uint8  [N, 6]             base colour (sRGB), metallic, roughness, alpha; 0..255
    rgb                uint8  [n, S, S, 3]       cropped, premultiplied on black, as the pipeline gives it to the encoder
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_bytes

from ....errors import InputError
from ....files import write_whole
from . import outlines
from .compiled import kernels
from .compose import compose
from .objects import ProceduralObject
from .render import training_picture

REGULARISATION = 0.1
GRID, PICTURE = 64, 128
PICTURES = 0.6
"""Share of objects that are blown-up pictures, where there are pictures; the others are compositions of primitives."""


@dataclass(frozen=True)
class DualGridTargets:
    """What the autoencoders learn to reproduce on one grid (docs/method/mesh.md).

    Attributes:
        grid: voxels per axis.
        coords: uint8 [N, 3] active voxels, lexicographic.
        dual: float32 [N, 3] dual vertex inside its voxel, 0..1.
        intersected: bool [N, 3] crossed grid edges at the voxel's far corner.
        attrs: float32 [N, 6] base colour (sRGB), metallic, roughness, alpha of the nearest part, 0..1.
    """

    grid: int
    coords: np.ndarray
    dual: np.ndarray
    intersected: np.ndarray
    attrs: np.ndarray

    def recoloured(self, order: Sequence[int]) -> DualGridTargets:
        """The same with its colour channels in another order."""
        return replace(self, attrs=self.attrs[:, [*order, 3, 4, 5]])

    def surface(self) -> np.ndarray:
        """The dual vertices in object space, float32 [N, 3]."""
        return (self.coords + self.dual) / np.float32(self.grid) - np.float32(0.5)


@dataclass(frozen=True)
class Sample:
    """One object: its seed, targets, and picture uint8 [S, S, 3] as the encoder gets it."""

    seed: int
    targets: DualGridTargets
    rgb: np.ndarray


def dual_grid_targets(obj: ProceduralObject, grid: int) -> DualGridTargets:
    """Sample the object's surface on grid^3 (at most 256): a voxel is active if its corners disagree about inside.

    Every crossed grid edge gives a point and a normal; the voxel's vertex minimises the squared distances to the planes of
    its twelve edges, pulled to their mean by a regularisation of 0.1 and clamped to the voxel. The surface is closed.
    """
    coords, dual, intersected, part = kernels().dual_grid(obj.table, grid, REGULARISATION)
    attrs = np.concatenate([obj.table[:, -5:], np.ones((len(obj.parts), 1))], 1).astype(np.float32)[part]
    return DualGridTargets(grid, coords, dual, intersected, attrs)


def blown_up(seed: int, pictures: Sequence[Path], grid: int = GRID, size: int = PICTURE) -> Sample:
    """A random picture of the list as a solid (see `outlines`)."""
    rng = np.random.default_rng([seed, 5])
    rgb, alpha = outlines.cropped(outlines.random_picture(pictures, rng), size)
    values = outlines.relief(alpha, rng).values(grid)
    coords, dual, intersected = kernels().lattice_dual_grid(values, REGULARISATION)
    points = (coords + dual) / np.float32(grid) - np.float32(0.5)
    attrs = np.ones((len(coords), 6), np.float32)
    attrs[:, :3] = outlines.painted(rgb, alpha, points)
    attrs[:, 3:5] = 0.0, rng.uniform(0.4, 0.6)
    return Sample(seed, DualGridTargets(grid, coords, dual, intersected, attrs), outlines.as_photographed(rgb, rng))


def composed(seed: int, grid: int = GRID, size: int = PICTURE) -> Sample:
    """A random composition, seen by a random camera in front of it."""
    obj = compose(seed)
    targets = dual_grid_targets(obj, grid)
    rng = np.random.default_rng([seed, 7])
    return Sample(seed, targets, outlines.as_photographed(training_picture(obj, targets.surface(), rng, size), rng))


def make_sample(seed: int, pictures: Sequence[Path] = (), grid: int = GRID, size: int = PICTURE) -> Sample:
    """Everything about one seed, made on the spot; without `pictures` all objects are compositions."""
    if pictures and np.random.default_rng([seed, 3]).random() < PICTURES:
        return blown_up(seed, pictures, grid, size)
    return composed(seed, grid, size)


def generate_shard(seeds: Sequence[int], pictures: Sequence[Path] = (), grid: int = GRID) -> dict[str, np.ndarray]:
    """The arrays of a shard (see the module's text) for these seeds."""
    samples = [make_sample(seed, pictures, grid) for seed in seeds]
    rows = [s.targets for s in samples]
    return {
        "seeds": np.array(seeds, np.int64),
        f"offsets_{grid}": np.cumsum([0] + [len(t.coords) for t in rows]),
        f"coords_{grid}": np.concatenate([t.coords for t in rows]),
        f"dual_{grid}": np.concatenate([(255 * t.dual).astype(np.uint8) for t in rows]),
        f"intersected_{grid}": np.concatenate([t.intersected @ np.array([1, 2, 4], np.uint8) for t in rows]),
        f"attrs_{grid}": np.concatenate([np.rint(255 * t.attrs).astype(np.uint8) for t in rows]),
        "rgb": np.stack([s.rgb for s in samples]),
    }


class ShardedObjects:
    """Objects of a folder of shards, in seed order, read through memory maps.

    `len()` counts objects, `targets(i)` gives what one shall become; `gather(name, rows)` stacks a per-object array. Shards
    that appear later need a new instance.
    """

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(Path(folder).glob("shard_*.safetensors"))
        if not self.paths:
            raise InputError(
                f"No shards in {folder}: make some with python -m trellis_core.training.mini.data.dataset --out {folder}."
            )
        self._arrays = [_memory_map(path) for path in self.paths]
        self._first = np.cumsum([0] + [len(a["seeds"]) for a in self._arrays])
        self.grid = next(int(name[8:]) for name in self._arrays[0] if name.startswith("offsets_"))

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, i: int) -> tuple[dict[str, np.ndarray], int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return self._arrays[shard], i - int(self._first[shard])

    def gather(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Stack a per-object array (seeds, rgb) of these objects: [len(rows), ...]."""
        return np.stack([arrays[name][k] for arrays, k in map(self._locate, rows)])

    def targets(self, i: int) -> DualGridTargets:
        """The dequantised targets of object i."""
        arrays, k = self._locate(i)
        grid = self.grid
        rows = slice(*(int(x) for x in arrays[f"offsets_{grid}"][k : k + 2]))
        flags = (arrays[f"intersected_{grid}"][rows, None] >> np.arange(3, dtype=np.uint8) & 1).astype(bool)
        dual, attrs = (arrays[f"{name}_{grid}"][rows].astype(np.float32) / 255 for name in ("dual", "attrs"))
        return DualGridTargets(grid, np.array(arrays[f"coords_{grid}"][rows]), dual, flags, attrs)


def _memory_map(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file without reading them: its header names each array's type, shape and bytes."""
    types = {"U8": np.uint8, "F16": np.float16, "I64": np.int64}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            arrays[name] = data[start:stop].view(types[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _write_shard(job: tuple[Path, range, Sequence[Path], int]) -> Path:
    path, seeds, pictures, grid = job
    if not path.exists():
        arrays = generate_shard(seeds, pictures, grid)
        write_whole(path, to_bytes({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Write shards; those already there are kept, so an interrupted run continues."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.mini.data.dataset", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--pictures", type=Path, help="folder of cut-out pictures (see data.fetch); without: compositions only")
    parser.add_argument("--first", type=int, default=0, help="first seed, a multiple of --shard")
    parser.add_argument("--count", type=int, default=24000, help="objects")
    parser.add_argument("--shard", type=int, default=250, help="objects per shard")
    parser.add_argument("--grid", type=int, default=GRID, help="target grid")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    stop = args.first + args.count
    pictures = outlines.training_pictures(args.pictures) if args.pictures else []
    jobs = []
    for start in range(args.first, stop, args.shard):
        path = args.out / f"shard_{start // args.shard:05d}.safetensors"
        jobs.append((path, range(start, min(start + args.shard, stop)), pictures, args.grid))
    pool = get_context("spawn").Pool(args.workers) if args.workers > 1 else nullcontext()
    with pool:
        for done, path in enumerate((pool.imap if args.workers > 1 else map)(_write_shard, jobs), 1):
            print(f"{done}/{len(jobs)} {path.name}", flush=True)


if __name__ == "__main__":
    main()
