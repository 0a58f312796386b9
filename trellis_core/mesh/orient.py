"""Consistent outward winding: neighbours agree first, then each component learns which side is outside."""

from __future__ import annotations

import numpy as np

from .ragged import ragged
from .topology import Array, boundary_edges, edges, face_components, face_normals, manifold_pairs

_FLAT = 0.02
"""Below this share of area^1.5 the volume of an open component says nothing about its sides."""


def unify_winding(faces: Array) -> Array:
    """Flip faces so that any two at a manifold edge traverse it in opposite directions.

    In every component the majority keeps its winding. Unorientable surfaces keep a seam somewhere.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order

    count = len(faces)
    found = edges(faces)
    labels = face_components(faces, found, manifold_only=True)
    first = np.unique(labels, return_index=True)[1]
    pair = manifold_pairs(found)[1] // 3
    root = np.full(len(first), count)
    a = np.concatenate([pair[:, 0], pair[:, 1], root])
    b = np.concatenate([pair[:, 1], pair[:, 0], first])
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count + 1, count + 1)).tocsr()
    parent = breadth_first_order(graph, count, directed=True, return_predecessors=True)[1].astype(np.int64)
    parent[count] = count
    flip = np.zeros(count + 1, bool)
    child = np.flatnonzero(parent[:count] < count)
    flip[child] = _same_direction(faces[child], faces[parent[child]])
    while (parent != count).any():  # parity along the path to the root, by pointer doubling
        flip = flip ^ flip[parent]
        parent = parent[parent]
    flip = flip[:count]
    flip ^= (np.bincount(labels, flip) > np.bincount(labels) / 2)[labels]
    return np.where(flip[:, None], faces[:, [0, 2, 1]], faces)


def _same_direction(faces: Array, others: Array) -> Array:
    """Whether faces [N, 3] and their neighbours [N, 3] traverse a common edge in the same direction."""
    result = np.zeros(len(faces), bool)
    for i in range(3):
        for j in range(3):
            same_start = faces[:, i] == others[:, j]
            result |= same_start & (faces[:, (i + 1) % 3] == others[:, (j + 1) % 3])
    return result


def face_outward(vertices: Array, faces: Array) -> Array:
    """Flip whole components so that their normals point away from the solid.

    A closed component is outward by its signed volume, and inward if an odd number of other closed components
    surrounds it: then it is the wall of a cavity. An open one counts as closed by a cone over its rim if that
    encloses something; a sheet keeps the winding that looks away from the middle of the mesh.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], wound consistently inside each component.
    """
    found = edges(faces)
    labels = face_components(faces, found)
    count = int(labels.max()) + 1
    rim = boundary_edges(faces, found)
    label_of_vertex = np.zeros(len(vertices), np.int64)
    label_of_vertex[faces.reshape(-1)] = np.repeat(labels, 3)

    points = vertices.astype(np.float64)
    normal = face_normals(points, faces) / 2
    area = np.linalg.norm(normal, axis=1)
    centre = points[faces].mean(1)
    middle = _mean(centre, area, labels, count)
    rims = label_of_vertex[rim[:, 0]]
    open_ = np.bincount(rims, minlength=count) > 0
    if len(rim):
        ends = points[rim]
        span = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        middle = np.where(open_[:, None], _mean(ends.mean(1), span, rims, count), middle)
    volume = np.bincount(labels, ((centre - middle[labels]) * normal).sum(1) / 3, minlength=count)
    whole = (centre * area[:, None]).sum(0) / area.sum().clip(1e-30)
    outwardness = np.bincount(labels, ((centre - whole) * normal).sum(1), minlength=count)
    total = np.bincount(labels, area, minlength=count)
    sheet = open_ & (np.abs(volume) < _FLAT * total**1.5)
    inward = np.where(sheet, outwardness < -1e-6 * total, volume < 0)
    closed = np.flatnonzero(~open_)
    if len(closed) > 1:
        inward[closed] ^= _nesting(points, faces, labels, closed) % 2 == 1
    return np.where(inward[labels][:, None], faces[:, [0, 2, 1]], faces)


def _mean(values: Array, weights: Array, labels: Array, count: int) -> Array:
    """Weighted mean [count, 3] of values [N, 3] per label."""
    total = np.bincount(labels, weights, minlength=count).clip(1e-30)
    return np.stack([np.bincount(labels, values[:, k] * weights, minlength=count) for k in range(3)], axis=1) / total[:, None]


def _nesting(points: Array, faces: Array, labels: Array, closed: Array) -> Array:
    """How many other closed components surround each of `closed`: the median of one ray along each axis."""
    number = np.full(int(labels.max()) + 1, -1)
    number[closed] = np.arange(len(closed))
    solid = number[labels] >= 0
    tri, owner = points[faces[solid]], number[labels[solid]]
    seed = np.unique(owner, return_index=True)[1]
    start = np.einsum("kcd,c->kd", tri[seed], [0.45, 0.33, 0.22])  # off any symmetry of the face
    return np.median([_crossings(start, tri, owner, axis) for axis in range(3)], axis=0).astype(np.int64)


def _crossings(start: Array, tri: Array, owner: Array, axis: int) -> Array:
    """Of rays from start [K, 3] along +axis, the closed components that they are inside of, their own (k) left out.

    tri is [T, 3, 3] with its component owner [T] in 0..K-1. Rays are binned in a grid across the axis.
    """
    across = [(axis + 1) % 3, (axis + 2) % 3]
    rays, flat = start[:, across], tri[:, :, across]
    size = int(np.clip(2 * np.sqrt(len(start)), 1, 256))
    low = rays.min(0)
    scale = size / (rays.max(0) - low).clip(1e-12)
    cell = ((rays - low) * scale).astype(np.int64).clip(0, size - 1)
    cell = cell[:, 0] * size + cell[:, 1]
    by_cell = np.argsort(cell, kind="stable")
    in_cell = np.bincount(cell, minlength=size * size)
    first = np.cumsum(in_cell) - in_cell

    begin = np.floor((flat.min(1) - low) * scale)
    end = np.floor((flat.max(1) - low) * scale)
    met = np.flatnonzero(((end >= 0) & (begin <= size)).all(1))
    begin, end = (value[met].astype(np.int64).clip(0, size - 1) for value in (begin, end))
    wide = end - begin + 1
    item, offset = ragged(wide.prod(1))
    place = (begin[item, 0] + offset // wide[item, 1]) * size + begin[item, 1] + offset % wide[item, 1]
    pair, nth = ragged(in_cell[place])
    ray, face = by_cell[first[place[pair]] + nth], met[item[pair]]
    other = owner[face] != ray
    ray, face = ray[other], face[other]

    corners, point = flat[face], rays[ray]
    side = [_half_plane(corners[:, k], corners[:, (k + 1) % 3], point) for k in range(3)]
    hit = (side[0] == side[1]) & (side[1] == side[2])
    ray, face = ray[hit], face[hit]
    normal = np.cross(tri[face, 1] - tri[face, 0], tri[face, 2] - tri[face, 0])
    above = ((tri[face, 0] - start[ray]) * normal).sum(1) * np.sign(normal[:, axis]) > 0
    touched, times = np.unique(ray[above] * len(start) + owner[face[above]], return_counts=True)
    return np.bincount(touched[times % 2 == 1] // len(start), minlength=len(start))


def _half_plane(a: Array, b: Array, point: Array) -> Array:
    """Whether points [N, 2] lie left of a -> b; exact opposites for both directions of an edge, so no ray slips through."""
    swap = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    a, b = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
    cross = (b[:, 0] - a[:, 0]) * (point[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (point[:, 0] - a[:, 0])
    return (cross >= 0) ^ swap
