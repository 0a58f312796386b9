"""The steps of the mesh pipeline one by one, against their goals and against the usual ways of doing the same.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.mesh_targets DIR [--only T1 T5] [--repeat 3]

DIR holds what `python -m tests.benchmarks.mesh_kinds` makes: organic_386, organic_770, organic_512, mechanical_256 and
mechanical_450. Times are CPU seconds (user and system) of one thread, the medians of the repeats; peers run in the same
process, once. The goals are those of the project's measurements of prototypes; whole runs are measured by
`tests.benchmarks.mesh`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.mesh import PeakMemory, _psnr, _scatter, _scatter_rows, _trimesh_clean, cpu_seconds, load
from tests.benchmarks.mesh_kinds import paint
from tests.benchmarks.sparse_conv import convolution, peak_growth, shell
from trellis_core.asset.report import stretch
from trellis_core.mesh.clean import check_mesh, clean, tidy
from trellis_core.mesh.decimate import decimate
from trellis_core.mesh.distance import TriangleIndex
from trellis_core.mesh.topology import Array, face_normals
from trellis_core.ovoxel.attributes import sample_attributes
from trellis_core.sparse.conv import NeighborMap
from trellis_core.texturing.back_projection import BackProjector
from trellis_core.texturing.fill import GapFiller
from trellis_core.texturing.raster import rasterise
from trellis_core.texturing.surface import Surface
from trellis_core.texturing.unwrap import Unwrap, texel_corners, unwrap
from trellis_core.values import Mesh, PbrVoxels

TILE = 64


class Row(NamedTuple):
    """One measured number: `good` compares it with the goal."""

    target: str
    what: str
    value: float
    goal: str
    good: bool


class Bench:
    """The meshes of a folder, and how often to measure."""

    def __init__(self, folder: Path, repeat: int) -> None:
        self.folder, self.repeat = folder, repeat
        self.decoded = cache(self._decoded)
        self.cleaned = cache(self._cleaned)
        self.decimated = cache(self._decimated)

    def seconds(self, work: Callable[[], Any], repeat: int | None = None) -> tuple[float, Any]:
        """Median of the CPU seconds, and the last result."""
        times, result = [], None
        for _ in range(repeat or self.repeat):
            start = cpu_seconds()
            result = work()
            times.append(cpu_seconds() - start)
        return statistics.median(times), result

    def _decoded(self, name: str) -> tuple[Array, Array, PbrVoxels]:
        mesh, voxels = load(self.folder / f"{name}.npz")
        return *check_mesh(mesh.vertices.numpy(), mesh.faces.numpy()), voxels

    def _cleaned(self, name: str) -> tuple[Array, Array]:
        vertices, faces, voxels = self.decoded(name)
        return clean(vertices, faces, 1 / voxels.resolution)

    def _decimated(self, name: str, vertices: int) -> tuple[Array, Array]:
        return tidy(*decimate(*self.cleaned(name), vertices))


def unwrapping(bench: Bench) -> Iterator[Row]:
    vertices, faces = bench.decimated("organic_386", 100_000)
    spent, flat = bench.seconds(lambda: unwrap(Surface.of(vertices, faces), 2048))
    theirs, _ = _xatlas(vertices, faces, 2048)
    facts = stretch(vertices[flat.source], flat.faces, flat.uvs)
    yield Row("T1", f"unwrap {len(faces)} triangles, s", spent, "", True)
    yield Row("T1", "times faster than xatlas", theirs / spent, ">= 10", theirs >= 10 * spent)
    yield from _quality("T1", flat, facts, 2048)


def _quality(target: str, flat: Unwrap, facts: dict[str, float], size: int) -> Iterator[Row]:
    covered = len(flat.texels.number)
    use, twice = (covered - flat.overlap) / size**2, 100 * flat.overlap / covered
    yield Row(target, "share of the atlas", use, ">= 0.58", use >= 0.58)
    yield Row(target, "anisotropy of 95 %", facts["aniso_95"], "<= 1.25", facts["aniso_95"] <= 1.25)
    yield Row(target, "stretch of 99 %", facts["stretch_99"], "<= 1.35", facts["stretch_99"] <= 1.35)
    yield Row(target, "overlap, %", twice, "<= 0.05", twice <= 0.05)


def unwrapping_a_million(bench: Bench) -> Iterator[Row]:
    vertices, faces = bench.decimated("organic_770", 500_000)
    spent, flat = bench.seconds(lambda: unwrap(Surface.of(vertices, faces), 4096, padding=4))
    yield Row("T2", f"unwrap {len(faces)} triangles, s", spent, "<= 8", spent <= 8)
    yield from _quality("T2", flat, stretch(vertices[flat.source], flat.faces, flat.uvs), 4096)


def hard_surfaces(bench: Bench) -> Iterator[Row]:
    vertices, faces = bench.decimated("mechanical_256", 50_000)
    ours = len(unwrap(Surface.of(vertices, faces), 2048).axis)
    theirs = _xatlas(vertices, faces, 2048)[1]
    yield Row("T3", f"charts of {len(faces)} mechanical triangles; xatlas {theirs}", ours, "<= 1/3", ours <= theirs / 3)


def _xatlas(vertices: Array, faces: Array, size: int) -> tuple[float, int]:
    """Seconds that xatlas takes, and its charts."""
    import xatlas

    start = cpu_seconds()
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, 2
    atlas.add_mesh(vertices, faces.astype(np.uint32))
    atlas.generate(pack_options=options)
    return cpu_seconds() - start, atlas.chart_count


def rasterising(bench: Bench) -> Iterator[Row]:
    vertices, faces = bench.decimated("organic_386", 100_000)
    flat = unwrap(Surface.of(vertices, faces), 2048)
    corners = texel_corners(flat.uvs, flat.faces, 2048)
    spent, parts = bench.seconds(lambda: list(rasterise(corners, 2048)))
    theirs, other = bench.seconds(lambda: _tiled(corners, 2048), 1)
    covered = torch.zeros(2048 * 2048, dtype=torch.bool)
    covered[torch.cat([part.number for part in parts])] = True
    differ = float((covered != other).sum() / other.sum())
    yield Row("T4", f"rasterise {len(faces)} triangles, 2048, s", spent, "", True)
    yield Row("T4", "times faster than tiles x faces", theirs / spent, ">= 20", theirs >= 20 * spent)
    yield Row("T4", "texels covered by one of the two only, share", differ, "<= 1e-4", differ <= 1e-4)


def _tiled(corners: Tensor, size: int) -> Tensor:
    """Which texels triangles cover, bool [size^2]: the edge functions of every face at all texels of every tile it touches."""
    low, high = (corners.amin(1) / TILE).floor().int(), (corners.amax(1) / TILE).floor().int()
    a, b, c = corners.unbind(1)
    sign = torch.sign((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    covered = torch.zeros(size, size, dtype=torch.bool)
    inner = torch.arange(TILE) + 0.5
    for row in range(size // TILE):
        in_row = ((low[:, 1] <= row) & (high[:, 1] >= row)).nonzero()[:, 0]
        for column in range(size // TILE):
            some = in_row[(low[in_row, 0] <= column) & (high[in_row, 0] >= column)]
            x, y = (inner + TILE * column)[None, None, :], (inner + TILE * row)[None, :, None]
            tile = covered[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)]
            for few in some.split(64):
                inside = torch.ones(len(few), TILE, TILE, dtype=torch.bool)
                for p, q in ((a, b), (b, c), (c, a)):
                    (px, py), (qx, qy) = (v[few].T[..., None, None] for v in (p, q))
                    inside &= ((qx - px) * (y - py) - (qy - py) * (x - px)) * sign[few, None, None] > 0
                tile |= inside.any(0)
    return covered.view(-1)


def sampling(bench: Bench) -> Iterator[Row]:
    vertices, faces, voxels = bench.decoded("organic_770")
    face = np.sort(np.random.default_rng(0).integers(0, len(faces), 8_000_000))
    points = torch.from_numpy(vertices[faces[face]].mean(1))
    with PeakMemory() as memory:
        spent, ours = bench.seconds(lambda: sample_attributes(voxels, points))
    theirs, other = bench.seconds(lambda: _by_search(voxels, points), 1)
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
    used = memory.peak - memory.base - points.numel() / 3 * 24 / 1e6
    yield Row("T5", f"sample 8 M points of {len(voxels.coords)} voxels, s", spent, "<= 3.4", spent <= 3.4)
    yield Row("T5", "MB besides the result", used, "<= 400", used <= 400)
    yield Row("T5", "times faster than 8 binary searches", theirs / spent, ">= 2.5", theirs >= 2.5 * spent)


def _by_search(voxels: PbrVoxels, points: Tensor) -> Tensor:
    """Trilinear samples [P, 6] by one binary search for each of the eight voxels around a point."""
    side = voxels.resolution
    strides = torch.tensor([side * side, side, 1])
    keys, order = (voxels.coords.long() * strides).sum(1).sort()
    result = torch.empty(len(points), 6)
    for start in range(0, len(points), 1 << 20):
        query = (points[start : start + (1 << 20)] + 0.5) * side - 0.5
        base = query.floor()
        total, weights = torch.zeros(len(query), 6), torch.zeros(len(query), 1)
        for k in range(8):
            step = torch.tensor([k & 1, k >> 1 & 1, k >> 2])
            wanted = ((base.long() + step) * strides).sum(1)
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            weight = (1 - (query - base - step).abs()).prod(1, keepdim=True) * (keys[place] == wanted)[:, None]
            total += weight * voxels.attrs[order[place]]
            weights += weight
        result[start : start + (1 << 20)] = total / weights.clamp(min=1e-12)
    return result


def filling(bench: Bench) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 128, 128, generator=generator)
    covered = torch.nn.functional.interpolate(coarse, size=(4096, 4096), mode="bilinear")[0, 0] > 0.5
    pictures = torch.randint(0, 256, (2, 4096, 4096, 4), dtype=torch.uint8, generator=generator) * covered[..., None]

    def fill() -> None:
        filler = GapFiller(covered)
        for picture in pictures:
            filler(picture)

    spent = bench.seconds(fill)[0]
    yield Row("T6", "fill 4096, 8 channels (goal for 6), s", spent, "<= 2.6", spent <= 2.6)


def decimating(bench: Bench) -> Iterator[Row]:
    for target, name, goal in (("T7", "organic_386", 0.02), ("T8", "mechanical_450", 0.01)):
        source = bench.cleaned(name)
        spent, found = bench.seconds(lambda source=source: decimate(*source, 100_000))
        limit = 2.3 if target == "T7" else None
        what = f"decimate {len(source[1])} {name.split('_')[0]} triangles to {len(found[1])}, s"
        yield Row(target, what, spent, f"<= {limit}" if limit else "", limit is None or spent <= limit)
        rms = _rms(source, found) * bench.decoded(name)[2].resolution
        yield Row(target, "rms distance, voxels", rms, f"<= {goal}", rms <= goal)


def _rms(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Root mean square of the distances from either surface to the other."""
    random = np.random.default_rng(0)
    there, here = (Mesh(*map(torch.from_numpy, surface)) for surface in (a, b))
    pairs = ((there, here), (here, there))
    away = [TriangleIndex(onto.vertices, onto.faces).query(_scatter(of, random)).distance for of, onto in pairs]
    return float(torch.cat(away).square().mean().sqrt())


def cleaning(bench: Bench) -> Iterator[Row]:
    vertices, faces, voxels = bench.decoded("organic_386")
    spent = bench.seconds(lambda: clean(vertices, faces, 1 / voxels.resolution))[0]
    theirs = bench.seconds(lambda: _trimesh_clean(vertices, faces), 1)[0]
    yield Row("T9", f"clean {len(faces)} triangles, s", spent, "<= 2.2", spent <= 2.2)
    yield Row("T9", "trimesh, s", theirs, "not less", spent <= theirs)


def baking(bench: Bench) -> Iterator[Row]:
    voxels = bench.decoded("organic_512")[2]
    source, (vertices, faces) = bench.cleaned("organic_512"), bench.decimated("organic_512", 10_000)
    spots, face, _ = _scatter_rows(Mesh(torch.from_numpy(vertices), torch.from_numpy(faces)), np.random.default_rng(0))
    order = face.argsort()  # as texels come
    spots, normals = spots[order], torch.from_numpy(face_normals(vertices, faces))[face[order]]
    exact = TriangleIndex(*map(torch.from_numpy, source)).query(spots).point
    truth = torch.from_numpy(paint(exact.numpy().astype(np.float64))[:, :3])
    back = BackProjector(*source, voxels.resolution)
    normals = torch.nn.functional.normalize(normals)
    many = ((spots + 0.5) * voxels.resolution).repeat_interleave(50, 0), normals.repeat_interleave(50, 0)
    spent, found = bench.seconds(lambda: back(*many))
    found = found[::50] / voxels.resolution - 0.5

    def quality(places: Tensor) -> float:
        return _psnr(sample_attributes(voxels, places)[:, :3].clamp(0, 1).mul(255).round() / 255, truth)

    loss = quality(exact) - quality(found)
    what = f"dB below exact back-projection at {len(faces)} triangles ({quality(exact):.2f} dB; without {quality(spots):.2f})"
    yield Row("T10", what, loss, "<= 0.3", loss <= 0.3)
    each = 1e6 * spent / len(many[0])
    yield Row("T10", "microseconds a texel", each, "<= 1", each <= 1)


def convolving(bench: Bench) -> Iterator[Row]:
    cells = [cell.strip(" %") for cell in convolution(100_000, 64).split("|")[1:-1]]
    useful, memory, ratio = float(cells[6]), float(cells[7]), float(cells[10])
    yield Row("T11", "convolution of 100k voxels, 64 channels, times faster than im2col", ratio, ">= 3", ratio >= 3)
    yield Row("T11", "useful work, % of a GEMM's", useful, ">= 55", useful >= 55)
    yield Row("T11", "MB", memory, "<= 100", memory <= 100)


def neighbours(bench: Bench) -> Iterator[Row]:
    coords = shell(2_000_000)
    spent = bench.seconds(lambda: NeighborMap.build(coords))[0]
    theirs = bench.seconds(lambda: _thirteen_searches(coords), 1)[0]
    yield Row("T12", f"neighbour map of {len(coords)} sorted voxels, s", spent, "<= 1.2", spent <= 1.2)
    yield Row("T12", "times faster than 13 binary searches", theirs / spent, ">= 3.5", theirs >= 3.5 * spent)
    yield Row("T12", "MB", peak_growth(lambda: NeighborMap.build(coords)), "", True)


def _thirteen_searches(coords: Tensor) -> Tensor:
    """Neighbours int32 [27, N], -1 for none: one search for each offset of one half, the other half by symmetry."""
    side = int(coords.max()) + 3
    strides = torch.tensor([side * side, side, 1])
    keys = ((coords[:, 1:].long() + 1) * strides).sum(1)
    table = torch.full((27, len(keys)), -1, dtype=torch.int32)
    row = torch.arange(len(keys), dtype=torch.int32)
    table[13] = row
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    for k in range(13):
        wanted = keys + (offsets[k] * strides).sum()
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        found = keys[place] == wanted
        table[k, found] = place[found].int()
        table[26 - k, place[found]] = row[found]
    return table


TARGETS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "T1": unwrapping,
    "T2": unwrapping_a_million,
    "T3": hard_surfaces,
    "T4": rasterising,
    "T5": sampling,
    "T6": filling,
    "T7": decimating,
    "T9": cleaning,
    "T10": baking,
    "T11": convolving,
    "T12": neighbours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), help="T7 measures T8 as well")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.folder, options.repeat)
    print("| | | measured | goal | |\n|---|---|---|---|---|", flush=True)
    for name in options.only:
        for row in TARGETS[name](bench):
            verdict = "" if row.good else "**missed**"
            print(f"| {row.target} | {row.what} | {row.value:.3g} | {row.goal} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
