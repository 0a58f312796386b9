"""Repair of non-manifold edges: sheets that touch are parted, so that every edge has at most two faces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .topology import Array, Edges, edges, face_components, graph_components, manifold_pairs, next_side, rim_edges, tip

_PART = 0.02
"""How far a parted vertex moves into its own sheet, as a share of the way to the middle of its faces."""
_MIX = 10.0
"""Cost, in radians of bend, of pairing a loose sheet with a closed wall, or of opening a wall."""
_ROUNDS = 8


class Repair(NamedTuple):
    """A mesh without non-manifold edges, and how the faces that needed a look now hang together.

    Attributes:
        vertices, faces: old ones keep their places, though their corners may have changed; new ones are appended.
        pairs: int64 [M, 2] sides (3 * face + k) on both sides of manifold edges, at least those that were not so before.
        rim: int64 [B] all sides on boundary edges.
    """

    vertices: Array
    faces: Array
    pairs: Array
    rim: Array


def make_manifold(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Part sheets that share an edge or a single vertex. Faces keep their order and winding; no hole is opened
    where an even number of faces meets.

    At an edge of three or more faces, neighbours in angle around it are paired, as flat as possible; a pair never passes
    through another, so touching solids stay closed, and a loose sheet that meets a wall is let go before the wall is.
    Corners that no pair connects become vertices of their own. Where two pairs still share both ends of an edge, all but
    one get a new vertex in its middle. New vertices are moved slightly into their own sheet, so that no later merging of
    positions undoes the repair.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], none with a repeated vertex.
    """
    found = edges(faces)
    repair = part_sheets(vertices, faces, found, face_components(faces, found, manifold_only=True))
    return repair.vertices, repair.faces


def part_sheets(vertices: Array, faces: Array, found: Edges, patch: Array) -> Repair:
    """`make_manifold` with what is known of the mesh: its edges, and patches int64 [F] that manifold edges join.

    Works on the faces around vertices of edges that are not manifold, usually few.
    """
    odd = np.flatnonzero(found.counts != 2)
    if not len(odd):
        return Repair(vertices, faces, np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    suspect = np.zeros(len(vertices), bool)
    suspect[found.ends(odd)] = True
    zone = np.flatnonzero(suspect[faces[:, 0]] | suspect[faces[:, 1]] | suspect[faces[:, 2]])
    used, local = np.unique(faces[zone], return_inverse=True)
    rim = found.order[found.start[found.counts == 1]] // 3
    loose = (np.bincount(patch[rim], minlength=int(patch.max()) + 1) > 0)[patch[zone]]
    points, parts = _part(vertices[used], local.reshape(-1, 3).astype(faces.dtype), suspect[used], loose)

    fresh = len(points) - len(used)
    name = np.concatenate([used, len(vertices) + np.arange(fresh)])
    old, row = len(zone), np.concatenate([zone, len(faces) + np.arange(len(parts) - len(zone))])
    result = np.concatenate([faces, name[parts[old:]].astype(faces.dtype)])
    result[zone] = name[parts[:old]]
    now = edges(parts)
    free = np.concatenate([suspect[used], np.ones(fresh, bool)])
    single = now.order[now.start[now.counts == 1]]
    single = single[free[rim_edges(parts, single)].all(1)]  # the others have a neighbour out of sight
    sides = lambda local: 3 * row[local // 3] + local % 3  # noqa: E731
    return Repair(np.concatenate([vertices, points[len(used) :]]), result, sides(manifold_pairs(now)[1]), sides(single))


def _part(vertices: Array, faces: Array, free: Array, loose: Array) -> tuple[Array, Array]:
    """Repair a mesh of which only the vertices `free`, bool [V], may be split; faces `loose`, bool [F], are of open sheets."""
    for _ in range(_ROUNDS):
        found = edges(faces)
        partner = _pair_sides(vertices, faces, found, loose)
        parted, new_faces = _split_vertices(vertices, faces, found, partner, free)
        if parted is vertices:
            break
        shared = edges(new_faces)
        if not (shared.counts > 2).any():
            return parted, new_faces
        vertices, faces, cut = _split_edges(parted, new_faces, shared, partner)
        free = np.concatenate([free, np.ones(len(vertices) - len(free), bool)])
        loose = np.concatenate([loose, loose[cut]])
    return vertices, faces


def _pair_sides(vertices: Array, faces: Array, found: Edges, loose: Array) -> Array:
    """The side (3 * face + k) across the edge of every side, int64 [3F]; -1 for none."""
    partner = np.full(3 * len(faces), -1, np.int64)
    _, both = manifold_pairs(found)
    partner[both[:, 0]], partner[both[:, 1]] = both[:, 1], both[:, 0]
    for k in np.unique(found.counts[found.counts > 2]):
        here = np.flatnonzero(found.counts == k)
        sides = found.order[found.start[here][:, None] + np.arange(k)]
        first, second = _pair_around(vertices, faces, sides, found.pairs[here], loose)
        partner[first], partner[second] = second, first
    return partner


def _pair_around(vertices: Array, faces: Array, sides: Array, pairs: Array, loose: Array) -> tuple[Array, Array]:
    """Pair the k sides [M, k] around each edge [M, 2] with neighbours in angle: loose with loose, and as flat as possible."""
    count, k = sides.shape
    low, high = (vertices[pairs[:, i]].astype(np.float64) for i in range(2))
    axis = _unit(high - low)[:, None]
    opposite = vertices[tip(faces, sides)] - low[:, None]
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


def _split_vertices(vertices: Array, faces: Array, found: Edges, partner: Array, free: Array) -> tuple[Array, Array]:
    """Give every fan of corners that pairs connect a vertex of its own; the fan of the first corner keeps the old one."""
    flat = faces.reshape(-1)
    suspect = np.zeros(len(vertices), bool)
    suspect[found.pairs[found.counts != 2]] = True
    suspect &= free
    corners = np.flatnonzero(suspect[flat])
    if not len(corners):
        return vertices, faces
    place = np.full(len(flat), -1, np.int64)
    place[corners] = np.arange(len(corners))
    side = np.flatnonzero(partner > np.arange(len(partner)))
    other = partner[side]
    same = flat[side] == flat[other]
    links = [
        (side, np.where(same, other, next_side(other))),
        (next_side(side), np.where(same, next_side(other), other)),
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


def _split_edges(vertices: Array, faces: Array, shared: Edges, partner: Array) -> tuple[Array, Array, Array]:
    """Put a vertex in the middle of all but the first pair of sides at every edge of more than two faces.

    A face is cut at one side only; what that leaves is found again in the next round. Returns vertices, faces, and the
    face that each appended one was cut from.
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
    across = (vertices[tip(faces, side)] + vertices[tip(faces, np.where(other < 0, side, other))]) / 2
    points = (vertices[tips[side]] + vertices[tips[next_side(side)]]) / 2 * (1 - _PART) + across * _PART
    faces = faces.copy()
    added = []
    for sides, new in ((side, middle), (other[other >= 0], middle[other >= 0])):
        rows = sides // 3
        far = faces[rows].copy()  # start -> middle stays in place, middle -> end is appended
        far[np.arange(len(rows)), sides % 3] = new
        faces[rows, (sides + 1) % 3] = new
        added.append(far)
    cut = np.concatenate([side, other[other >= 0]]) // 3
    return np.concatenate([vertices, points.astype(vertices.dtype)]), np.concatenate([faces, *added]), cut


def _unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-30)
