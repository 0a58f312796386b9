"""Procedural training data: dual-grid targets and views of procedural objects, in shards that load by memory map.

A shard is `shard_NNNNN.safetensors` of consecutive seeds. With n objects, V views of S pixels and grid R its arrays are

    seeds              int64  [n]
    category           uint8  [n]                index into `toys.BUILDERS`
    offsets_R          int64  [n + 1]            rows of object i: offsets_R[i] : offsets_R[i + 1]
    coords_R           uint8  [N, 3]             active voxels, lexicographic
    dual_R             uint8  [N, 3]             dual vertex in its voxel, floor(255 * x)
    intersected_R      uint8  [N]                bit a: flag of axis a
    attrs_R            uint8  [N, 6]             base colour (sRGB), metallic, roughness, alpha; 0..255
    rgb                uint8  [n, V, S, S, 3]    as `render.View`
    mask               uint8  [n, V, S, S]
    xyz                float16[n, V, S, S, 3]
    material           uint8  [n, V, S, S, 5]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors.numpy import save as to_bytes

from ....errors import InputError
from ....files import write_whole
from .objects import ProceduralObject, make_object
from .render import View, training_view

REGULARISATION = 0.1


def kernels() -> ModuleType:
    """The compiled kernels; an `InputError` says what to install where numba is missing."""
    try:
        from . import kernels as module
    except ImportError as error:
        raise InputError("Procedural training data needs numba: pip install numba (or the `training` extra).") from error
    return module


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

    def surface(self) -> np.ndarray:
        """The dual vertices in object space, float32 [N, 3]."""
        return (self.coords + self.dual) / np.float32(self.grid) - np.float32(0.5)


@dataclass(frozen=True)
class Sample:
    """One object: its seed, targets by grid, and views."""

    seed: int
    category: int
    targets: dict[int, DualGridTargets]
    views: list[View]


def dual_grid_targets(obj: ProceduralObject, grid: int) -> DualGridTargets:
    """Sample the object's surface on grid^3 (at most 256): a voxel is active if its corners disagree about inside.

    Every crossed grid edge gives a point and a normal; the voxel's vertex minimises the squared distances to the planes of
    its twelve edges, pulled to their mean by a regularisation of 0.1 and clamped to the voxel. The surface is closed.
    """
    coords, dual, intersected, part = kernels().dual_grid(obj.table, grid, REGULARISATION)
    attrs = np.concatenate([obj.table[:, -5:], np.ones((len(obj.parts), 1))], 1).astype(np.float32)[part]
    return DualGridTargets(grid, coords, dual, intersected, attrs)


def make_sample(seed: int, grids: Sequence[int] = (32,), views: int = 2, size: int = 64, category: str | None = None) -> Sample:
    """Everything about one seed, made on the spot (the way to held-out objects)."""
    from .toys import BUILDERS

    obj = make_object(seed, category)
    targets = {grid: dual_grid_targets(obj, grid) for grid in grids}
    surface = targets[grids[0]].surface()
    rng = np.random.default_rng([seed, 7])
    return Sample(
        seed, list(BUILDERS).index(obj.category), targets, [training_view(obj, surface, rng, size) for _ in range(views)]
    )


def generate_shard(seeds: Sequence[int], grids: Sequence[int] = (32,), views: int = 2, size: int = 64) -> dict[str, np.ndarray]:
    """The arrays of a shard (see the module's text) for these seeds."""
    samples = [make_sample(seed, grids, views, size) for seed in seeds]
    arrays = {"seeds": np.array(seeds, np.int64), "category": np.array([s.category for s in samples], np.uint8)}
    for grid in grids:
        rows = [s.targets[grid] for s in samples]
        arrays[f"offsets_{grid}"] = np.cumsum([0] + [len(t.coords) for t in rows])
        arrays[f"coords_{grid}"] = np.concatenate([t.coords for t in rows])
        arrays[f"dual_{grid}"] = np.concatenate([(255 * t.dual).astype(np.uint8) for t in rows])
        arrays[f"intersected_{grid}"] = np.concatenate([t.intersected @ np.array([1, 2, 4], np.uint8) for t in rows])
        arrays[f"attrs_{grid}"] = np.concatenate([np.rint(255 * t.attrs).astype(np.uint8) for t in rows])
    for name in ("rgb", "mask", "xyz", "material") if views else ():
        arrays[name] = np.stack([[getattr(view, name) for view in s.views] for s in samples])
    return arrays


class ShardedObjects:
    """Objects of a folder of shards, in seed order, read through memory maps.

    `len()` counts objects, `objects(i)` gives one as a `Sample`; `gather(name, rows)` stacks a per-object array. Shards that
    appear later need a new instance.
    """

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(Path(folder).glob("shard_*.safetensors"))
        if not self.paths:
            raise InputError(
                f"No shards in {folder}: make some with python -m trellis_core.training.mini.data.dataset --out {folder}."
            )
        self._arrays = [_memory_map(path) for path in self.paths]
        self._first = np.cumsum([0] + [len(a["seeds"]) for a in self._arrays])
        self.grids = tuple(sorted(int(name[8:]) for name in self._arrays[0] if name.startswith("offsets_")))

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, i: int) -> tuple[dict[str, np.ndarray], int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return self._arrays[shard], i - int(self._first[shard])

    def gather(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Stack a per-object array (seeds, category, rgb, mask, xyz, material) of these objects: [len(rows), ...]."""
        return np.stack([arrays[name][k] for arrays, k in map(self._locate, rows)])

    def targets(self, i: int, grid: int) -> DualGridTargets:
        """The dequantised targets of object i."""
        arrays, k = self._locate(i)
        rows = slice(*(int(x) for x in arrays[f"offsets_{grid}"][k : k + 2]))
        flags = (arrays[f"intersected_{grid}"][rows, None] >> np.arange(3, dtype=np.uint8) & 1).astype(bool)
        dual, attrs = (arrays[f"{name}_{grid}"][rows].astype(np.float32) / 255 for name in ("dual", "attrs"))
        return DualGridTargets(grid, np.array(arrays[f"coords_{grid}"][rows]), dual, flags, attrs)

    def objects(self, i: int) -> Sample:
        """Object i with all its grids and views."""
        arrays, k = self._locate(i)
        fields = ("rgb", "mask", "xyz", "material")
        views = (
            [View(*pictures) for pictures in zip(*(np.array(arrays[name][k]) for name in fields), strict=True)]
            if "rgb" in arrays
            else []
        )
        return Sample(int(arrays["seeds"][k]), int(arrays["category"][k]), {g: self.targets(i, g) for g in self.grids}, views)


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


def _write_shard(job: tuple[Path, range, tuple[int, ...], int]) -> Path:
    path, seeds, grids, views = job
    if not path.exists():
        arrays = generate_shard(seeds, grids, views)
        write_whole(path, to_bytes({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Write shards; those already there are kept, so an interrupted run continues."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.mini.data.dataset", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--first", type=int, default=0, help="first seed, a multiple of --shard")
    parser.add_argument("--count", type=int, default=24000, help="objects")
    parser.add_argument("--shard", type=int, default=500, help="objects per shard")
    parser.add_argument("--grid", type=int, action="append", help="target grid, may be repeated (default 32)")
    parser.add_argument("--views", type=int, default=2, help="views per object")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    stop, grids = args.first + args.count, tuple(args.grid or [32])
    jobs = [
        (
            args.out / f"shard_{start // args.shard:05d}.safetensors",
            range(start, min(start + args.shard, stop)),
            grids,
            args.views,
        )
        for start in range(args.first, stop, args.shard)
    ]
    pool = get_context("spawn").Pool(args.workers) if args.workers > 1 else nullcontext()
    with pool:
        for done, path in enumerate((pool.imap if args.workers > 1 else map)(_write_shard, jobs), 1):
            print(f"{done}/{len(jobs)} {path.name}", flush=True)


if __name__ == "__main__":
    main()
