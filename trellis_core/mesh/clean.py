"""Mesh cleanup before and after decimation: from a decoder's triangle soup to consistently wound 2-manifolds.

All steps are pure functions on numpy arrays, vertices float32 [V, 3] and faces int32 [F, 3], without loops over
elements. `clean` runs them in the order that makes each one's job well defined.
"""

from __future__ import annotations

import numpy as np

from ..errors import EmptyResultError, InputError
from ..run import QUIET, RunContext
from .holes import fill_holes
from .manifold import make_manifold
from .orient import face_outward, unify_winding
from .topology import Array, compact, face_areas, face_components

SPECK_AREA = 1e-3
"""Components with less than this share of the largest component's area may be dropped."""
SPECK_VOXELS = 4.0
"""... if they are also smaller than this many voxels from corner to corner."""
HOLE_VOXELS = 16.0
"""Holes with a perimeter of up to this many voxels are closed (and of up to `HOLE_PERIMETER` on fine grids)."""
HOLE_PERIMETER = 0.03
"""Perimeter limit in object units that the published pipeline uses (spec B 5.1)."""


def check_mesh(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Bring any triangle mesh to finite float32 [V, 3] and int32 [F, 3], dropping faces with a non-finite corner.

    Raises:
        InputError: shapes are wrong, or an index points outside the vertices.
        EmptyResultError: nothing with an area is left.
    """
    vertices = np.ascontiguousarray(vertices, np.float32)
    faces = np.ascontiguousarray(faces, np.int32)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise InputError(f"A mesh needs vertices [V, 3] and faces [F, 3], not {vertices.shape} and {faces.shape}.")
    if len(faces) and not (0 <= faces.min() and faces.max() < len(vertices)):
        raise InputError(f"The mesh has a face that points outside its {len(vertices)} vertices.")
    faces = faces[np.isfinite(vertices).all(1)[faces].all(1)]
    if not len(faces) or not face_areas(vertices.astype(np.float64), faces).any():
        raise EmptyResultError("The mesh has no face with an area: there is nothing to make an asset of.")
    return vertices, faces


def clean(vertices: Array, faces: Array, voxel: float, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Merge, deduplicate, drop specks, repair non-manifold edges, close small holes, wind faces outward.

    Args:
        vertices: float32 [V, 3], finite.
        faces: int32 [F, 3].
        voxel: edge length of a voxel in the units of the vertices; sizes of specks and holes are judged by it.
        ctx: told the progress.

    Returns:
        (vertices float32, faces int32): every edge has one or two faces, which traverse it in opposite directions
        (but for unorientable surfaces); no unused vertex.
    """
    vertices, faces = merge_vertices(vertices, faces)
    faces = drop_repeated_faces(faces)
    ctx.report(0.2)
    faces = drop_specks(vertices, faces, voxel)
    ctx.report(0.35)
    vertices, faces = make_manifold(vertices, faces)
    ctx.report(0.6)
    faces = unify_winding(faces)
    ctx.report(0.75)
    vertices, faces = fill_holes(vertices, faces, max(HOLE_VOXELS * voxel, HOLE_PERIMETER))
    ctx.report(0.85)
    faces = face_outward(vertices, faces)
    vertices, faces, _ = compact(vertices, faces)
    ctx.report(1.0)
    return vertices, faces


def tidy(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """What decimation leaves to mend: repeated faces, and edges that collapses made non-manifold."""
    faces = drop_repeated_faces(faces)
    vertices, faces = make_manifold(vertices, faces)
    vertices, faces, _ = compact(vertices, unify_winding(faces))
    return vertices, faces


def merge_vertices(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Weld vertices at exactly equal positions; unused vertices are dropped, order is kept."""
    bits = (vertices + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    faces = first_equal(bits)[faces].astype(np.int32)
    vertices, faces, _ = compact(vertices, faces)
    return vertices, faces


def drop_repeated_faces(faces: Array) -> Array:
    """Drop faces that repeat a vertex, and all but the first of the faces with the same three vertices."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    return faces[first_equal(np.sort(faces, axis=1)) == np.arange(len(faces))]


def drop_specks(vertices: Array, faces: Array, voxel: float) -> Array:
    """Drop components that are tiny both in area, against the largest one, and in extent, against a voxel."""
    labels = face_components(faces)
    count = int(labels.max()) + 1
    area = np.bincount(labels, face_areas(vertices, faces), minlength=count)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(count))
    corners = vertices[faces[order]]
    extent = np.maximum.reduceat(corners.max(1), starts) - np.minimum.reduceat(corners.min(1), starts)
    speck = (area < SPECK_AREA * area.max()) & (np.linalg.norm(extent, axis=1) < SPECK_VOXELS * voxel)
    return faces[~speck[labels]]


def first_equal(rows: Array) -> Array:
    """For every row of integers [N, 3] the index int64 [N] of the first row equal to it.

    Sorted by a 64-bit hash; rows that share a hash without being equal are found by comparison and settled exactly.
    """
    hashed = _hash(rows)
    order = np.argsort(hashed, kind="stable")
    opens = np.ones(len(rows), bool)
    opens[1:] = hashed[order[1:]] != hashed[order[:-1]]
    start = np.maximum.accumulate(np.where(opens, np.arange(len(rows)), 0))
    first = np.empty(len(rows), np.int64)
    first[order] = order[start]
    collided = np.flatnonzero((rows != rows[first]).any(1))
    if len(collided):
        _, index, inverse = np.unique(rows[collided], axis=0, return_index=True, return_inverse=True)
        first[collided] = collided[index][inverse.reshape(-1)]
    return first


def _hash(rows: Array) -> Array:
    """Well mixed uint64 [N] of integers [N, 3]."""
    columns = rows.astype(np.uint64).T
    hashed = columns[0] * np.uint64(0x9E3779B97F4A7C15)
    for column, factor in zip(columns[1:], (0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9), strict=True):
        hashed = (hashed ^ (hashed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + column * np.uint64(factor)
    return hashed
