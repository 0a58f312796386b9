"""Tangent space of unwrapped meshes: the basis in which normal maps are written and read.

The rules are those of Mikkelsen's MikkTSpace (Simulation of Wrinkled Surfaces Revisited, 2008), which glTF names as the
default: a face's tangent, laid into the plane of the vertex normal, counts by the angle of its corner. glTF's other rules
hold too: bitangent = cross(normal, tangent) * w, and it points up in the picture, against v.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..mesh.topology import Array

_TINY = 1e-20


def vertex_tangents(vertices: Array, faces: Array, normals: Array, uvs: Array) -> Array:
    """Tangents float32 [V, 4] of a mesh whose vertices are already split where its UVs are: unit direction of u, and w = +-1.

    Args:
        vertices: float32 [V, 3].
        faces: int [F, 3].
        normals: float32 [V, 3] unit.
        uvs: float32 [V, 2], v down.
    """
    points, flat, upright = (a[faces].astype(np.float64) for a in (vertices, uvs, normals))
    e1, e2 = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    (u1, v1), (u2, v2) = (flat[:, 1] - flat[:, 0]).T, (flat[:, 2] - flat[:, 0]).T
    area = u1 * v2 - u2 * v1
    along = (e1 * v2[:, None] - e2 * v1[:, None]) * np.sign(area)[:, None]
    corner_tangent = _unit(_in_plane(np.repeat(along[:, None], 3, axis=1), upright))
    to_next = _unit(_in_plane(np.roll(points, -1, axis=1) - points, upright))
    to_last = _unit(_in_plane(np.roll(points, 1, axis=1) - points, upright))
    angle = np.arccos(np.clip((to_next * to_last).sum(2), -1, 1))
    index, weighted = faces.reshape(-1), (corner_tangent * angle[..., None]).reshape(-1, 3)
    total = np.stack([np.bincount(index, weighted[:, k], minlength=len(vertices)) for k in range(3)], axis=1)
    handed = np.bincount(index, np.repeat(-area, 3), minlength=len(vertices))
    # A vertex without any direction in the texture takes some direction in its plane.
    spare = np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    total = np.where((total**2).sum(1, keepdims=True) > _TINY, total, spare)
    tangents = _unit(_in_plane(total, normals.astype(np.float64)))
    # v points down, so faces that turn left on the surface turn right in (u, v), unless their chart is mirrored.
    return np.column_stack([tangents, np.where(handed >= 0, 1.0, -1.0)]).astype(np.float32)


def to_tangent_space(directions: Tensor, normals: Tensor, tangents: Tensor, handed: Tensor) -> Tensor:
    """What a renderer must read to find `directions` [K, 3] again: unit float32 [K, 3] with z along the normal.

    Renderers normalise interpolated normals [K, 3] and tangents [K, 3], take w [K] times their cross product as the third
    axis, and normalise x T + y B + z N. The three are not quite at right angles, so the exact inverse is taken.
    """
    n, t = torch.nn.functional.normalize(normals, dim=1), torch.nn.functional.normalize(tangents, dim=1)
    b = torch.nn.functional.normalize(torch.linalg.cross(n, t, dim=1), dim=1) * handed[:, None]
    bn, nt, tb = (torch.linalg.cross(x, y, dim=1) for x, y in ((b, n), (n, t), (t, b)))
    volume = (t * bn).sum(1, keepdim=True)
    inverse = torch.where(volume.abs() > 1e-6, 1 / volume, 0.0)
    found = torch.stack([(directions * axis).sum(1) for axis in (bn, nt, tb)], dim=1) * inverse
    return torch.nn.functional.normalize(found, dim=1)


def _in_plane(vectors: Array, normals: Array) -> Array:
    return vectors - (vectors * normals).sum(-1, keepdims=True) * normals


def _unit(vectors: Array) -> Array:
    length = np.sqrt((vectors**2).sum(-1, keepdims=True))
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > _TINY)
