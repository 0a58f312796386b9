"""Mesh cleanup before and after decimation: from a decoder's triangle soup to consistently wound 2-manifolds.

All steps are pure functions on numpy arrays, vertices float32 [V, 3] and faces int32 [F, 3], without loops over
elements. `clean` runs them in the order that makes each one's job well defined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..context import QUIET, RunContext, obeying
from ..errors import EmptyResultError, InputError
from .holes import close_loops
from .manifold import part_sheets
from .orient import find_facets, turn_outward, wind
from .topology import (
    Array,
    Edges,
    blocks,
    compact,
    edges,
    face_areas,
    face_components,
    label_boxes,
    stable_order,
    tip,
    without,
)

SPECK_AREA = 1e-3
"""Components with less than this share of the largest component's area may be dropped."""
SPECK_VOXELS = 4.0
"""... if they are also smaller than this many voxels from corner to corner."""
MOST_PARTS = 1_000_000
"""Components that are worked on; an atlas has no room for more charts."""
HOLE_VOXELS = 16.0
"""Holes with a perimeter of up to this many voxels are closed (and of up to `HOLE_PERIMETER` on fine grids)."""
HOLE_PERIMETER = 0.03
"""Perimeter limit in object units that the published pipeline uses (docs/method/mesh.md)."""


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
    finite = np.all(np.isfinite(vertices), axis=1)
    if not finite.all():
        faces = faces[finite[faces].all(1)]
    exact = vertices.astype(np.float64)
    if not any(face_areas(exact, faces[rows]).any() for rows in blocks(len(faces))):
        raise EmptyResultError("The mesh has no face with an area: there is nothing to make an asset of.")
    return vertices, faces


def clean(vertices: Array, faces: Array, voxel: float, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Merge, deduplicate, drop specks, repair non-manifold edges, close small holes, wind faces outward.

    The edges of the whole mesh are looked up once; what each step changes is followed up where it happened.

    Args:
        vertices: float32 [V, 3], finite.
        faces: int32 [F, 3].
        voxel: edge length of a voxel in the units of the vertices; sizes of specks and holes are judged by it.
        ctx: told the progress.

    Returns:
        (vertices float32, faces int32): every edge has one or two faces, which traverse it in opposite directions
        (but for unorientable surfaces); no unused vertex.

    Raises:
        EmptyResultError: no face has three different corners.
    """
    with obeying(ctx):
        vertices, faces = merge_vertices(vertices, faces)
        ctx.report(0.1)
        faces = _drop_degenerate(faces)
        if not len(faces):
            raise EmptyResultError("Nothing is left of the mesh when its vertices are merged: no part is as large as a voxel.")
        wound = _wind_parts(vertices, *_without_confetti(vertices, *_distinct(faces), voxel), ctx.part(0.3, 0.7))
        vertices, faces, label, area = _close_up(wound, max(HOLE_VOXELS * voxel, HOLE_PERIMETER))
        ctx.report(0.9)
        specks = _specks(vertices, faces, label, area, voxel)
        ctx.report(0.95)
        vertices, faces, _ = compact(vertices, faces[~specks] if specks.any() else faces)
        ctx.report(1.0)
        return vertices, faces


def tidy(vertices: Array, faces: Array, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """What decimation leaves to mend: repeated faces, and edges that collapses made non-manifold."""
    with obeying(ctx):
        faces, found = _distinct(_drop_degenerate(faces))
        ctx.report(0.4)
        if (found.counts != 2).any():
            vertices, faces, _, _ = _close_up(_wind_parts(vertices, faces, found, ctx.part(0.4, 0.9)), 0.0)
        vertices, faces, _ = compact(vertices, faces)
        return vertices, faces


def _without_confetti(vertices: Array, faces: Array, found: Edges, voxel: float) -> tuple[Array, Edges]:
    """Drop specks before anything else where they are very many: every later step would take its time for each.

    Raises:
        InputError: very many parts are left.
    """
    if len(vertices) < 0.75 * len(faces):  # Euler: a surface has half as many vertices as faces, a tetrahedron as many
        return faces, found
    label = face_components(faces, found)
    specks = _specks(vertices, faces, label, np.bincount(label, face_areas(vertices, faces)), voxel)
    parts = len(np.unique(label[~specks]))
    if parts > MOST_PARTS:
        raise InputError(
            f"The mesh falls into {parts:,} loose parts; up to {MOST_PARTS:,} can be textured. If they are meant to be one "
            "surface, weld the vertices that lie at the same place."
        )
    return (faces[~specks], without(found, ~specks)) if specks.any() else (faces, found)


class _Wound(NamedTuple):
    """A manifold mesh, wound alike in each component: their labels int [F] and areas, its directed boundary edges [B, 2]."""

    vertices: Array
    faces: Array
    label: Array
    rim: Array
    area: Array


def _wind_parts(vertices: Array, faces: Array, found: Edges, ctx: RunContext) -> _Wound:
    """Part what is not manifold, and wind neighbours alike."""
    facets = find_facets(vertices, faces, found)
    ctx.report(0.7)
    repair = part_sheets(vertices, faces, found, facets.patches)
    faces, label, rim = wind(repair, facets)
    ctx.report(1.0)
    return _Wound(repair.vertices, faces, label, rim, np.bincount(label[: len(facets.area)], facets.area))


def _close_up(wound: _Wound, max_perimeter: float) -> tuple[Array, Array, Array, Array]:
    """Close holes, and face outward: vertices, faces, and the labels and areas of the components."""
    vertices, faces, label, rim = close_loops(*wound[:4], max_perimeter, wound.area)
    faces, area = turn_outward(vertices, faces, label, rim)
    return vertices, faces, label, area


def merge_vertices(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Weld vertices at exactly equal positions; unused vertices are dropped, order is kept."""
    bits = (vertices + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    first = first_equal(bits)
    if (first != np.arange(len(first))).any():
        faces = first[faces].astype(np.int32)
    vertices, faces, _ = compact(vertices, faces)
    return vertices, faces


def drop_repeated_faces(faces: Array) -> Array:
    """Drop faces that repeat a vertex, and all but the first of the faces with the same three vertices."""
    return _distinct(_drop_degenerate(faces))[0]


def drop_specks(vertices: Array, faces: Array, voxel: float) -> Array:
    """Drop components that are tiny both in area, against the largest one, and in extent, against a voxel."""
    label = face_components(faces)
    return faces[~_specks(vertices, faces, label, np.bincount(label, face_areas(vertices, faces)), voxel)]


def _drop_degenerate(faces: Array) -> Array:
    a, b, c = faces.T
    fine = (a != b) & (b != c) & (c != a)
    return faces if fine.all() else faces[fine]


def _distinct(faces: Array) -> tuple[Array, Edges]:
    """Without all but the first of the faces with the same three vertices, and the edges of those that stay."""
    found = edges(faces)
    repeated = _repeated(faces, found)
    if repeated.any():
        found = without(found, ~repeated)
    return found.faces, found


def _repeated(faces: Array, found: Edges) -> Array:
    """Which faces have the vertices of an earlier one, bool [F]: two faces at an edge with the same third corner."""
    first = found.start[found.counts == 2]
    suspects = [found.order[np.repeat(found.counts > 2, found.counts)]]
    for rows in blocks(len(first)):
        p, q = found.order[first[rows]], found.order[first[rows] + 1]
        same = tip(faces, p) == tip(faces, q)
        suspects += [p[same], q[same]]
    suspects = np.unique(np.concatenate(suspects) // 3)
    result = np.zeros(len(faces), bool)
    result[suspects] = first_equal(np.sort(faces[suspects], axis=1)) != np.arange(len(suspects))
    return result


def _specks(vertices: Array, faces: Array, label: Array, area: Array, voxel: float) -> Array:
    """Which faces belong to a speck, given their components int [F] and the areas of these: bool [F]."""
    tiny = area < SPECK_AREA * area.max()
    rows = np.flatnonzero(tiny[label])
    low, high = label_boxes(vertices, faces[rows], label[rows], len(area))
    tiny[tiny] = np.linalg.norm(high[tiny] - low[tiny], axis=1) < SPECK_VOXELS * voxel
    return tiny[label]


def first_equal(rows: Array) -> Array:
    """For every row of integers [N, 3] the index int64 [N] of the first row equal to it.

    Sorted by a hash; rows that share a hash without being equal are found by comparison and settled exactly.
    """
    order, hashed = stable_order(_hash(rows) >> np.uint64(1 + len(rows).bit_length()), overwrite=True)
    first = np.arange(len(rows))
    follows = np.flatnonzero(hashed[1:] == hashed[:-1]) + 1
    if not len(follows):
        return first
    opens = np.diff(follows, prepend=-1) != 1
    start = follows[opens] - 1  # of each run of equal hashes
    later = order[follows]
    first[later] = order[start[np.cumsum(opens) - 1]]
    if (rows[later] != rows[first[later]]).any():
        run = np.concatenate([order[start], later])
        _, index, inverse = np.unique(rows[run], axis=0, return_index=True, return_inverse=True)
        lowest = np.full(len(index), len(rows))
        np.minimum.at(lowest, inverse.reshape(-1), run)
        first[run] = lowest[inverse.reshape(-1)]
    return first


def _hash(rows: Array) -> Array:
    """Well mixed uint64 [N] of integers [N, 3]."""
    columns = rows.astype(np.uint64).T
    hashed = columns[0] * np.uint64(0x9E3779B97F4A7C15)
    for column, factor in zip(columns[1:], (0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9), strict=True):
        hashed = (hashed ^ (hashed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + column * np.uint64(factor)
    return hashed
