"""Triangle mesh -> flexible dual grid (docs/method/mesh.md): active voxels, crossed edges, and one dual vertex a voxel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..errors import EmptyResultError, InputError
from .crossings import grid_crossings, split_by_count, spread
from .dual_grid import UNIT_CUBE
from .quadric import line_quadrics, minimise_in_boxes, plane_quadrics, point_quadrics

_TRIANGLES = 1 << 16
_CANDIDATES = 1 << 18
_PLANE_DEPTH = 4  # along a triangle's steepest axis its plane meets the boxes of one column over at most three voxels


@dataclass(frozen=True)
class DualGrid:
    """Flexible dual grid of N active voxels.

    Attributes:
        coords: int32 [N, 3], in the order in which the triangles first touch them.
        dual_vertices: float32 [N, 3] position inside the voxel, 0..1 (what `dual_grid_to_mesh` and the encoder read).
        intersected: bool [N, 3]; flag a: the surface crosses the grid edge along axis a at the voxel's far corner.
    """

    coords: Tensor
    dual_vertices: Tensor
    intersected: Tensor


def mesh_to_dual_grid(
    vertices: Tensor,
    faces: Tensor,
    grid_size: int,
    *,
    face_weight: float = 1.0,
    boundary_weight: float = 0.2,
    regularization_weight: float = 0.01,
    aabb: tuple[tuple[float, ...], tuple[float, ...]] = UNIT_CUBE,
    ctx: RunContext = QUIET,
) -> DualGrid:
    """Voxelise a surface, open or closed, and place a vertex in every active voxel by quadric error (docs/method/mesh.md).

    Args:
        vertices: float [V, 3]; what lies outside `aabb` is ignored.
        faces: integer [F, 3]; weld equal vertices first, or every edge counts as a boundary.
        grid_size: voxels per axis of `aabb`.
        face_weight: above 0, triangles that overlap an active voxel count once more (an on/off switch, as in the reference).
        boundary_weight: pull towards edges that only one triangle uses.
        regularization_weight: pull towards the mean of a voxel's crossings, per crossing. The defaults are what the released
            encoders were trained with.

    Returns:
        The dual grid, on the CPU.

    Raises:
        InputError: a face names a vertex that does not exist, or a vertex is not finite.
        EmptyResultError: the surface crosses no grid line.
    """
    vertices, faces = vertices.detach().cpu(), faces.detach().cpu().long()
    _check_mesh(vertices, faces)
    low, high = torch.tensor(aabb, dtype=torch.float32)
    size = (high - low) / grid_size
    vertices = vertices.float() - low
    triangles = vertices[faces]
    touched = _touch(triangles, size, grid_size, ctx.part(0.0, 0.4, "Finding crossed edges"))
    row, triangle = touched.row.view(-1), touched.triangle.repeat_interleave(4)
    if face_weight > 0:
        more = _overlaps(triangles, size, grid_size, touched, ctx.part(0.4, 0.8, "Collecting faces"))
        row, triangle = torch.cat([row, more[0]]), torch.cat([triangle, more[1]])
    quadrics = _sum_rows(row, triangle, plane_quadrics(triangles), len(touched.key))
    if boundary_weight > 0:
        quadrics += boundary_weight * _boundary_quadrics(vertices, faces, size, grid_size, touched, ctx)
    mean, count = touched.mean, touched.count[:, None]
    quadrics += regularization_weight * count * point_quadrics(mean)
    ctx.report(0.9, "Placing vertices")
    coords = _unravel(touched.key, grid_size)
    placed = minimise_in_boxes(quadrics, coords * size.double(), (coords + 1) * size.double())
    inside = (placed / size - coords).float().clamp_(0, 1)
    ctx.report(1.0)
    return DualGrid(coords.int(), inside, touched.flags)


@dataclass(frozen=True)
class _Touched:
    """Active voxels in order of first touch, and the crossings that made them.

    key int64 [N] linear voxel number; sorted_key int64 [N] and row_of_sorted int64 [N] to look rows up; flags bool [N, 3];
    mean float64 [N, 3] and count float64 [N] of the crossing points; triangle int64 [K] and row int64 [K, 4] of each crossing.
    """

    key: Tensor
    sorted_key: Tensor
    row_of_sorted: Tensor
    flags: Tensor
    mean: Tensor
    count: Tensor
    triangle: Tensor
    row: Tensor

    def find(self, key: Tensor) -> Tensor:
        """Rows of voxel numbers, -1 where a voxel is not active."""
        place = torch.searchsorted(self.sorted_key, key).clamp_(max=len(self.key) - 1)
        return torch.where(self.sorted_key[place] == key, self.row_of_sorted[place], -1)


def _check_mesh(vertices: Tensor, faces: Tensor) -> None:
    if not vertices.isfinite().all():
        raise InputError("The mesh has vertices that are not finite numbers.")
    if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise InputError(f"The mesh has faces that name vertices beyond its {len(vertices)}.")


def _touch(triangles: Tensor, size: Tensor, grid_size: int, ctx: RunContext) -> _Touched:
    batches = list(grid_crossings(triangles, size, grid_size, ctx))
    if not sum(len(batch.triangle) for batch in batches):
        raise EmptyResultError("The mesh crosses no line of the voxel grid: it is empty, too small, or outside the box.")
    triangle = torch.cat([batch.triangle for batch in batches])
    axis = torch.cat([batch.axis for batch in batches])
    key = torch.cat([_ravel(batch.voxel, grid_size) for batch in batches])
    point = torch.cat([batch.point for batch in batches]).double()
    del batches
    touched = (key[:, None] + _touch_steps(grid_size)[axis]).view(-1)
    sorted_key, inverse = torch.unique(touched, return_inverse=True)
    first = torch.full_like(sorted_key, len(touched)).scatter_reduce_(0, inverse, torch.arange(len(touched)), "amin")
    order = first.argsort()
    row_of_sorted = torch.empty_like(order)
    row_of_sorted[order] = torch.arange(len(order))
    row = row_of_sorted[inverse]
    flags = torch.zeros(len(order), 3, dtype=torch.bool)
    flags[row[::4], axis] = True
    count = torch.bincount(row, minlength=len(order)).double()
    total = [torch.bincount(row, point[:, i].repeat_interleave(4), minlength=len(order)) for i in range(3)]
    mean = torch.stack(total, 1) / count[:, None]
    return _Touched(sorted_key[order], sorted_key, row_of_sorted, flags, mean, count, triangle, row.view(-1, 4))


def _touch_steps(grid_size: int) -> Tensor:
    """Key steps [axis c, 4] to the voxels around a grid edge along c: (0, 0), (0, 1), (1, 0), (1, 1) along (a, b)."""
    stride = _strides(grid_size)
    a, b = stride[[1, 2, 0]], stride[[2, 0, 1]]
    return torch.stack([torch.zeros_like(a), b, a, a + b], 1)


def _strides(grid_size: int) -> Tensor:
    return torch.tensor([grid_size * grid_size, grid_size, 1])


def _ravel(voxel: Tensor, grid_size: int) -> Tensor:
    return (voxel[:, 0] * grid_size + voxel[:, 1]) * grid_size + voxel[:, 2]


def _unravel(key: Tensor, grid_size: int) -> Tensor:
    return torch.stack([key // grid_size**2, key // grid_size % grid_size, key % grid_size], 1)


def _sum_rows(row: Tensor, item: Tensor, values: Tensor, rows: int) -> Tensor:
    """Sum of values[item] [.., C] over all pairs (row, item) -> [rows, C], by a sparse matrix of multiplicities."""
    from scipy.sparse import csr_matrix

    ones = torch.ones(len(row), dtype=values.dtype).numpy()
    counts = csr_matrix((ones, (row.numpy(), item.numpy())), shape=(rows, len(values)))
    return torch.from_numpy(counts @ values.numpy())


def _overlaps(triangles: Tensor, size: Tensor, grid_size: int, touched: _Touched, ctx: RunContext) -> tuple[Tensor, Tensor]:
    """Pairs (row, triangle) of active voxels whose closed box a triangle overlaps (Schwarz and Seidel 2010), float32."""
    rows, items = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(triangles), _TRIANGLES):
        ctx.report(start / len(triangles))
        for triangle, key in _chunk_overlaps(triangles[start : start + _TRIANGLES], size, grid_size):
            row = touched.find(key)
            active = row >= 0
            rows.append(row[active])
            items.append(start + triangle[active])
            ctx.check()
    return torch.cat(rows), torch.cat(items)


def _chunk_overlaps(triangles: Tensor, size: Tensor, grid_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Triangle and voxel number of each overlap, active or not: columns over (a, b) first, then few depths near the plane."""
    normal = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 1], dim=1)
    normal = torch.nn.functional.normalize(normal, dim=1, eps=torch.finfo(torch.float32).tiny)
    # Turn the axes so that the triangle is steepest along its last one, c; it is then a height field over (a, b).
    turn = (normal.abs().argmax(1)[:, None] + torch.tensor([1, 2, 3])) % 3
    corners = triangles.gather(2, turn[:, None].expand(-1, 3, -1))
    normal, size, stride = normal.gather(1, turn), size[turn], _strides(grid_size)[turn]
    first = (corners.amin(1) / size).trunc().long().clamp_(min=0)
    stop = (corners.amax(1) / size + 1).trunc().long().clamp_(max=grid_size)
    extent = (stop - first).clamp_(min=0) * (normal != 0).any(1, keepdim=True)
    test = _BoxTest(corners, normal, size)
    counts = extent[:, 0] * extent[:, 1]
    for part in split_by_count(counts, _CANDIDATES):
        t, place = spread(counts[part])
        t = t + part.start
        column = torch.stack([place // extent[t, 1], place % extent[t, 1], torch.zeros_like(t)], 1) + first[t]
        over = test.edges(t, column, 0)
        t, column = t[over], column[over]
        lowest = torch.where(extent[t, 2] > _PLANE_DEPTH, test.lowest_depth(t, column), 0)
        bottom = torch.maximum(lowest, column[:, 2])
        again, place = spread((stop[t, 2] - bottom).clamp(0, _PLANE_DEPTH))
        t, voxel = t[again], column[again]
        voxel[:, 2] = bottom[again] + place
        hit = test.plane(t, voxel) & test.edges(t, voxel, 1) & test.edges(t, voxel, 2)
        yield t[hit], (voxel * stride[t]).sum(1)[hit]


class _BoxTest:
    """Triangles against voxels, set up once a triangle; all in turned axes (a, b, c)."""

    def __init__(self, corners: Tensor, normal: Tensor, size: Tensor) -> None:
        self.normal, self.size = normal, size
        critical = torch.where(normal > 0, size, 0.0)
        v0 = corners[:, 0]
        self.near = (normal * (critical - v0)).sum(1)
        self.far = (normal * (size - critical - v0)).sum(1)
        self.lines = []  # of each projection: inward normals of the three edges and offsets, float32 [T, 3] each
        edges = corners.roll(-1, 1) - corners
        for p in range(3):  # projections ab, bc, ca
            q = (p + 1) % 3
            sign = torch.where(normal[:, (p + 2) % 3] < 0, -1.0, 1.0)[:, None]
            along_p, along_q = -edges[:, :, q] * sign, edges[:, :, p] * sign
            reach = (along_p * size[:, p : p + 1]).clamp_(min=0) + (along_q * size[:, q : q + 1]).clamp_(min=0)
            self.lines.append((along_p, along_q, reach - (along_p * corners[:, :, p] + along_q * corners[:, :, q])))

    def plane(self, t: Tensor, voxel: Tensor) -> Tensor:
        height = self._height(t, voxel, 3)
        return (height + self.near[t]) * (height + self.far[t]) <= 0

    def edges(self, t: Tensor, voxel: Tensor, projection: int) -> Tensor:
        p, q = projection, (projection + 1) % 3
        low_p, low_q = voxel[:, p] * self.size[t, p], voxel[:, q] * self.size[t, q]
        inside = [
            along_p[t] * low_p + along_q[t] * low_q + offset[t] >= 0
            for along_p, along_q, offset in zip(*(line.unbind(1) for line in self.lines[projection]), strict=True)
        ]
        return inside[0] & inside[1] & inside[2]

    def lowest_depth(self, t: Tensor, column: Tensor) -> Tensor:
        """First voxel along c, with some slack, whose box the plane can meet."""
        height = self._height(t, column, 2)
        step = self.normal[t, 2] * self.size[t, 2]
        meets = torch.minimum(-(height + self.near[t]) / step, -(height + self.far[t]) / step)
        return (meets - 1e-3).ceil().long()

    def _height(self, t: Tensor, voxel: Tensor, axes: int) -> Tensor:
        """Dot product of the normal and the voxel's low corner over the first `axes` axes."""
        return sum((self.normal[t, i] * (voxel[:, i] * self.size[t, i]) for i in range(axes)), start=torch.zeros(()))


def _boundary_quadrics(
    vertices: Tensor, faces: Tensor, size: Tensor, grid_size: int, touched: _Touched, ctx: RunContext
) -> Tensor:
    """Sum of the line quadrics of boundary edges over the active voxels that they pass, [N, 10]."""
    start, stop = boundary_edges(vertices.double(), faces)
    length = (stop - start).norm(dim=1)
    long = length > 1e-6
    start, length = start[long], length[long]
    direction = (stop[long] - start) / length[:, None]
    rows, items = [], []
    for edge, voxel in _walk(start, direction, length, size, ctx):
        inside = ((voxel >= 0) & (voxel < grid_size)).all(1)
        row = touched.find(_ravel(voxel, grid_size))
        kept = inside & (row >= 0)
        rows.append(row[kept])
        items.append(edge[kept])
    none = torch.zeros(0, dtype=torch.int64)
    return _sum_rows(torch.cat([none, *rows]), torch.cat([none, *items]), line_quadrics(start, direction), len(touched.key))


def boundary_edges(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Ends [E, 3] and [E, 3] of the edges that exactly one triangle uses, in the order and direction of `faces`."""
    edges = torch.stack([faces, faces.roll(-1, 1)], 2).view(-1, 2)
    low, high = edges.amin(1), edges.amax(1)
    _, inverse, count = torch.unique(low * len(vertices) + high, return_inverse=True, return_counts=True)
    single = edges[count[inverse] == 1]
    return vertices[single[:, 0]], vertices[single[:, 1]]


def _walk(start: Tensor, direction: Tensor, length: Tensor, size: Tensor, ctx: RunContext) -> Iterator[tuple[Tensor, Tensor]]:
    """Voxels that segments pass, one step of all segments at a time: (segment, voxel [.., 3]) (Amanatides and Woo 1987)."""
    voxel = (start / size).floor().long()
    ahead = direction > 0
    border = ((voxel + ahead) * size).double()
    still = direction == 0
    slope = torch.where(still, 1.0, direction)
    due = torch.where(still, torch.inf, (border - start) / slope)
    pace = torch.where(still, torch.inf, size / slope.abs())
    step = torch.where(ahead, 1, -1)
    segment = torch.arange(len(start))
    while len(segment):
        ctx.check()
        yield segment, voxel
        x, y, z = due.unbind(1)
        axis = torch.where((x < y) & (x < z), 0, torch.where((y < z) & ~(x < y), 1, 2))[:, None]
        going = due.gather(1, axis)[:, 0] <= length[segment]
        taken = torch.zeros_like(due, dtype=torch.bool).scatter_(1, axis, True)[going]
        segment, pace, step = segment[going], pace[going], step[going]
        voxel = voxel[going] + step * taken
        due = torch.where(taken, due[going] + pace, due[going])
