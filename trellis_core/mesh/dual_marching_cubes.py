"""Surfaces between the inside and the outside nodes of a lattice, one vertex for every patch of surface in a cell.

A cell whose corners change sides may hold several separate patches of surface; giving each a vertex of its own keeps
the result a 2-manifold (dual marching cubes). Corners are numbered x + 2 y + 4 z, edges 4 axis + u + 2 v with u, v the
corner's place along the two other axes in rising order, faces 2 axis + side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..context import check_obeyed
from .inside import Lattice
from .topology import Array

_OTHERS = ((1, 2), (0, 2), (0, 1))
# The four cells around a lattice edge per axis, as steps back from its lower node, in the order whose normal looks
# towards minus the axis.
_RING = 1 - np.array(
    [
        [(1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)],
        [(0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1)],
        [(0, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 1)],
    ]
)
_ROUNDS = 50


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


class Quads(NamedTuple):
    """Quads around lattice edges.

    Attributes:
        edge: int64 [Q], 3 * node + axis, the lattice edge that each quad surrounds.
        corner: int64 [Q, 4] vertices, wound outward.
        cell: int64 [V] flat lower node of the cell that each vertex belongs to.
        alone: bool [V] the vertex is the only one in its cell.
    """

    edge: Array
    corner: Array
    cell: Array
    alone: Array


def fill_pinches(inside: Array, lattice: Lattice) -> Array:
    """Add the few nodes to bool [lattice.size] without which two patches would meet along a whole edge."""
    inside = inside.copy()
    table = patch_table()
    for _ in range(_ROUNDS):
        pattern = _patterns(inside, lattice)
        active = np.flatnonzero((pattern != 0) & (pattern != 255))
        filled = []
        for axis, stride in enumerate(lattice.strides):
            check_obeyed()
            low = active[table.pinched[pattern[active], 2 * axis + 1]]
            low = low[table.pinched[pattern[low + stride], 2 * axis]]
            u, v = (lattice.strides[k] for k in _OTHERS[axis])
            node = low + stride
            filled.append(np.where(inside[node], node + u, node))
        filled = np.concatenate(filled)
        if not len(filled):
            break
        inside[filled] = True
    return inside


def solid_quads(inside: Array, lattice: Lattice) -> Quads:
    """The closed surface around the inside nodes, bool [lattice.size] with none on the lattice's border."""
    table = patch_table()
    pattern = _patterns(inside, lattice)
    cells = np.flatnonzero((pattern != 0) & (pattern != 255))
    amount = table.count[pattern[cells]]
    first = np.zeros(lattice.size, np.int32)  # mostly never touched
    first[cells] = np.cumsum(amount) - amount
    edges, corners = [], []
    for axis, stride in enumerate(lattice.strides):
        check_obeyed()
        node = np.flatnonzero(inside[:-stride] != inside[stride:])
        back = _RING[axis]
        cell = node[:, None] - back @ np.array(lattice.strides)
        local = 4 * axis + back[:, _OTHERS[axis]] @ np.array([1, 2])
        corner = first[cell] + table.of_edge[pattern[cell], local]
        corner[inside[node]] = corner[inside[node]][:, ::-1]
        edges.append(3 * node + axis)
        corners.append(corner)
    return Quads(np.concatenate(edges), np.concatenate(corners), np.repeat(cells, amount), np.repeat(amount == 1, amount))


def sheet_quads(edge: Array, lattice: Lattice) -> Quads:
    """Quads around the given lattice edges int64 [Q], with one vertex a cell; their winding means nothing."""
    back = _RING[edge % 3]
    cells, corner = np.unique(edge[:, None] // 3 - back @ np.array(lattice.strides), return_inverse=True)
    return Quads(edge, corner.reshape(-1, 4), cells, np.ones(len(cells), bool))


def split_quads(vertices: Array, corner: Array) -> Array:
    """Two triangles int32 a quad [Q, 4], along the diagonal that bends less; rows 2q and 2q + 1 belong to quad q."""
    ring = vertices[corner]
    bends = []
    for a, b, c, d in ((0, 1, 2, 3), (1, 2, 3, 0)):
        one = np.cross(ring[:, b] - ring[:, a], ring[:, c] - ring[:, a])
        two = np.cross(ring[:, c] - ring[:, a], ring[:, d] - ring[:, a])
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        bends.append(np.divide((one * two).sum(axis=1), size, out=np.full(len(ring), -1.0), where=size > 0))
    along_02 = (bends[0] >= bends[1])[:, None]
    return np.where(along_02, corner[:, [0, 1, 2, 0, 2, 3]], corner[:, [1, 2, 3, 1, 3, 0]]).reshape(-1, 3).astype(np.int32)


def _patterns(inside: Array, lattice: Lattice) -> Array:
    """Pattern uint8 [lattice.size] of the cell above every node; 0 at the upper border."""
    grid = inside.reshape(lattice.shape)
    pattern = np.zeros(lattice.shape, np.uint8)
    inner = pattern[:-1, :-1, :-1]
    for k in range(8):
        check_obeyed()
        x, y, z = k & 1, k >> 1 & 1, k >> 2
        shifted = grid[x : x + inner.shape[0], y : y + inner.shape[1], z : z + inner.shape[2]]
        inner |= shifted.astype(np.uint8) << np.uint8(k)
    return pattern.reshape(-1)
