"""What decimation takes away, found again: for points near a surface, its smooth normal and anything else it carries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..mesh.distance import closest_weights
from ..mesh.ragged import ragged
from ..mesh.topology import Array, vertex_normals

_POINTS = 1 << 16
_TURN = 0.5
"""How many mean edge lengths a vertex must be nearer to be taken although its normal is at right angles to the wanted one."""
_AROUND = 12
"""Faces around a vertex that are looked at; dual contouring makes 8 at most of them, but for rare pinches."""


class DetailSurface:
    """The mesh before decimation, asked point by point.

    Finds the nearest vertex, then the nearest point on the faces around it. Vertices are compared by place and, less, by
    normal: a point on one side of a thin wall must not find the other. Runs on the CPU, needs SciPy.

    Args:
        vertices: float32 [V, 3].
        faces: int [F, 3], consistently wound, F >= 1; each vertex is used by a face.
    """

    def __init__(self, vertices: Array, faces: Array) -> None:
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

        self.normals = torch.from_numpy(vertex_normals(vertices, faces))
        self.triangles = torch.from_numpy(vertices[faces])
        self.faces = torch.from_numpy(faces.astype(np.int64))
        edge = float((self.triangles - self.triangles.roll(1, dims=1)).norm(dim=2).mean())
        self.turn = _TURN * edge
        self.tree = cKDTree(self._key(torch.from_numpy(vertices), self.normals), compact_nodes=False, balanced_tree=False)
        self.around = torch.from_numpy(_faces_around(faces, len(vertices)))

    def _key(self, points: Tensor, normals: Tensor) -> Array:
        return torch.cat([points, normals * self.turn], dim=1).numpy()

    def nearest(self, points: Tensor, normals: Tensor, ctx: RunContext = QUIET) -> tuple[Tensor, Tensor]:
        """Faces int64 [K] nearest to points float32 [K, 3] that face like normals [K, 3], and weights [K, 3] in them."""
        face = torch.empty(len(points), dtype=torch.int64)
        weights = torch.empty(len(points), 3)
        for start in range(0, len(points), _POINTS):
            ctx.report(start / len(points))
            some = slice(start, start + _POINTS)
            vertex = torch.from_numpy(self.tree.query(self._key(points[some], normals[some]))[1])
            face[some], weights[some] = self._on_faces(points[some], self.around[vertex])
        return face, weights

    def _on_faces(self, points: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The best of candidate faces int64 [K, A], -1 for none."""
        row, place = (candidates >= 0).nonzero(as_tuple=True)
        face = candidates[row, place]
        weights = closest_weights(points[row], self.triangles[face])
        gap = ((weights[:, :, None] * self.triangles[face]).sum(1) - points[row]).square().sum(1)
        square = torch.full(candidates.shape, torch.inf).index_put_((row, place), gap)
        slot = torch.zeros(candidates.shape, dtype=torch.int64).index_put_((row, place), torch.arange(len(row)))
        best = slot.gather(1, square.argmin(1, keepdim=True))[:, 0]
        return face[best], weights[best]

    def blend(self, values: Tensor, face: Tensor, weights: Tensor) -> Tensor:
        """Values float [V, C] of the vertices at the points that `nearest` found, [K, C]."""
        a, b, c = (weights[:, k, None] * values[self.faces[face, k]] for k in range(3))
        return a + b + c


def _faces_around(faces: Array, count: int) -> Array:
    """Faces of each vertex, int64 [V, A], the lowest first, filled up with -1."""
    corners = np.argsort(faces.reshape(-1), kind="stable")
    degree = np.bincount(faces.reshape(-1), minlength=count)
    first = np.cumsum(degree) - degree
    kept = np.minimum(degree, _AROUND)
    vertex, nth = ragged(kept)
    table = np.full((count, int(kept.max())), -1, np.int64)
    table[vertex, nth] = corners[first[vertex] + nth] // 3
    return table
