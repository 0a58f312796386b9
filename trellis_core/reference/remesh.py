"""The reference's narrow-band remesh (docs/method/mesh.md): dual contouring of the unsigned distance minus an offset.

The zero set lies `band` voxels off the input on both sides, so a closed input comes back as two nested shells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..context import QUIET, RunContext
from ..mesh.topology import Array, compact
from .distance import ReferenceIndex

_OFFSETS = np.stack([(np.arange(8) >> k) & 1 for k in range(3)], axis=1)  # children and corners, x fastest
_KEEP = 0.87  # of a cell: half its diagonal and a little

# Per axis the four cells around the edge that a cell owns (far corner in the other two axes), docs/method/mesh.md
_RING = np.array(
    [
        [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
        [(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)],
        [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)],
    ]
)
# The cell's twelve edges as pairs of corner numbers, and those that it owns, one per axis.
_EDGES = np.array([(a, a | 1 << k) for k in range(3) for a in (0, 4, 2, 6, 1, 5, 3, 7) if not a >> k & 1])
_OWNED = np.array([(7 & ~(1 << k), 7) for k in range(3)])


class Grid(NamedTuple):
    """A cube of `resolution`^3 cells with edge length `scale` around `centre` [3]."""

    resolution: int
    scale: float
    centre: Array


class Contour(NamedTuple):
    """What dual contouring yields; see `contour`.

    Attributes:
        cells: int32 [N, 3] active cells.
        points: float32 [N, 3] dual vertices in cell units.
        crossings: int32 [N, 3] of the owned edge per axis: +1 outward along it, -1 inward, 0 none.
        vertices: float32 [V, 3]. faces: int32 [F, 3].
    """

    cells: Array
    points: Array
    crossings: Array
    vertices: Array
    faces: Array


def narrow_band(index: ReferenceIndex, grid: Grid, band: float, project_back: float = 0.0, ctx: RunContext = QUIET) -> Contour:
    """Surface at `band` cells around the mesh behind `index`; `project_back` 0..1 pulls it towards the mesh again."""
    offset = np.float32(band * grid.scale / grid.resolution)
    cells = _active_cells(index, grid, offset, ctx.part(0, 0.4, "remesh"))
    corners, corner_of = np.unique(_keys(cells[:, None] + _OFFSETS, grid.resolution + 1), return_inverse=True)
    place = _unkey(corners, grid.resolution + 1)
    value = _field(index, place, grid.resolution, grid, offset, ctx.part(0.4, 0.8, "remesh"))[corner_of.reshape(-1, 8)]
    found = contour(cells, value, grid)
    if project_back:
        pull = found.vertices - index.closest(found.vertices, ctx.part(0.8, 1, "remesh"))
        found = found._replace(vertices=found.vertices - np.float32(project_back) * pull)
    return found


def contour(cells: Array, value: Array, grid: Grid) -> Contour:
    """Dual contouring of `value` float32 [N, 8] at the corners (x fastest) of `cells` int [N, 3].

    A cell's vertex is the mean of the linear zero crossings on its edges. Faces look to the positive side.
    """
    low, high = value[:, _EDGES[:, 0]], value[:, _EDGES[:, 1]]
    crossed = (low < 0) != (high < 0)
    t = np.divide(-low, high - low, out=np.zeros_like(low), where=crossed)[..., None]
    start, end = (_OFFSETS[_EDGES[:, k]].astype(np.float32) for k in (0, 1))
    total = np.zeros((len(cells), 3), np.float32)
    for k in range(len(_EDGES)):  # in this order and in absolute coordinates, for equal rounding
        total += np.where(crossed[:, k, None], cells + start[k] + t[:, k] * (end[k] - start[k]), 0).astype(np.float32)
    amount = crossed.sum(axis=1, keepdims=True).astype(np.float32)
    points = np.divide(total, amount, out=(cells + np.float32(0.5)).astype(np.float32), where=amount > 0)

    first, last = value[:, _OWNED[:, 0]], value[:, _OWNED[:, 1]]
    crossings = ((first < 0) & (last >= 0)).astype(np.int32) - ((first >= 0) & (last < 0)).astype(np.int32)
    faces = _faces(cells, crossings, grid.resolution)
    vertices = (points / np.float32(grid.resolution) - np.float32(0.5)) * np.float32(grid.scale) + grid.centre
    vertices, faces, _ = compact(vertices.astype(np.float32), faces)
    return Contour(cells.astype(np.int32), points, crossings, vertices, faces)


def _faces(cells: Array, crossings: Array, resolution: int) -> Array:
    """Two triangles, diagonal 0-2, for every crossed owned edge whose four cells are all active: int32 [F, 3]."""
    keys = _keys(cells, resolution)
    order = np.argsort(keys)
    row, axis = np.nonzero(crossings)
    ring = cells[row][:, None] + _RING[axis]
    wanted = _keys(ring, resolution)
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    complete = ((keys[place] == wanted) & (ring < resolution).all(axis=2)).all(axis=1)
    quad, outward = place[complete], crossings[row, axis][complete] > 0
    quad[outward] = quad[outward][:, [0, 3, 2, 1]]
    triangles = quad[:, [0, 1, 2, 0, 2, 3]]
    triangles[outward] = triangles[outward][:, [3, 4, 5, 0, 1, 2]]  # the half at corner 1 of the ring comes first
    return triangles.reshape(-1, 3).astype(np.int32)


def _active_cells(index: ReferenceIndex, grid: Grid, offset: np.float32, ctx: RunContext) -> Array:
    """Cells that the offset surface may pass through, found from coarse to fine: int64 [N, 3]."""
    resolution = grid.resolution
    while resolution > 32 and resolution % 2 == 0:
        resolution //= 2
    cells = np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    while True:
        value = _field(index, cells + 0.5, resolution, grid, offset, ctx)
        cells = cells[np.abs(value) < np.float32(_KEEP * grid.scale / resolution)]
        if resolution == grid.resolution:
            return cells
        cells = (2 * cells[:, None] + _OFFSETS).reshape(-1, 3)
        resolution *= 2


def _field(index: ReferenceIndex, place: Array, resolution: int, grid: Grid, offset: np.float32, ctx: RunContext) -> Array:
    """Distance minus offset, float32 [P], at `place` [P, 3] in cells of a grid of `resolution` over the same cube."""
    unit = place.astype(np.float32) / np.float32(resolution) - np.float32(0.5)
    return index.distance(unit * np.float32(grid.scale) + grid.centre.astype(np.float32), ctx) - offset


def _keys(cells: Array, resolution: int) -> Array:
    return (cells[..., 0].astype(np.int64) * resolution + cells[..., 1]) * resolution + cells[..., 2]


def _unkey(keys: Array, resolution: int) -> Array:
    return np.stack([keys // resolution**2, keys // resolution % resolution, keys % resolution], axis=1)
