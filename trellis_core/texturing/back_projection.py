"""Back-projection: from points of a decimated surface to the surface that it was decimated from (docs/method/mesh.md)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..mesh.topology import Array, blocks, face_normals
from ..ovoxel.attributes import corner_rows
from ..ovoxel.brick_table import BrickTable

_NEAR = 2.0
"""A vertex at distance r, in voxels, counts (1 + 2 r^2)^-4 ..."""
_FLAT = 16
"""... times the fourth power of the cosine between its normal and the point's, times this power of how alike the faces
around it are: at edges there is no tangent plane."""
_DOUBT = 0.01
"""Weight of staying in place, against vertices that count less than this together."""
_FURTHEST = 1.0
"""Voxels that a point moves at most, at a time."""
_AGAIN, _MORE_ROUNDS = 0.25, 3
"""A point that has moved further is projected again, a few times: it sees other vertices now."""
_POINTS = 1 << 13
"""Points worked on at once: few enough to stay in the processor's cache."""


class BackProjector:
    """Projects points along the mean normal of the vertices around them onto the mean of their tangent planes.

    Looks at one vertex in each of the eight voxels around a point: made for dual meshes, which have one a voxel. The mean is
    taken of planes upright to a vertex's normal and to the mean normal, whose errors on round surfaces cancel.

    Args:
        vertices: float32 [V, 3] of the surface before decimation, in object space.
        faces: int [F, 3], F >= 1.
        resolution: voxels per axis.
    """

    def __init__(self, vertices: Array, faces: Array, resolution: int) -> None:
        vectors = np.empty((4, len(faces)), np.float32)  # normals by area, and areas
        for rows in blocks(len(faces)):
            vectors[:3, rows] = face_normals(vertices, faces[rows]).T
            vectors[3, rows] = np.sqrt((vectors[:3, rows] ** 2).sum(0))
        corners = np.ascontiguousarray(faces.T)
        *total, area = (sum(np.bincount(c, vector, minlength=len(vertices)) for c in corners) for vector in vectors)
        total = np.stack(total)
        size = np.sqrt((total * total).sum(0))
        unit = np.divide(total, size, out=np.zeros_like(total), where=size > 0)
        flatness = np.divide(size, area, out=np.zeros_like(size), where=area > 0) ** _FLAT
        place = (vertices + np.float32(0.5)) * np.float32(resolution)
        inside = np.flatnonzero(((place >= 0) & (place < resolution)).all(1))
        table = np.column_stack([place[inside], unit.T[inside], flatness[inside]]).astype(np.float32)
        self.bricks = BrickTable.build(torch.from_numpy(place[inside].astype(np.int32)), resolution)
        self.table = pad(torch.from_numpy(table), (0, 1, 1, 0))  # row 0 is a vertex that counts nothing; rows of 32 bytes

    def to(self, device: torch.device) -> BackProjector:
        """A copy on another device."""
        copy = object.__new__(BackProjector)
        copy.bricks, copy.table = self.bricks.to(device), self.table.to(device)
        return copy

    def __call__(self, points: Tensor, normals: Tensor) -> Tensor:
        """Where points float32 [P, 3] in voxels, on faces with unit normals [P, 3], belong; some voxels away at most."""
        result = torch.empty_like(points)
        for start in range(0, len(points), _POINTS):
            some = slice(start, start + _POINTS)
            result[some] = found = self._project(points[some], normals[some])
            rows = torch.arange(start, start + len(found), device=points.device)
            moved = (found - points[some]).abs().amax(1) > _AGAIN
            for _ in range(_MORE_ROUNDS):
                rows = rows[moved]
                found = self._project(result[rows], normals[rows])
                moved = (found - result[rows]).abs().amax(1) > _AGAIN
                result[rows] = found
        return result

    def _project(self, points: Tensor, normals: Tensor) -> Tensor:
        rows = corner_rows(self.bricks, points).T.reshape(-1) + 1
        data = self.table.index_select(0, rows).T.contiguous().view(8, 8, -1)  # by column, corner and point
        place, normal, flatness = data[:3], data[3:6], data[6]
        arm = points.T[:, None] - place
        nx, ny, nz = normals.T
        alike = normal[0] * nx + normal[1] * ny + normal[2] * nz
        square = arm[0] * arm[0] + arm[1] * arm[1] + arm[2] * arm[2]
        weight = (1 + _NEAR * square).square_().square_().reciprocal_().mul_(alike.square().square_()).mul_(flatness)
        normal *= torch.where(alike < 0, -1.0, 1.0)  # open sheets may be wound either way
        mean = (weight * normal).sum(1)
        mean *= (mean * mean).sum(0).clamp_min(1e-30).rsqrt()
        normal += mean[:, None]
        height = arm[0] * normal[0] + arm[1] * normal[1] + arm[2] * normal[2]
        height = (weight * height).sum(0) / (2 * (weight.sum(0) + _DOUBT))
        return points - (height.clamp(-_FURTHEST, _FURTHEST) * mean).T
