"""Consistent outward winding: neighbours agree first, then each component learns which side is outside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .manifold import Repair
from .ragged import ragged
from .topology import (
    Array,
    Edges,
    boundary_edges,
    edges,
    face_components,
    face_normals,
    labels_at,
    manifold_pairs,
    rim_edges,
    same_direction,
    signed_components,
)

_FLAT = 0.02
"""Below this share of area^1.5 the volume of an open component says nothing about its sides."""
_ALIKE = 0.9
"""Cosine from which the planes of two neighbours are so much alike that their winding follows from each other."""
_BLOCK = 1 << 17
"""Faces worked on at once."""


class Patches(NamedTuple):
    """Faces that manifold edges join.

    Attributes:
        label: int64 [F].
        turned: bool [F], faces wound against the first face of their patch.
    """

    label: Array
    turned: Array


def wind_patches(faces: Array, found: Edges) -> Patches:
    """Follow the winding of faces from neighbour to neighbour over the edges with two faces."""
    p, q = manifold_pairs(found)[1].T
    return Patches(*signed_components(len(faces), p // 3, q // 3, same_direction(faces, p, q)))


def unify_winding(faces: Array) -> Array:
    """Flip faces so that any two at a manifold edge traverse it in opposite directions.

    In every component the majority keeps its winding. Unorientable surfaces keep a seam somewhere.
    """
    patches = wind_patches(faces, edges(faces))
    return _turn(faces, _rarer(*patches))


def wind(repair: Repair, patches: Patches, found: Edges) -> tuple[Array, Array, Array]:
    """The repaired faces, wound alike in each component by majority, their components int64 [F], and their directed
    boundary edges int64 [B, 2].

    `patches` were found before the repair, from the edges `found`; only where that changed anything are neighbours looked
    up again. Where the way around contradicts itself, as bodies that touch make it do, flat neighbours are believed first.
    """
    added = len(repair.faces) - len(patches.label)
    known = int(patches.label.max(initial=-1)) + 1
    patch = np.concatenate([patches.label, known + np.arange(added)])
    turned = np.concatenate([patches.turned, np.zeros(added, bool)])
    p, q = repair.pairs.T
    a, b = p // 3, q // 3
    odd = same_direction(repair.faces, p, q) ^ turned[a] ^ turned[b]
    whole, side = signed_components(known + added, patch[a], patch[b], odd)
    label = whole[patch]
    turned ^= side[patch]
    pairs = np.concatenate([manifold_pairs(found)[1], repair.pairs])
    odd = same_direction(repair.faces, *pairs.T)
    wrong = odd ^ turned[pairs[:, 0] // 3] ^ turned[pairs[:, 1] // 3]
    if wrong.any():
        torn = np.zeros(int(label.max()) + 1, bool)
        torn[label[pairs[wrong, 0] // 3]] = True
        rows = torn[label[pairs[:, 0] // 3]]
        faces = np.flatnonzero(torn[label])
        turned[faces] = _wind_flat_first(repair.vertices, repair.faces, pairs[rows] // 3, odd[rows])[faces]
    turned = _rarer(label, turned)
    rim = rim_edges(repair.faces, repair.rim)
    rim = np.where(turned[repair.rim // 3][:, None], rim[:, ::-1], rim)
    return _turn(repair.faces, turned), label, rim


def _wind_flat_first(vertices: Array, faces: Array, pairs: Array, odd: Array) -> Array:
    """Which faces to turn, bool [F], so that as few as possible of `pairs` int64 [M, 2] contradict `odd` bool [M].

    Faces that lie nearly in one plane agree first; the patches that this makes are joined along a tree of the longest
    borders (after Hoppe et al. 1992).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    a, b = pairs.T
    normals = face_normals(vertices, faces)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    flat = np.abs(np.einsum("mk,mk->m", normals[a], normals[b])) > _ALIKE
    patch, turned = signed_components(len(faces), a[flat], b[flat], odd[flat])
    border = patch[a] != patch[b]
    a, b, odd = a[border], b[border], odd[border]
    odd = odd ^ turned[a] ^ turned[b]
    count = int(patch.max(initial=-1)) + 1
    low, high = np.minimum(patch[a], patch[b]), np.maximum(patch[a], patch[b])
    key, slot = np.unique(low * count + high, return_inverse=True)
    balance = np.bincount(slot, np.where(odd, 1.0, -1.0), minlength=len(key))
    graph = coo_array((-np.abs(balance) - 1, np.divmod(key, count)), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    ends = tree.row.astype(np.int64), tree.col.astype(np.int64)
    branch = np.searchsorted(key, np.minimum(*ends) * count + np.maximum(*ends))
    return turned ^ signed_components(count, *ends, balance[branch] > 0)[1][patch]


def _rarer(label: Array, turned: Array) -> Array:
    """Which faces have the rarer one of the two windings in their component, bool [F]."""
    return turned ^ (np.bincount(label, turned) > np.bincount(label) / 2)[label]


def _turn(faces: Array, turned: Array) -> Array:
    """Faces with those of `turned`, bool [F], the other way round."""
    result = faces.copy()
    result[turned] = faces[turned][:, [0, 2, 1]]
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
    return turn_outward(vertices, faces, face_components(faces, found), boundary_edges(faces, found))


def turn_outward(vertices: Array, faces: Array, label: Array, rim: Array) -> Array:
    """`face_outward` with what is known of the mesh: components int64 [F] and directed boundary edges int64 [B, 2]."""
    count = int(label.max()) + 1
    sums = np.zeros((8, count))  # per component: area, normals, centres times area, centres times normals
    for start in range(0, len(faces), _BLOCK):
        rows = slice(start, start + _BLOCK)
        points = vertices[faces[rows]].astype(np.float64)
        normal = face_normals(points.reshape(-1, 3), np.arange(3 * len(points)).reshape(-1, 3)) / 2
        area, centre = np.linalg.norm(normal, axis=1), points.mean(1)
        columns = [area, *normal.T, *(centre * area[:, None]).T, (centre * normal).sum(1)]
        sums += [np.bincount(label[rows], column, minlength=count) for column in columns]
    total, push, along = sums[0], sums[1:4].T, sums[7]
    middle = sums[4:7].T / total.clip(1e-30)[:, None]
    open_ = np.zeros(count, bool)
    if len(rim):
        owner = labels_at(rim[:, 0], faces, label, len(vertices))
        ends = vertices[rim].astype(np.float64)
        span = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        open_ = np.bincount(owner, minlength=count) > 0
        middle = np.where(open_[:, None], _mean(ends.mean(1), span, owner, count), middle)
    volume = (along - (middle * push).sum(1)) / 3
    whole = sums[4:7].sum(1) / total.sum().clip(1e-30)
    outwardness = along - push @ whole
    sheet = open_ & (np.abs(volume) < _FLAT * total**1.5)
    inward = np.where(sheet, outwardness < -1e-6 * total, volume < 0)
    closed = np.flatnonzero(~open_)
    if len(closed) > 1:
        inward[closed] ^= _nesting(vertices, faces, label, closed) % 2 == 1
    if not inward.any():
        return faces
    return _turn(faces, inward[label])


def _mean(values: Array, weights: Array, labels: Array, count: int) -> Array:
    """Weighted mean [count, 3] of values [N, 3] per label."""
    total = np.bincount(labels, weights, minlength=count).clip(1e-30)
    return np.stack([np.bincount(labels, values[:, k] * weights, minlength=count) for k in range(3)], axis=1) / total[:, None]


def _nesting(vertices: Array, faces: Array, labels: Array, closed: Array) -> Array:
    """How many other closed components surround each of `closed` wholly: one that only runs through them is not nested.

    Of its first and of its last face a ray along each axis is asked; what surrounds it also has the larger box.
    """
    number = np.full(int(labels.max()) + 1, -1)
    number[closed] = np.arange(len(closed))
    owner = number[labels]
    rows = np.flatnonzero(owner >= 0)
    low, high = np.full((len(closed), 3), np.inf), np.full((len(closed), 3), -np.inf)
    first, last = np.full(len(closed), len(faces)), np.full(len(closed), -1)
    np.minimum.at(first, owner[rows], rows)
    np.maximum.at(last, owner[rows], rows)
    for corner in faces[rows].T:
        np.minimum.at(low, owner[rows], vertices[corner])
        np.maximum.at(high, owner[rows], vertices[corner])
    held = []
    for face in (first, last):
        start = np.einsum("kcd,c->kd", vertices[faces[face]].astype(np.float64), [0.45, 0.33, 0.22])  # off any symmetry
        pairs = np.concatenate([_crossings(start, vertices, faces, owner, axis) for axis in range(3)])
        pair, times = np.unique(pairs, return_counts=True)
        held.append(pair[times >= 2])
    ray, other = np.divmod(np.intersect1d(*held), len(closed))
    around = (low[other] <= low[ray]).all(1) & (high[other] >= high[ray]).all(1)
    return np.bincount(ray[around], minlength=len(closed))


def _crossings(start: Array, vertices: Array, faces: Array, owner: Array, axis: int) -> Array:
    """Of rays from start [K, 3] along +axis, the closed components that they are inside of, their own (k) left out: K * ray +
    component.

    `owner` is the closed component 0..K-1 of each face, -1 for none. Rays are binned in a grid across the axis.
    """
    across = [(axis + 1) % 3, (axis + 2) % 3]
    rays = start[:, across]
    size = int(np.clip(2 * np.sqrt(len(start)), 1, 256))
    low = rays.min(0)
    scale = size / (rays.max(0) - low).clip(1e-12)
    cell = ((rays - low) * scale).astype(np.int64).clip(0, size - 1)
    cell = cell[:, 0] * size + cell[:, 1]
    by_cell = np.argsort(cell, kind="stable")
    in_cell = np.bincount(cell, minlength=size * size)
    first = np.cumsum(in_cell) - in_cell
    before = np.pad(in_cell.reshape(size, size), ((1, 0), (1, 0))).cumsum(0).cumsum(1)

    ray, face = [], []
    for begin in range(0, len(faces), _BLOCK):  # faces whose box has a ray
        rows = slice(begin, begin + _BLOCK)
        flat = [vertices[faces[rows], k] for k in across]
        box = [np.floor((ends(column) - low[i]) * scale[i]) for ends in (_least, _most) for i, column in enumerate(flat)]
        fits = (owner[rows] >= 0) & (box[2] >= 0) & (box[3] >= 0) & (box[0] <= size) & (box[1] <= size)
        u0, v0, u1, v1 = (side.clip(0, size - 1).astype(np.int64) for side in box)
        fits &= before[u1 + 1, v1 + 1] - before[u0, v1 + 1] - before[u1 + 1, v0] + before[u0, v0] > 0
        met = np.flatnonzero(fits)
        u0, v0, u1, v1 = u0[met], v0[met], u1[met], v1[met]
        item, offset = ragged((u1 - u0 + 1) * (v1 - v0 + 1))
        wide = (v1 - v0 + 1)[item]
        place = (u0[item] + offset // wide) * size + v0[item] + offset % wide
        pair, nth = ragged(in_cell[place])
        ray.append(by_cell[first[place[pair]] + nth])
        face.append(met[item[pair]] + begin)
    ray, face = np.concatenate(ray), np.concatenate(face)
    other = owner[face] != ray
    ray, face = ray[other], face[other]

    tri = vertices[faces[face]].astype(np.float64)
    corners, point = tri[:, :, across], rays[ray]
    side = [_half_plane(corners[:, k], corners[:, (k + 1) % 3], point) for k in range(3)]
    hit = (side[0] == side[1]) & (side[1] == side[2])
    ray, face, tri = ray[hit], face[hit], tri[hit]
    normal = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    above = ((tri[:, 0] - start[ray]) * normal).sum(1) * np.sign(normal[:, axis]) > 0
    touched, times = np.unique(ray[above] * len(start) + owner[face[above]], return_counts=True)
    return touched[times % 2 == 1]


def _half_plane(a: Array, b: Array, point: Array) -> Array:
    """Whether points [N, 2] lie left of a -> b; exact opposites for both directions of an edge, so no ray slips through."""
    swap = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    a, b = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
    cross = (b[:, 0] - a[:, 0]) * (point[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (point[:, 0] - a[:, 0])
    return (cross >= 0) ^ swap


def _least(corners: Array) -> Array:
    return np.minimum(np.minimum(corners[:, 0], corners[:, 1]), corners[:, 2])


def _most(corners: Array) -> Array:
    return np.maximum(np.maximum(corners[:, 0], corners[:, 1]), corners[:, 2])
