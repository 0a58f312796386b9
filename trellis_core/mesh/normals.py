"""Vertex normals of unwrapped meshes: smooth over the surface, sharp at creases along chart borders."""

from __future__ import annotations

import numpy as np

from .ragged import ragged
from .topology import Array, face_normals

_CREASE = np.cos(np.radians(50))


def chart_normals(vertices: Array, faces: Array, new_faces: Array, source: Array) -> Array:
    """Unit normals float32 [W, 3] of vertices that were split along charts.

    Each is the area-weighted mean over all faces around the old vertex that turn by less than 50 degrees from those of
    its own chart: charts meet smoothly on rounded parts, and keep their edge where it is sharp.

    Args:
        vertices: float32 [V, 3].
        faces: int [F, 3] into them.
        new_faces: int [F, 3], the same faces into the split vertices.
        source: int64 [W] old vertex of every split one.
    """
    weighted = face_normals(vertices.astype(np.float64), faces)
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = np.divide(weighted, length, out=np.zeros_like(weighted), where=length > 0)
    own = _unit(_sum(np.repeat(weighted, 3, axis=0), new_faces.reshape(-1), len(source)))

    corners = np.argsort(faces.reshape(-1), kind="stable")
    around = np.bincount(faces.reshape(-1), minlength=len(vertices))
    first = np.cumsum(around) - around
    vertex, nth = ragged(around[source])
    face = corners[first[source[vertex]] + nth] // 3
    near = (own[vertex] * unit[face]).sum(1) > _CREASE
    smooth = _unit(_sum(weighted[face[near]], vertex[near], len(source)))
    normals = np.where(smooth.any(1, keepdims=True), smooth, own)
    return np.where(normals.any(1, keepdims=True), normals, [0.0, 0.0, 1.0]).astype(np.float32)


def _sum(rows: Array, index: Array, count: int) -> Array:
    return np.stack([np.bincount(index, rows[:, k], minlength=count) for k in range(3)], axis=1)


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-30)
