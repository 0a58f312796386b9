"""Quadric error functions in three variables: build them from planes, lines and points, minimise them in boxes.

A quadric q(v) = v'Av + 2 b'v + c is one float64 row of ten: A00 A01 A02 A11 A12 A22, b0 b1 b2, c.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_CHUNK = 1 << 17
_SINGULAR = 1e-10  # of det / trace^3: below, the quadric is flat along some direction as far as its numbers can tell


def plane_quadrics(triangles: Tensor) -> Tensor:
    """Squared distance to the planes of triangles [T, 3, 3] -> [T, 10]; all zero for a triangle without area."""
    v0, v1, v2 = triangles.double().unbind(1)
    normal = torch.linalg.cross(v1 - v0, v2 - v1, dim=1)
    normal = torch.where(normal == 0, 0.0, normal / normal.norm(dim=1, keepdim=True))
    offset = -(normal * v0).sum(1)
    square = torch.stack([normal[:, i] * normal[:, j] for i, j in _UPPER], 1)
    return torch.cat([square, normal * offset[:, None], (offset * offset)[:, None]], 1)


def line_quadrics(points: Tensor, directions: Tensor) -> Tensor:
    """Squared distance to the lines through `points` [N, 3] along unit `directions` [N, 3] -> [N, 10]."""
    square = torch.stack([float(i == j) - directions[:, i] * directions[:, j] for i, j in _UPPER], 1)
    away = points - directions * (directions * points).sum(1, keepdim=True)
    return torch.cat([square, -away, (away * points).sum(1, keepdim=True)], 1)


def point_quadrics(points: Tensor) -> Tensor:
    """Squared distance to `points` [N, 3] -> [N, 10]."""
    square = torch.tensor([float(i == j) for i, j in _UPPER], dtype=points.dtype, device=points.device)
    return torch.cat([square.expand(len(points), -1), -points, points.square().sum(1, keepdim=True)], 1)


def minimise_in_boxes(quadrics: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The point of each closed box [low, high] with the least error: quadrics [N, 10], corners [N, 3] -> float64 [N, 3].

    Every quadric is convex, so the minimum lies at the free minimum if that is inside, or else on a face, an edge or a corner.
    """
    best = torch.empty_like(low, dtype=torch.float64)
    for rows in torch.arange(len(low), device=low.device).split(_CHUNK):
        A, b, c = _unpack(quadrics[rows])
        best[rows] = _minimise(A, b, c, low[rows].double(), high[rows].double())
    return best


def _unpack(quadrics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    index = [_UPPER.index((min(i, j), max(i, j))) for i, j in itertools.product(range(3), repeat=2)]
    return quadrics[:, index].view(-1, 3, 3), quadrics[:, 6:9], quadrics[:, 9]


def _minimise(A: Tensor, b: Tensor, c: Tensor, low: Tensor, high: Tensor) -> Tensor:
    # Solve around the box's centre in units of its size, where numbers are near 1.
    centre, half = (low + high) / 2, (high - low) / 2
    b = ((A @ centre[:, :, None])[:, :, 0] + b) * half
    A = A * half[:, :, None] * half[:, None, :]
    scale = A.diagonal(dim1=1, dim2=2).sum(1).clamp_(min=torch.finfo(torch.float64).tiny)
    A, b = A / scale[:, None, None], b / scale[:, None]
    point = _free_minimum(A, b)
    outside = (~(point.abs() <= 1).all(1)).nonzero()[:, 0]
    point[outside] = _minimum_on_boundary(A[outside], b[outside])
    return centre + half * point


def _free_minimum(A: Tensor, b: Tensor) -> Tensor:
    """Solve A v = -b; the shortest solution where A is singular. The trace of A is 1."""
    row0, row1, row2 = A.unbind(1)
    adjugate = torch.stack([torch.linalg.cross(row1, row2), torch.linalg.cross(row2, row0), torch.linalg.cross(row0, row1)], 2)
    det = (row0 * adjugate[:, :, 0]).sum(1)
    point = -(adjugate @ b[:, :, None])[:, :, 0] / det[:, None]
    flat = (det < _SINGULAR).nonzero()[:, 0]
    point[flat] = -(torch.linalg.pinv(A[flat], rtol=1e-6, hermitian=True) @ b[flat, :, None])[:, :, 0]
    return point


def _minimum_on_boundary(A: Tensor, b: Tensor) -> Tensor:
    """The least point on the surface of the box [-1, 1]^3; of equal ones the first of faces, edges, corners."""
    best = torch.zeros_like(b)
    least = torch.full_like(b[:, 0], torch.inf)
    for fixed in _boundary_patches():
        point = _patch_minimum(A, b, fixed)
        error = (((A @ point[:, :, None])[:, :, 0] + 2 * b) * point).sum(1)
        better = (point.abs() <= 1).all(1) & (error < least)
        best = torch.where(better[:, None], point, best)
        least = torch.where(better, error, least)
    return best


def _boundary_patches() -> list[tuple[float | None, ...]]:
    """Faces (one coordinate fixed), then edges, then corners of the box; None marks a free coordinate."""
    sides = list(itertools.product((None, -1.0, 1.0), repeat=3))
    return sorted((side for side in sides if side != (None,) * 3), key=lambda side: -side.count(None))


def _patch_minimum(A: Tensor, b: Tensor, fixed: tuple[float | None, ...]) -> Tensor:
    """Minimum with some coordinates fixed (not finite where that is not unique)."""
    point = torch.tensor([side or 0.0 for side in fixed], dtype=b.dtype, device=b.device).expand_as(b).clone()
    free = [axis for axis in range(3) if fixed[axis] is None]
    pull = (A @ point[:, :, None])[:, :, 0] + b
    if len(free) == 1:
        (i,) = free
        point[:, i] = -pull[:, i] / A[:, i, i]
    elif len(free) == 2:
        i, j = free
        det = A[:, i, i] * A[:, j, j] - A[:, i, j].square()
        point[:, i] = (A[:, i, j] * pull[:, j] - A[:, j, j] * pull[:, i]) / det
        point[:, j] = (A[:, i, j] * pull[:, i] - A[:, i, i] * pull[:, j]) / det
    return point
