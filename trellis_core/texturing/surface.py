"""A surface as unwrapping sees it: which way every face looks, how large it is, and which faces lie beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..mesh.topology import Array, Edges, blocks, edges, manifold_pairs


@dataclass(frozen=True)
class Surface:
    """A mesh and what is known about its faces. Arrays keep their long axis last, where processors are fastest.

    Attributes:
        vertices: float32 [V, 3]. faces: int [F, 3].
        normal: float32 [3, F] unit, zero for faces without area. area: float64 [F].
        across: int32 [3, F], the face beyond each side; the face itself where there is none or several.
        share: float32 [3, F], the side's part of the length of all sides with a neighbour.
        a, b: int32 [M] faces on both sides of every edge of two faces. length: float32 [M] of the edge.
        found: the edges.
    """

    vertices: Array
    faces: Array
    normal: Array
    area: Array
    across: Array
    share: Array
    a: Array
    b: Array
    length: Array
    found: Edges

    @classmethod
    def of(cls, vertices: Array, faces: Array) -> Surface:
        """Look up all this for vertices float32 [V, 3] and consistently wound faces int [F, 3], F >= 1."""
        count = len(faces)
        points = np.ascontiguousarray(vertices.T, np.float64)
        normal, area = np.zeros((3, count), np.float32), np.empty(count)
        sides = np.empty((count, 3), np.float32)
        for rows in blocks(count):
            a, b, c = (points.take(faces[rows, k], axis=1) for k in range(3))
            for side, edge in enumerate((b - a, c - b, a - c)):
                sides[rows, side] = _length(edge)
            p, q = b - a, c - a
            upright = np.stack([p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]])
            twice = _length(upright)
            np.divide(upright, twice, out=normal[:, rows], where=twice > 0, casting="same_kind")
            area[rows] = twice / 2
        found = edges(faces)
        p, q = manifold_pairs(found)[1].T
        a, b = p // 3, q // 3
        across = np.repeat(np.arange(count, dtype=np.int32), 3)
        across[p], across[q] = b, a
        length = sides.reshape(-1)[p]
        share = np.where(across.reshape(-1, 3).T == np.arange(count, dtype=np.int32), 0, sides.T)
        share /= share.sum(0).clip(1e-30)
        return cls(vertices, faces, normal, area, np.ascontiguousarray(across.reshape(-1, 3).T), share, a, b, length, found)

    def facing(self, axis: Array, chart: Array) -> Array:
        """Cosine float [F] between every face and the axis [C, 3] of its chart int [F]."""
        result = np.empty(len(chart), np.float32)
        columns = np.ascontiguousarray(axis.T, np.float32)
        for rows in blocks(len(chart)):
            result[rows] = (self.normal[:, rows] * columns.take(chart[rows], axis=1)).sum(0)
        return result


def _length(vectors: Array) -> Array:
    """Lengths [N] of vectors [3, N]."""
    x, y, z = vectors
    return np.sqrt(x * x + y * y + z * z)
