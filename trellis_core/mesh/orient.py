"""Consistent outward winding: neighbours agree first, then each component learns which side is outside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .manifold import Repair
from .ragged import ragged
from .topology import (
    Array,
    Edges,
    blocks,
    boundary_edges,
    edges,
    face_components,
    face_normals,
    graph_components,
    label_boxes,
    labels_at,
    rim_edges,
    row_lengths,
    run_starts,
    same_direction,
    signed_components,
    stable_order,
    strongest_tree,
)

_FLAT = 0.02
"""Below this share of area^1.5 the volume of an open component says nothing about its sides."""
_ALIKE = 0.9
"""Cosine from which the planes of two neighbours are so much alike that their winding follows from each other."""
_BINS = 1 << 12
_SURROUNDING = 500


class Facets(NamedTuple):
    """Faces in nearly flat patches, and the borders between these.

    Attributes:
        label: int [F], the facet of each face.
        turned: bool [F], faces wound against the first face of their facet.
        a, b: int [M], the faces on both sides of the manifold edges that are no part of a facet.
        odd: bool [M], whether these two are wound against each other.
        area: float32 [F].
    """

    label: Array
    turned: Array
    a: Array
    b: Array
    odd: Array
    area: Array

    @property
    def patches(self) -> Array:
        """Label int64 [F] of the faces that manifold edges join."""
        count = int(self.label.max(initial=-1)) + 1
        return graph_components(count, self.label[self.a], self.label[self.b])[self.label]


def find_facets(vertices: Array, faces: Array, found: Edges) -> Facets:
    """Follow the winding of faces from neighbour to neighbour, over manifold edges that are nearly flat."""
    first = found.start[found.counts == 2]
    normals, length = _unit_normals(vertices, faces)
    a, b = np.empty((2, len(first)), found.order.dtype)
    odd, flat = np.empty((2, len(first)), bool)
    for rows in blocks(len(first)):
        p, q = found.order[first[rows]], found.order[first[rows] + 1]
        odd[rows] = same_direction(faces, p, q)
        a[rows], b[rows] = p // 3, q // 3
        flat[rows] = _alike(normals[a[rows]], normals[b[rows]])
    label, turned = signed_components(len(faces), a[flat], b[flat], odd[flat])
    border = ~flat
    return Facets(label, turned, a[border], b[border], odd[border], length / 2)


def unify_winding(vertices: Array, faces: Array) -> Array:
    """Flip faces so that any two at a manifold edge traverse it in opposite directions.

    In every component the majority keeps its winding. Unorientable surfaces keep a seam somewhere.
    """
    nothing = Repair(vertices, faces, np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    return wind(nothing, find_facets(vertices, faces, edges(faces)))[0]


def wind(repair: Repair, facets: Facets) -> tuple[Array, Array, Array]:
    """The repaired faces, wound alike in each component by majority, their components int64 [F], and their directed
    boundary edges int64 [B, 2].

    `facets` were found before the repair. Where ways around contradict each other, as bodies that touch make them do, flat
    neighbours are believed first, and then the longest borders between facets (after Hoppe et al. 1992).
    """
    added = len(repair.faces) - len(facets.label)
    known = int(facets.label.max(initial=-1)) + 1
    facet = np.concatenate([facets.label, known + np.arange(added, dtype=facets.label.dtype)])
    turned = np.concatenate([facets.turned, np.zeros(added, bool)])
    sides = repair.pairs.T
    new, new_odd = sides // 3, same_direction(repair.faces, *sides)
    flat = _alike(*(_unit_normals(repair.vertices, repair.faces[end])[0] for end in new))
    a, b = facet[new[:, flat]]
    odd = new_odd[flat] ^ turned[new[0, flat]] ^ turned[new[1, flat]]
    wider, side = signed_components(known + added, a, b, odd)
    facet, turned = wider[facet], turned ^ side[facet]

    a, b = np.concatenate([[facets.a, facets.b], new], axis=1)
    odd = np.concatenate([facets.odd, new_odd]) ^ turned[a] ^ turned[b]
    label, side = strongest_tree(int(facet.max(initial=-1)) + 1, *_borders(facet[a], facet[b], odd))
    label = label[facet]
    turned = _rarer(label, turned ^ side[facet])
    rim = rim_edges(repair.faces, repair.rim)
    rim = np.where(turned[repair.rim // 3][:, None], rim[:, ::-1], rim)
    return _turn(repair.faces, turned), label, rim


def _unit_normals(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """(Unit normals [F, 3], twice the areas [F])."""
    normals = face_normals(vertices, faces)
    length = row_lengths(normals)
    normals /= length[:, None].clip(1e-30)
    return normals, length


def _alike(a: Array, b: Array) -> Array:
    """Whether planes with unit normals [N, 3] nearly agree, whichever way these point."""
    return np.abs(np.einsum("nk,nk->n", a, b)) > _ALIKE


def _borders(a: Array, b: Array, odd: Array) -> tuple[Array, Array, Array]:
    """Which facets have a border, each pair once, and how many of its edges are odd less how many are not."""
    across = np.flatnonzero(a != b)
    a, b, odd = a[across].astype(np.int64), b[across].astype(np.int64), odd[across]
    shift = int(max(a.max(initial=0), b.max(initial=0))).bit_length()
    order, keys = stable_order(np.minimum(a, b) << shift | np.maximum(a, b))
    if not len(keys):
        return a, b, np.zeros(0)
    start = run_starts(keys)
    weight = np.add.reduceat(np.where(odd[order], 1.0, -1.0), start)
    return keys[start] >> shift, keys[start] & ((1 << shift) - 1), weight


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
    return turn_outward(vertices, faces, face_components(faces, found), boundary_edges(faces, found))[0]


def turn_outward(vertices: Array, faces: Array, label: Array, rim: Array) -> tuple[Array, Array]:
    """`face_outward` with what is known of the mesh: components int [F] and directed boundary edges int64 [B, 2].

    Returns:
        (faces, area of each component float64).
    """
    count = int(label.max()) + 1
    size = np.abs(vertices).max().clip(1e-30)
    sums = np.zeros((8, count))  # per component: area, normals, centres times area, centres times normals
    for rows in blocks(len(faces)):
        a, b, c = (np.ascontiguousarray(vertices[faces[rows, k]].T) / size for k in range(3))
        centre, (px, py, pz), (qx, qy, qz) = (a + b + c) / 3, b - a, c - a
        normal = np.stack([py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx]) / 2
        area = np.sqrt((normal * normal).sum(0))
        columns = np.stack([area, *normal, *(centre * area), (centre * normal).sum(0)]).astype(np.float64)
        place = label[rows].astype(np.int64)
        for total, column in zip(sums, columns, strict=True):
            np.add.at(total, place, column)
    total, push, along = sums[0], sums[1:4].T, sums[7]
    middle = sums[4:7].T / total.clip(1e-30)[:, None]
    open_ = np.zeros(count, bool)
    if len(rim):
        owner = labels_at(rim[:, 0], faces, label, len(vertices))
        ends = vertices[rim].astype(np.float64) / size
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
    return (_turn(faces, inward[label]) if inward.any() else faces), total * float(size) ** 2


def _mean(values: Array, weights: Array, labels: Array, count: int) -> Array:
    """Weighted mean [count, 3] of values [N, 3] per label."""
    total = np.bincount(labels, weights, minlength=count).clip(1e-30)
    return np.stack([np.bincount(labels, values[:, k] * weights, minlength=count) for k in range(3)], axis=1) / total[:, None]


def _nesting(vertices: Array, faces: Array, labels: Array, closed: Array) -> Array:
    """How many other closed components surround each of `closed` wholly: one that only runs through them is not nested.

    Of its first and of its last face a ray along each axis is asked; what surrounds it also has the larger box. Of very
    many components only the largest are taken to surround others.
    """
    count = len(closed)
    number = np.full(int(labels.max()) + 1, -1)
    number[closed] = np.arange(count)
    owner = number[labels]
    low, high = label_boxes(vertices, faces, owner, count)
    large = np.argsort(-(high - low).max(1), kind="stable")[:_SURROUNDING]
    holds = [((low[k] <= low).all(1) & (high[k] >= high).all(1)).sum() > 1 for k in large]
    outer = np.zeros(count + 1, bool)
    outer[large[holds]] = True
    if not outer.any():
        return np.zeros(count, np.int64)
    rows = np.flatnonzero(owner >= 0)
    first, last = np.empty(count, np.int64), np.empty(count, np.int64)
    last[owner[rows]] = rows  # of several numbers for one place the last one stays
    first[owner[rows[::-1]]] = rows[::-1]
    owner[~outer[owner]] = -1
    rays = np.einsum("kcd,c->kd", vertices[faces[np.concatenate([first, last])]].astype(np.float64), [0.45, 0.33, 0.22])
    met = _met(vertices, faces, owner, rays)
    pairs = np.concatenate([_crossings(rays, count, vertices, faces[rows], owner[rows], axis) for axis, rows in enumerate(met)])
    pair, times = np.unique(pairs, return_counts=True)
    ray, other = np.divmod(pair[times >= 2], count)
    of_first = ray < count
    both = np.intersect1d((ray * count + other)[of_first], ((ray - count) * count + other)[~of_first])
    inner, outer = np.divmod(both, count)
    around = (low[outer] <= low[inner]).all(1) & (high[outer] >= high[inner]).all(1)
    return np.bincount(inner[around], minlength=count)


def _met(vertices: Array, faces: Array, owner: Array, points: Array) -> list[Array]:
    """For each axis the faces, of those with an owner, whose box may hold one of the points [N, 3] when seen along it."""
    low = points.min(0).astype(np.float32)
    scale = ((_BINS - 1) / (points.max(0) - low).clip(1e-6)).astype(np.float32)
    bins = ((points - low) * scale).astype(np.int64).clip(0, _BINS - 1)
    upto = [np.concatenate([[0], np.bincount(bins[:, k], minlength=_BINS).cumsum()]) for k in range(3)]
    met: list[list[Array]] = [[], [], []]
    for rows in blocks(len(faces)):
        if (owner[rows] < 0).all():
            continue
        a, b, c = (vertices[faces[rows, k]] for k in range(3))
        least, most = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
        begin = ((least - low) * scale - 1).clip(0, _BINS).astype(np.int32)  # a bin more on either side for what rounding does
        end = ((most - low) * scale + 2).clip(0, _BINS).astype(np.int32)
        holds = [upto[k][end[:, k]] > upto[k][begin[:, k]] for k in range(3)]
        for axis in range(3):
            some = holds[(axis + 1) % 3] & holds[(axis + 2) % 3] & (owner[rows] >= 0)
            met[axis].append(np.flatnonzero(some) + rows.start)
    return [np.concatenate([np.zeros(0, np.int64), *rows]) for rows in met]


def _crossings(start: Array, count: int, vertices: Array, faces: Array, owner: Array, axis: int) -> Array:
    """Of rays from start [N, 3] along +axis, the components that they are inside of, their own (n % count) left out:
    n * count + component.

    `owner` is the component 0..count-1 of each face. Rays are binned in a grid across the axis.
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

    ray, face = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows in blocks(len(faces)):
        corners = vertices[faces[rows]][:, :, across]
        box = np.floor((np.concatenate([corners.min(1), corners.max(1)], axis=1) - np.tile(low, 2)) * np.tile(scale, 2))
        u0, v0, u1, v1 = box.clip(0, size - 1).astype(np.int64).T
        item, offset = ragged((u1 - u0 + 1) * (v1 - v0 + 1))
        wide = (v1 - v0 + 1)[item]
        place = (u0[item] + offset // wide) * size + v0[item] + offset % wide
        pair, nth = ragged(in_cell[place])
        ray.append(by_cell[first[place[pair]] + nth])
        face.append(item[pair] + rows.start)
    ray, face = np.concatenate(ray), np.concatenate(face)
    other = owner[face] != ray % count
    ray, face = ray[other], face[other]

    tri = vertices[faces[face]].astype(np.float64)
    corners, point = tri[:, :, across], rays[ray]
    side = [_half_plane(corners[:, k], corners[:, (k + 1) % 3], point) for k in range(3)]
    hit = (side[0] == side[1]) & (side[1] == side[2])
    ray, face, tri = ray[hit], face[hit], tri[hit]
    normal = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    above = ((tri[:, 0] - start[ray]) * normal).sum(1) * np.sign(normal[:, axis]) > 0
    touched, times = np.unique(ray[above] * count + owner[face[above]], return_counts=True)
    return touched[times % 2 == 1]


def _half_plane(a: Array, b: Array, point: Array) -> Array:
    """Whether points [N, 2] lie left of a -> b; exact opposites for both directions of an edge, so no ray slips through."""
    swap = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    a, b = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
    cross = (b[:, 0] - a[:, 0]) * (point[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (point[:, 0] - a[:, 0])
    return (cross >= 0) ^ swap
