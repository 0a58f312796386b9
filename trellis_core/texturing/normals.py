"""Vertex normals of unwrapped meshes: smooth over the surface, sharp at creases along chart borders."""

from __future__ import annotations

import numpy as np

from ..mesh.ragged import ragged
from ..mesh.topology import Array, blocks, stable_order
from .surface import Surface

_CREASE = np.cos(np.radians(50))


def chart_normals(surface: Surface, new_faces: Array, source: Array) -> Array:
    """Unit normals float32 [W, 3] of vertices that were split along charts.

    Each is the area-weighted mean over all faces around the old vertex that turn by less than 50 degrees from those of
    its own chart: charts meet smoothly on rounded parts, and keep their edge where it is sharp.

    Args:
        surface: before it was split.
        new_faces: int [F, 3], its faces into the split vertices.
        source: int64 [W] old vertex of every split one.
    """
    count = len(source)
    weighted = surface.normal * surface.area.astype(np.float32)
    columns = np.ascontiguousarray(new_faces.T)
    own = _unit(_sum(columns, weighted, count))
    copied = np.bincount(source, minlength=len(surface.vertices)).take(source) > 1

    smooth = np.zeros_like(own)
    for corner in columns:  # a vertex of one chart has all its faces there
        near = _facing(own, corner, surface.normal) > _CREASE
        smooth += _sum(corner[None], weighted * (near & ~copied.take(corner)), count)
    vertex, face = _around(surface.faces, source, np.flatnonzero(copied))
    near = np.flatnonzero((own[:, vertex] * surface.normal[:, face]).sum(0) > _CREASE)
    smooth += _sum(vertex[near][None], weighted[:, face[near]], count)
    normals = np.where(smooth.any(0), _unit(smooth), own)
    normals[2, ~normals.any(0)] = 1
    return np.ascontiguousarray(normals.T, np.float32)


def _facing(own: Array, corner: Array, normal: Array) -> Array:
    """Cosine [F] between the normal of a corner's vertex and that of the face."""
    result = np.empty(len(corner), np.float32)
    for rows in blocks(len(corner)):
        result[rows] = (own.take(corner[rows], axis=1) * normal[:, rows]).sum(0)
    return result


def _around(faces: Array, source: Array, copies: Array) -> tuple[Array, Array]:
    """Pairs of split vertices (some of them, `copies`) and all faces around the old vertex of each."""
    wanted = np.zeros(int(source.max()) + 1, bool)
    wanted[source[copies]] = True
    corner = np.flatnonzero(wanted.take(faces))
    order, vertex = stable_order(faces.reshape(-1)[corner].astype(np.int64))
    first, last = (np.searchsorted(vertex, source[copies], side) for side in ("left", "right"))
    row, nth = ragged(last - first)
    return copies[row], corner[order[first[row] + nth]] // 3


def _sum(corners: Array, vectors: Array, count: int) -> Array:
    """Sums float64 [3, count] of vectors [3, N] over the vertices [K, N] that they belong to."""
    return np.stack([sum(np.bincount(corner, component, minlength=count) for corner in corners) for component in vectors])


def _unit(vectors: Array) -> Array:
    length = np.sqrt((vectors * vectors).sum(0))
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-30)
