"""Repair of non-manifold edges: sheets that touch are parted, so that every edge has at most two faces."""

from __future__ import annotations

import numpy as np

from .topology import Array, Edges, edges, face_components, graph_components, manifold_pairs

_PART = 0.02
"""How far a parted vertex moves into its own sheet, as a share of the way to the middle of its faces."""
_MIX = 10.0
"""Cost, in radians of bend, of pairing a loose sheet with a closed wall, or of opening a wall."""
_ROUNDS = 8


def make_manifold(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Part sheets that share an edge or a single vertex. Faces keep their order and winding; no hole is opened
    where an even number of faces meets.

    At an edge of three or more faces, neighbours in angle around it are paired, as flat as possible; a pair never passes
    through another, so touching solids stay closed, and a loose sheet that meets a wall is let go before the wall is. Corners that no pair connects become vertices of
    their own. Where two pairs still share both ends of an edge, all but one get a new vertex in its middle. New
    vertices are moved slightly into their own sheet, so that no later merging of positions undoes the repair.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], none with a repeated vertex.
    """
    for _ in range(_ROUNDS):
        found = edges(faces)
        partner = _pair_sides(vertices, faces, found)
        parted, new_faces = _split_vertices(vertices, faces, found, partner)
        if parted is vertices:
            return vertices, faces
        shared = edges(new_faces)
        if not (shared.counts > 2).any():
            return parted, new_faces
        vertices, faces = _split_edges(parted, new_faces, shared, partner)
    return vertices, faces


def _pair_sides(vertices: Array, faces: Array, found: Edges) -> Array:
    """The side (3 * face + k) across the edge of every side, int64 [3F]; -1 for none."""
    partner = np.full(3 * len(faces), -1, np.int64)
    _, both = manifold_pairs(found)
    partner[both[:, 0]], partner[both[:, 1]] = both[:, 1], both[:, 0]
    flat = found.of_face.reshape(-1)
    crowded = np.flatnonzero(found.counts[flat] > 2)
    crowded = crowded[np.argsort(flat[crowded], kind="stable")]
    size = found.counts[flat[crowded]]
    loose = _loose(faces, found) if len(crowded) else None
    for k in np.unique(size):
        sides = crowded[size == k].reshape(-1, k)
        first, second = _pair_around(vertices, faces, sides, found.pairs[flat[sides[:, 0]]], loose)
        partner[first], partner[second] = second, first
    return partner


def _loose(faces: Array, found: Edges) -> Array:
    """Whether each face is of a patch, bounded by non-manifold edges, that has an open rim: bool [F]."""
    patch = face_components(faces, found, manifold_only=True)
    rim = (found.counts[found.of_face] == 1).any(1)
    return np.bincount(patch, rim)[patch] > 0


def _pair_around(vertices: Array, faces: Array, sides: Array, pairs: Array, loose: Array) -> tuple[Array, Array]:
    """Pair the k sides [M, k] around each edge [M, 2] with neighbours in angle: loose with loose, and as flat as possible."""
    count, k = sides.shape
    low, high = (vertices[pairs[:, i]].astype(np.float64) for i in range(2))
    axis = _unit(high - low)[:, None]
    opposite = vertices[faces.reshape(-1)[_next(_next(sides))]] - low[:, None]
    arm = opposite - (opposite * axis).sum(-1, keepdims=True) * axis
    across = np.cross(axis, _unit(arm[:, :1]))
    angle = np.arctan2((arm * across).sum(-1), (arm * arm[:, :1]).sum(-1) / np.linalg.norm(arm[:, :1], axis=-1).clip(1e-30))
    order = np.argsort(angle, axis=1, kind="stable")
    sides, angle = np.take_along_axis(sides, order, 1), np.take_along_axis(angle, order, 1)
    gap = np.diff(angle, axis=1, append=angle[:, :1] + 2 * np.pi)
    sheet = loose[sides // 3]
    cost = np.abs(gap - np.pi) + _MIX * (sheet != np.roll(sheet, -1, axis=1))
    begin = np.arange(k if k % 2 else 2)  # an odd edge may leave out any of its sides: the one before `begin`
    steps = (begin[:, None] + np.arange(0, k - 1, 2)) % k
    total = cost[:, steps].sum(-1)
    if k % 2:
        total += _MIX * ~sheet[:, begin - 1]
    best = begin[total.argmin(1)]
    chosen = (best[:, None] + np.arange(0, k - 1, 2)) % k
    rows = np.arange(count)[:, None]
    return sides[rows, chosen].reshape(-1), sides[rows, (chosen + 1) % k].reshape(-1)


def _split_vertices(vertices: Array, faces: Array, found: Edges, partner: Array) -> tuple[Array, Array]:
    """Give every fan of corners that pairs connect a vertex of its own; the fan of the first corner keeps the old one."""
    flat = faces.reshape(-1)
    suspect = np.zeros(len(vertices), bool)
    suspect[found.pairs[found.counts != 2]] = True
    corners = np.flatnonzero(suspect[flat])
    if not len(corners):
        return vertices, faces
    place = np.full(len(flat), -1, np.int64)
    place[corners] = np.arange(len(corners))
    side = np.flatnonzero(partner > np.arange(len(partner)))
    other = partner[side]
    same = flat[side] == flat[other]
    links = [
        (side, np.where(same, other, _next(other))),
        (_next(side), np.where(same, _next(other), other)),
    ]
    a, b = (np.concatenate([link[i] for link in links]) for i in range(2))
    near = place[a] >= 0
    fans = graph_components(len(corners), place[a[near]], place[b[near]])
    first_corner = np.unique(fans, return_index=True)[1]
    owner = flat[corners[first_corner]]
    keeps = np.zeros(len(owner), bool)
    keeps[np.unique(owner, return_index=True)[1]] = True
    number = np.where(keeps, owner, len(vertices) + np.cumsum(~keeps) - 1)
    result = flat.copy()
    result[corners] = number[fans]
    centre = vertices[faces].mean(1)[corners // 3]
    total = np.stack([np.bincount(fans, centre[:, i], minlength=len(owner)) for i in range(3)], axis=1)
    middle = total / np.bincount(fans, minlength=len(owner))[:, None]
    moved = vertices[owner] * (1 - _PART) + middle * _PART
    return np.concatenate([vertices, moved[~keeps].astype(vertices.dtype)]), result.reshape(-1, 3)


def _split_edges(vertices: Array, faces: Array, shared: Edges, partner: Array) -> tuple[Array, Array]:
    """Put a vertex in the middle of all but the first pair of sides at every edge of more than two faces.

    A face is cut at one side only; what that leaves is found again in the next round.
    """
    flat = shared.of_face.reshape(-1)
    side = np.flatnonzero(shared.counts[flat] > 2)
    side = side[(partner[side] < 0) | (partner[side] > side)]
    keeps = np.zeros(len(side), bool)
    keeps[np.unique(flat[side], return_index=True)[1]] = True
    side = side[~keeps]
    other = partner[side]
    users = np.concatenate([side // 3, np.where(other < 0, side, other) // 3])
    earliest = np.full(len(faces), len(side))
    np.minimum.at(earliest, users, np.tile(np.arange(len(side)), 2))
    free = (earliest[users].reshape(2, -1) == np.arange(len(side))).all(0)
    side, other = side[free], other[free]
    middle = np.arange(len(side)) + len(vertices)
    tips = faces.reshape(-1)
    tip = (vertices[tips[_next(_next(side))]] + vertices[tips[_next(_next(np.where(other < 0, side, other)))]]) / 2
    points = (vertices[tips[side]] + vertices[tips[_next(side)]]) / 2 * (1 - _PART) + tip * _PART
    faces = faces.copy()
    added = []
    for sides, new in ((side, middle), (other[other >= 0], middle[other >= 0])):
        rows = sides // 3
        far = faces[rows].copy()  # start -> middle stays in place, middle -> end is appended
        far[np.arange(len(rows)), sides % 3] = new
        faces[rows, (sides + 1) % 3] = new
        added.append(far)
    return np.concatenate([vertices, points.astype(vertices.dtype)]), np.concatenate([faces, *added])


def _next(side: Array) -> Array:
    """The next side (or corner) of the same face."""
    return side + np.where(side % 3 == 2, -2, 1)


def _unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-30)
