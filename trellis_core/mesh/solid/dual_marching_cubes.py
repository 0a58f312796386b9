"""Surfaces between the inside and the outside nodes of a lattice, one vertex for every patch of surface in a cell.

A cell whose corners change sides may hold several separate patches of surface; giving each a vertex of its own keeps
the result a 2-manifold (dual marching cubes). Corners are numbered x + 2 y + 4 z, edges 4 axis + u + 2 v with u, v the
corner's place along the two other axes in rising order, faces 2 axis + side. The four cells around a lattice edge are
numbered u + 2 v likewise, so the edge is number 4 axis + 3 - (u + 2 v) of that cell. Only cells with surface are ever
looked at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..topology import Array, among
from .lattice import Lattice

_OTHERS = ((1, 2), (0, 2), (0, 1))
_ROUNDS = 50
# The cells around an edge in the order whose normal looks towards minus the axis, and towards plus the axis, for axes 0 and
# 2; for axis 1 it is the other way round.
_RINGS = np.array([(0, 2, 3, 1), (0, 1, 3, 2)])


class PatchTable(NamedTuple):
    """For the 256 patterns of inside corners (bit k: corner k is inside).

    Attributes:
        count: int64 [256] patches.
        of_edge: int64 [256, 12] patch that crosses each edge, -1 for none.
        pinched: bool [256, 6] faces that one patch crosses twice.
    """

    count: Array
    of_edge: Array
    pinched: Array


@lru_cache(maxsize=1)
def patch_table() -> PatchTable:
    """Inside corners that face each other across a cell face are joined through it."""
    count = np.zeros(256, np.int64)
    of_edge = np.full((256, 12), -1)
    pinched = np.zeros((256, 6), bool)
    for pattern in range(256):
        inside = [bool(pattern >> k & 1) for k in range(8)]
        patch = {edge: edge for edge, (p, q) in enumerate(_corners_of_edges()) if inside[p] != inside[q]}
        twice = []
        for face in range(6):
            segments = _segments(inside, face)
            for one, two in segments:
                low, high = sorted((patch[one], patch[two]))
                patch = {edge: low if root == high else root for edge, root in patch.items()}
            twice.append(segments if len(segments) == 2 else None)
        roots = sorted(set(patch.values()))
        count[pattern] = len(roots)
        for edge, root in patch.items():
            of_edge[pattern, edge] = roots.index(root)
        for face, segments in enumerate(twice):
            pinched[pattern, face] = bool(segments) and patch[segments[0][0]] == patch[segments[1][0]]
    return PatchTable(count, of_edge, pinched)


def _corners_of_edges() -> list[tuple[int, int]]:
    result = []
    for axis, (first, second) in enumerate(_OTHERS):
        for place in range(4):
            low = (place & 1) << first | (place >> 1) << second
            result.append((low, low | 1 << axis))
    return result


def _segments(inside: list[bool], face: int) -> list[tuple[int, int]]:
    """The lines in which surface crosses a face, as pairs of edges; each cuts off outside corners."""
    axis, side = divmod(face, 2)
    first, second = _OTHERS[axis]
    ring = [side << axis | u << first | v << second for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    names = {frozenset(pair): edge for edge, pair in enumerate(_corners_of_edges())}
    sides = [names[frozenset((ring[k], ring[(k + 1) % 4]))] for k in range(4)]
    cut = [k for k in range(4) if inside[ring[k]] != inside[ring[(k + 1) % 4]]]
    if len(cut) == 2:
        return [(sides[cut[0]], sides[cut[1]])]
    return [(sides[k - 1], sides[k]) for k in range(4) if len(cut) == 4 and not inside[ring[k]]]


class Crossed(NamedTuple):
    """Lattice edges between inside and outside, and the cells around them.

    Attributes:
        edge: int64 [E].
        low_inside: bool [E], the lower end is the one inside.
        corner: int32 [E, 4], rows of `cell`.
        cell: int64 [C] flat lower node of each cell, each once.
        source: int32 [E], what the caller knows an edge by, -1 for none.
    """

    edge: Array
    low_inside: Array
    corner: Array
    cell: Array
    source: Array

    @property
    def axis(self) -> Array:
        return self.edge % 3


class Quads(NamedTuple):
    """Quads around lattice edges.

    Attributes:
        corner: int32 [Q, 4] vertices in a ring, wound outward, starting with the cell of least coordinates.
        cell: int32 [V] row of `Crossed.cell` that each vertex belongs to.
        alone: bool [V] the vertex is the only one in its cell.
    """

    corner: Array
    cell: Array
    alone: Array


def cells_around(edge: Array, lattice: Lattice) -> Array:
    """The cells int64 [E, 4] around edges."""
    strides = np.array(lattice.strides)
    others = strides[np.array(_OTHERS)]
    back = np.stack([others.sum(axis=1), others[:, 1], others[:, 0], np.zeros(3, np.int64)], axis=1)
    return edge[:, None] // 3 - back[edge % 3]


def crossed(edge: Array, low_inside: Array, lattice: Lattice, source: Array | None = None) -> Crossed:
    """Edges int64 [E] with the cells around them."""
    none = Crossed(edge[:0], low_inside[:0], np.zeros((0, 4), np.int32), np.zeros(0, np.int64), np.zeros(0, np.int32))
    return with_edges(none, edge, low_inside, lattice, source)


def with_edges(known: Crossed, edge: Array, low_inside: Array, lattice: Lattice, source: Array | None = None) -> Crossed:
    """`known` and some more edges."""
    if not len(edge):
        return known
    around = cells_around(edge, lattice).reshape(-1)
    wanted, place = np.unique(around, return_inverse=True)
    order = np.argsort(known.cell, kind="stable")
    found = np.searchsorted(known.cell, wanted, sorter=order).clip(max=max(len(order) - 1, 0))
    row = order[found] if len(order) else np.zeros(len(wanted), np.int64)
    new = known.cell[row] != wanted if len(order) else np.ones(len(wanted), bool)
    row[new] = len(known.cell) + np.arange(int(new.sum()))
    corner = row[place].reshape(-1, 4).astype(np.int32)
    source = np.full(len(edge), -1, np.int32) if source is None else source.astype(np.int32)
    return Crossed(
        np.concatenate([known.edge, edge]),
        np.concatenate([known.low_inside, low_inside]),
        np.concatenate([known.corner, corner]),
        np.concatenate([known.cell, wanted[new]]),
        np.concatenate([known.source, source]),
    )


def cell_patterns(surface: Crossed) -> Array:
    """Pattern uint8 [C] of the inside corners of each cell, 0 for cells that nothing crosses."""
    count = len(surface.cell)
    mask, told = np.zeros(count), np.full(count, -1, np.int8)
    for place in range(4):
        local = 4 * surface.axis + 3 - place
        mask += np.bincount(surface.corner[:, place], np.left_shift(1, local).astype(float), count)
        told[surface.corner[:, place]] = 2 * local + surface.low_inside
    pattern = _pattern_of_crossings()[mask.astype(np.int64)]
    low = np.array([pair[0] for pair in _corners_of_edges()])[told >> 1]
    wrong = (told >= 0) & ((pattern >> low & 1) != (told & 1))
    return np.where(wrong, 255 - pattern, pattern).astype(np.uint8)


@lru_cache(maxsize=1)
def _pattern_of_crossings() -> Array:
    """For each set of crossed edges, a number of 12 bits, the pattern with corner 0 outside; 0 where there is none."""
    table = np.zeros(1 << 12, np.int64)
    for pattern in range(0, 256, 2):
        table[sum(1 << k for k, (p, q) in enumerate(_corners_of_edges()) if (pattern >> p ^ pattern >> q) & 1)] = pattern
    return table


def fill_pinches(surface: Crossed, lattice: Lattice) -> tuple[Crossed, Array]:
    """Take the few nodes inside without which two patches would meet along a whole edge; the new surface and its patterns."""
    for _ in range(_ROUNDS):
        pattern = cell_patterns(surface)
        nodes = _pinched_nodes(surface, pattern, lattice)
        if not len(nodes):
            break
        strides = np.array(lattice.strides)
        around = np.concatenate([3 * (nodes[:, None] - back * strides) + np.arange(3) for back in (0, 1)]).reshape(-1)
        edge, times = np.unique(around, return_counts=True)
        edge = edge[times == 1]  # both ends of the others change sides
        stays = ~among(surface.edge, edge)
        added = edge[~among(edge, np.sort(surface.edge[~stays]))]
        kept = Crossed(*(column[stays] for column in surface[:3]), surface.cell, surface.source[stays])
        surface = with_edges(kept, added, among(added // 3, nodes), lattice)
    return surface, pattern


def _pinched_nodes(surface: Crossed, pattern: Array, lattice: Lattice) -> Array:
    """An outside node of every face that a patch of either cell crosses twice."""
    table = patch_table()
    suspects = np.flatnonzero(table.pinched[pattern].any(axis=1))
    order = suspects[np.argsort(surface.cell[suspects])]
    keys = surface.cell[order]
    found = [np.zeros(0, np.int64)]
    for axis, stride in enumerate(lattice.strides):
        low = order[table.pinched[pattern[order], 2 * axis + 1]]
        if not len(low):
            continue
        above = surface.cell[low] + stride
        row = np.searchsorted(keys, above).clip(max=len(keys) - 1)
        both = (keys[row] == above) & table.pinched[pattern[order[row]], 2 * axis]
        low, node = low[both], above[both]
        taken = pattern[low] >> np.uint8(1 << axis) & 1
        found.append(np.where(taken, node + lattice.strides[_OTHERS[axis][0]], node))
    return np.unique(np.concatenate(found))


def solid_quads(surface: Crossed, pattern: Array) -> Quads:
    """The closed surface across all crossed edges, a quad for each; `pattern` of `cell_patterns`."""
    table = patch_table()
    amount = table.count[pattern]
    first = np.cumsum(amount) - amount
    corner = np.empty_like(surface.corner)
    for place in range(4):
        cell = surface.corner[:, place]
        corner[:, place] = first[cell] + table.of_edge[pattern[cell], 4 * surface.axis + 3 - place]
    cell = np.repeat(np.arange(len(amount), dtype=np.int32), amount)
    return Quads(wound(corner, surface.axis, surface.low_inside), cell, np.repeat(amount == 1, amount))


def sheet_quads(surface: Crossed) -> Quads:
    """Quads across edges with one vertex a cell; their winding means nothing."""
    cell = np.arange(len(surface.cell), dtype=np.int32)
    return Quads(wound(surface.corner, surface.axis, surface.low_inside), cell, np.ones(len(cell), bool))


def wound(corner: Array, axis: Array, low_inside: Array) -> Array:
    """Four vertices numbered u + 2 v around edges, as rings that look away from the inside."""
    ring = _RINGS[((axis == 1) ^ low_inside).astype(int)]
    return np.take_along_axis(corner, ring, axis=1)


def split_quads(vertices: Array, corner: Array) -> Array:
    """The diagonal from the first vertex of each quad int [Q, 4] bends less than the other, bool [Q]."""
    ring = vertices[corner]
    bends = []
    for a, b, c, d in ((0, 1, 2, 3), (1, 2, 3, 0)):
        one = np.cross(ring[:, b] - ring[:, a], ring[:, c] - ring[:, a])
        two = np.cross(ring[:, c] - ring[:, a], ring[:, d] - ring[:, a])
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        bends.append(np.divide((one * two).sum(axis=1), size, out=np.full(len(ring), -1.0), where=size > 0))
    return bends[0] >= bends[1]


def triangles(corner: Array, from_first: Array) -> Array:
    """Two triangles int32 for each ring [Q, 4], rows 2 q and 2 q + 1: parted from its first vertex, or from its second."""
    rings = np.where(from_first[:, None], corner[:, [0, 1, 2, 0, 2, 3]], corner[:, [1, 2, 3, 1, 3, 0]])
    return rings.reshape(-1, 3).astype(np.int32)
