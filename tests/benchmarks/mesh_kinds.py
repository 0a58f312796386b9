"""Makes the meshes that the mesh benchmark runs on, as a shape decoder would: one dual vertex a voxel, winding by axis only.

    python -m tests.benchmarks.mesh_kinds DIR [--res 512] [--kinds organic mechanical debris]

organic: a displaced blend of round bodies, a ball of gyroid, an open sheet that cuts through both. mechanical: a
drilled block, plates and fins of 2.5 voxels, bolts. debris: 240 blobs and curved leaves that run through one another.
Each npz holds verts float32 [V, 3], faces int32 [F, 3], coords int16 [V, 3], attrs float16 [V, 6] and res; vertex i
belongs to voxel i. `paint` is the colour at a point, so that a baked texture has a truth to be held against.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh

Array = np.ndarray
Field = Callable[[Array], Array]
KINDS = ("organic", "mechanical", "debris")
_COARSE = 16  # voxels along a side of the cells that the search for the surface starts from
_STEEP = 1.7  # bound on the slope of all fields
_POINTS = 1 << 19
_CORNERS = np.array([(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)])


@dataclass(frozen=True)
class Layer:
    """A surface: where `field` [N, 3] -> [N] changes sign and `mask` (bool, none: everywhere) holds, within a box."""

    field: Field
    low: tuple[float, float, float] | Array = (-0.49, -0.49, -0.49)
    high: tuple[float, float, float] | Array = (0.49, 0.49, 0.49)
    mask: Field | None = None


def paint(points: Array) -> Array:
    """Attributes float32 [N, 6] at points of object space: soft stripes of colour, metal and roughness; opaque."""
    x, y, z = points.T
    wave = 0.5 + 0.4 * np.sin(np.stack([31 * x + 9 * y, 27 * y - 8 * z, 23 * z + 11 * x, 19 * x - 17 * y, 29 * z + 7 * y]))
    return np.concatenate([wave, np.ones((1, len(points)))]).T.astype(np.float32)


def layers_of(kind: str, resolution: int) -> list[Layer]:
    """The surfaces of a kind; the mechanical one has plates of 2.5 voxels."""
    if kind == "organic":
        sheet = Layer(_sheet, (-0.42, -0.42, -0.05), (0.42, 0.42, 0.2), lambda p: np.hypot(p[:, 0], p[:, 1]) < 0.4)
        return [Layer(_creature), sheet]
    if kind == "mechanical":
        return [Layer(lambda p: _machine(p, 2.5 / resolution))]
    return _debris(np.random.default_rng(7))


def make(kind: str, resolution: int) -> dict[str, Array]:
    """The arrays of one mesh; see the module."""
    found = [_crossings(layer, resolution) for layer in layers_of(kind, resolution)]
    edge, point, normal = (np.concatenate(parts) for parts in zip(*found, strict=True))
    edge, rows = np.unique(edge, return_index=True)
    point, normal = point[rows], normal[rows]
    voxel, axis = np.stack(np.unravel_index(edge // 3, (resolution,) * 3), axis=1), edge % 3
    around = np.array([[(a, b, 0), (0, a, b), (b, 0, a)] for a in (0, 1) for b in (0, 1)])
    cells = voxel[:, None] + around[:, (axis + 1) % 3].swapaxes(0, 1)  # the row whose zero is at the edge's axis
    key = (cells @ [resolution**2, resolution, 1]).reshape(-1)
    key, home = np.unique(key, return_inverse=True)
    coords = np.stack(np.unravel_index(key, (resolution,) * 3), axis=1)
    inner = _fit(home.reshape(-1), np.repeat(point, 4, 0), np.repeat(normal, 4, 0), coords)
    flags = np.zeros((len(coords), 3), bool)
    flags[np.searchsorted(key, edge // 3), axis] = True
    tensors = (torch.from_numpy(array) for array in (coords.astype(np.int32), inner.astype(np.float32), flags))
    mesh = dual_grid_to_mesh(*tensors, None, resolution)
    return {
        "verts": mesh.vertices.numpy(),
        "faces": mesh.faces.numpy(),
        "coords": coords.astype(np.int16),
        "attrs": paint((coords + inner) / resolution - 0.5).astype(np.float16),
        "res": np.int32(resolution),
    }


def _crossings(layer: Layer, resolution: int) -> tuple[Array, Array, Array]:
    """Grid edges that a layer pierces: edge (3 * voxel + axis), point in voxels and unit normal of each."""
    low = np.floor((np.asarray(layer.low) + 0.5) * resolution / _COARSE).astype(int)
    high = np.ceil((np.asarray(layer.high) + 0.5) * resolution / _COARSE).astype(int)
    cells = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 3) * _COARSE
    parts = []
    for some in np.array_split(cells, max(len(cells) // 4096, 1)):
        size = _COARSE
        while size > 1 and len(some):
            near = np.abs(_at(layer.field, some + size / 2, resolution)) * resolution < 0.87 * _STEEP * (size + 1)
            size //= 2
            children = np.stack(np.meshgrid(*[[0, size]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
            some = (some[near][:, None] + children).reshape(-1, 3)
        for voxels in np.array_split(some, len(some) // _POINTS + 1):
            parts.append(_pierce(layer, voxels, resolution))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _pierce(layer: Layer, voxels: Array, resolution: int) -> tuple[Array, Array, Array]:
    ends = [_at(layer.field, voxels + corner, resolution) for corner in _CORNERS]
    edges, points = [], []
    for axis in range(3):
        a, b = ends[1 + axis], ends[0]
        rows = np.flatnonzero((a < 0) != (b < 0))
        start, fa, fb = (voxels[rows] + _CORNERS[1 + axis]).astype(np.float64), a[rows], b[rows]
        lo, hi = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(4):  # regula falsi
            t = lo + (hi - lo) * fa / (fa - fb)
            start[:, axis] = voxels[rows, axis] + t
            value = _at(layer.field, start, resolution)
            left = (value < 0) == (fa < 0)
            lo, fa = np.where(left, t, lo), np.where(left, value, fa)
            hi, fb = np.where(left, hi, t), np.where(left, fb, value)
        keep = (voxels[rows] >= 0).all(1) & (voxels[rows] < resolution - 1).all(1)
        if layer.mask is not None:
            keep &= layer.mask(start / resolution - 0.5)
        edges.append((3 * (voxels[rows].astype(np.int64) @ [resolution**2, resolution, 1]) + axis)[keep])
        points.append(start[keep])
    point = np.concatenate(points)
    step = 0.02 * np.eye(3)
    slope = [_at(layer.field, point + e, resolution) - _at(layer.field, point - e, resolution) for e in step]
    normal = np.stack(slope, axis=1)
    return np.concatenate(edges), point, normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-30)


def _at(field: Field, voxels: Array, resolution: int) -> Array:
    return field(voxels / resolution - 0.5)


def _fit(home: Array, point: Array, normal: Array, coords: Array) -> Array:
    """Place [N, 3] in 0..1 of the vertex of each voxel: nearest to the planes of its crossings, and to their middle."""
    count = len(coords)
    total = lambda *columns: np.stack([np.bincount(home, c, minlength=count) for c in columns], axis=1)  # noqa: E731
    mean = total(*point.T) / np.bincount(home, minlength=count)[:, None]
    planes = total(*(normal[:, i] * normal[:, j] for i in range(3) for j in range(3))).reshape(-1, 3, 3)
    offset = (normal * (point - mean[home])).sum(1)
    pull = total(*(normal[:, i] * offset for i in range(3)))
    step = np.linalg.solve(planes + 0.05 * np.eye(3), pull[..., None])[..., 0]
    return np.clip(mean + step - coords, 0.02, 0.98)


def _creature(p: Array) -> Array:
    x, y, z = p.T
    body = _ball(p, (-0.16, -0.05, 0.1), 0.2)
    for centre, radius in (((0.1, 0.12, 0.05), 0.16), ((-0.1, 0.2, -0.12), 0.13), ((0.12, -0.2, 0.2), 0.1)):
        body = _smooth_min(body, _ball(p, centre, radius), 0.08)
    ring = np.hypot(np.hypot(x + 0.05, y) - 0.3, z + 0.15) - 0.05
    body = _smooth_min(body, ring, 0.06) + 0.006 * np.sin(45 * x) * np.sin(41 * y) * np.sin(47 * z)
    k = 55.0
    wave = np.sin(k * x) * np.cos(k * y) + np.sin(k * y) * np.cos(k * z) + np.sin(k * z) * np.cos(k * x)
    gyroid = np.maximum(np.abs(wave) / (1.7 * k) - 0.006, _ball(p, (0.2, -0.1, -0.24), 0.17))
    return np.minimum(body, gyroid)


def _sheet(p: Array) -> Array:
    return (p[:, 2] - 0.07 - 0.04 * np.sin(9 * p[:, 0]) * np.cos(7 * p[:, 1])) / 1.2


def _machine(p: Array, plate: float) -> Array:
    x, y, z = p.T
    solid = _box(p, (0.0, 0.0, -0.34), (0.4, 0.3, 0.06))
    for at in np.linspace(-0.3, 0.3, 5):
        solid = np.maximum(solid, 0.035 - np.hypot(x - at, y - 0.17))
    for at in np.linspace(-0.36, 0.36, 7):
        solid = np.minimum(solid, _box(p, (at, -0.02, -0.02), (plate / 2, 0.2, 0.27)))
    for at in (0.05, 0.2):
        solid = np.minimum(solid, _box(p, (0.0, 0.0, at + 0.003), (0.38, 0.26, plate / 2)))
    for at in np.linspace(-0.3, 0.3, 5):
        bolt = np.maximum(np.hypot(x - at, y + 0.25) - 0.02, np.abs(z + 0.25) - 0.06)
        u, v = np.abs(x - at), np.abs(y + 0.25)
        head = np.maximum(np.maximum(v, 0.866 * u + 0.5 * v) - 0.032, np.abs(z + 0.2) - 0.02)
        solid = np.minimum(solid, np.minimum(bolt, head))
    return solid


def _debris(random: np.random.Generator) -> list[Layer]:
    layers = []
    for _ in range(240):
        centre, radius, phase = random.uniform(-0.42, 0.42, 3), random.uniform(0.015, 0.042), random.uniform(0, 6, 3)

        def blob(p: Array, centre: Array = centre, radius: float = radius, phase: Array = phase) -> Array:
            return _ball(p, centre, radius) + 0.1 * radius * np.sin(3 / radius * p + phase).prod(1)

        layers.append(Layer(blob, centre - 1.3 * radius, centre + 1.3 * radius))
    for _ in range(60):
        centre, axis = random.uniform(-0.4, 0.4, 3), random.normal(size=3)
        axis /= np.linalg.norm(axis)
        cap = lambda p, c=centre, n=axis: (p - c) @ n > 0.055  # noqa: E731
        layers.append(Layer(lambda p, c=centre: _ball(p, c, 0.075), centre - 0.09, centre + 0.09, cap))
    return layers


def _ball(p: Array, centre: Array | tuple[float, ...], radius: float) -> Array:
    return np.linalg.norm(p - np.asarray(centre), axis=1) - radius


def _box(p: Array, centre: tuple[float, ...], half: tuple[float, ...]) -> Array:
    q = np.abs(p - np.array(centre)) - np.array(half)
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def _smooth_min(a: Array, b: Array, width: float) -> Array:
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * width / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--res", type=int, nargs="+", default=[256])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for resolution in options.res:
        for kind in options.kinds:
            arrays = make(kind, resolution)
            np.savez(options.folder / f"{kind}_{resolution}.npz", **arrays)
            print(f"{kind}_{resolution}: {len(arrays['verts'])} vertices, {len(arrays['faces'])} triangles", flush=True)


if __name__ == "__main__":
    main()
