"""Closest points with the reference's float32 arithmetic, to the last bit (docs/method/mesh.md).

Dual contouring and edge collapse branch on the last bit of these distances on symmetric shapes. The face comes from
the exact index; distances are then evaluated again in float32 for it and all faces that touch it.
"""

from __future__ import annotations

import numpy as np
import torch

from ..context import QUIET, RunContext
from ..mesh.distance import TriangleIndex
from ..mesh.ragged import ragged
from ..mesh.topology import Array

_NO_AREA = np.float32(1e-24)
_SHORT2 = np.float32(1e-12)
_PAIRS = 1 << 20


class ReferenceIndex:
    """Distance and closest point to one mesh: vertices float32 [V, 3], faces int32 [F, 3]."""

    def __init__(self, vertices: Array, faces: Array) -> None:
        self.corners = vertices[faces]
        self.faces = faces
        self._exact = TriangleIndex(torch.from_numpy(vertices), torch.from_numpy(faces))
        flat = faces.reshape(-1)
        self._by_vertex = np.argsort(flat, kind="stable") // 3
        self._degree = np.bincount(flat, minlength=len(vertices))
        self._start = np.cumsum(self._degree) - self._degree

    def distance(self, points: Array, ctx: RunContext = QUIET) -> Array:
        """Unsigned distance float32 [P] of points float32 [P, 3]."""
        return self._nearest(points, ctx)[0]

    def closest(self, points: Array, ctx: RunContext = QUIET) -> Array:
        """Closest point float32 [P, 3], mixed from the face's corners by its barycentric weights as in the reference."""
        corner = self.corners[self._nearest(points, ctx)[1]]
        weights = _barycentric(_closest(points, corner), corner)
        return weights[:, :1] * corner[:, 0] + weights[:, 1:2] * corner[:, 1] + weights[:, 2:] * corner[:, 2]

    def _nearest(self, points: Array, ctx: RunContext) -> tuple[Array, Array]:
        """Distance and face, the least float32 distance among the exactly nearest face and those around it."""
        seed = self._exact.query(torch.from_numpy(points), ctx=ctx).face.numpy()
        distance, face = np.empty(len(points), np.float32), np.empty(len(points), np.int64)
        corner = self.faces[seed]
        amount = self._degree[corner].sum(axis=1)
        chunk = np.cumsum(amount) // _PAIRS
        for rows in np.split(np.arange(len(points)), np.flatnonzero(np.diff(chunk)) + 1):
            vertex = corner[rows].reshape(-1)
            item, within = ragged(self._degree[vertex])
            candidate = self._by_vertex[self._start[vertex[item]] + within]
            row = item // 3
            square = _distance2(points[rows[row]], self.corners[candidate])
            order = np.lexsort([candidate, square, row])
            first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
            distance[rows], face[rows] = np.sqrt(square[first]), candidate[first]
        return distance, face


def _dot(a: Array, b: Array) -> Array:
    """Dot products of rows, summed x + (y + z)."""
    return a[:, 0] * b[:, 0] + (a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2])


def _above_face(points: Array, corner: Array) -> tuple[Array, Array, Array]:
    """Whether the foot of the perpendicular lies inside each triangle; its normal; the normal's squared length."""
    sides = np.roll(corner, -1, axis=1) - corner
    normal = np.cross(sides[:, 0], sides[:, 2])
    square = _dot(normal, normal)
    inside = square >= _NO_AREA
    for k in range(3):
        inside &= _dot(np.cross(sides[:, k], normal), points - corner[:, k]) >= 0
    return inside, normal, square


def _distance2(points: Array, corner: Array) -> Array:
    """Squared distance float32 [P] of points [P, 3] to triangles [P, 3, 3]."""
    inside, normal, square = _above_face(points, corner)
    height = _dot(normal, points - corner[:, 0])
    best = np.full(len(points), np.inf, np.float32)
    for k in range(3):
        side, offset = corner[:, (k + 1) % 3] - corner[:, k], points - corner[:, k]
        t = np.clip(_dot(side, offset) / np.maximum(_dot(side, side), _SHORT2), 0, 1)
        rest = side * t[:, None] - offset
        best = np.minimum(best, _dot(rest, rest))
    plane = np.divide(height * height, square, out=best.copy(), where=inside)
    return plane


def _closest(points: Array, corner: Array) -> Array:
    """Closest point float32 [P, 3] of triangles [P, 3, 3]; of equally near sides ab, then bc, then ca."""
    inside, normal, square = _above_face(points, corner)
    best, nearest = np.full(len(points), np.inf, np.float32), np.zeros_like(points)
    for k in range(3):
        start, side = corner[:, k], corner[:, (k + 1) % 3] - corner[:, k]
        length = _dot(side, side)
        t = np.clip(_dot(points - start, side) / np.maximum(length, _SHORT2), 0, 1)
        foot = start + np.where(length < _SHORT2, 0, t)[:, None] * side
        away = _dot(points - foot, points - foot)
        nearest = np.where((away < best)[:, None], foot, nearest)
        best = np.minimum(best, away)
    factor = np.divide(_dot(normal, points - corner[:, 0]), square, out=np.zeros_like(square), where=inside)
    return np.where(inside[:, None], points - normal * factor[:, None], nearest)


def _barycentric(points: Array, corner: Array) -> Array:
    """Weights float32 [P, 3] of the corners; (1, 0, 0) for degenerate triangles, where the original yields NaN."""
    ab, ac, ap = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0], points - corner[:, 0]
    d00, d01, d11, d20, d21 = _dot(ab, ab), _dot(ab, ac), _dot(ac, ac), _dot(ap, ab), _dot(ap, ac)
    denominator = d00 * d11 - d01 * d01
    flat = denominator == 0
    v = np.divide(d11 * d20 - d01 * d21, denominator, out=np.zeros_like(d00), where=~flat)
    w = np.divide(d00 * d21 - d01 * d20, denominator, out=np.zeros_like(d00), where=~flat)
    return np.stack([1 - v - w, v, w], axis=1)
