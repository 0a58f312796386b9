"""Edges, adjacency, components and normals of triangle meshes: the helpers that every mesh step shares.

All functions are pure and work on numpy arrays: vertices float [V, 3], faces int [F, 3]. Edges are undirected
pairs (low, high) of vertex indices in lexicographic order; an edge is a boundary edge with one incident face,
manifold with two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..context import check_obeyed

Array = np.ndarray


_BLOCK = 1 << 16


@dataclass(frozen=True)
class Edges:
    """Unique undirected edges, lexicographic by (low, high). A side is 3 * face + k, from corner k to the next one.

    Attributes:
        faces: int [F, 3] that they belong to.
        order: int32 [3F] (int64 beyond 2^31 sides), sides grouped by edge, the lowest side of each edge first.
        start: int64 [E] place in `order` of the first side of each edge.
    """

    faces: Array
    order: Array
    start: Array

    @cached_property
    def counts(self) -> Array:
        """int64 [E] incident faces."""
        return np.diff(self.start, append=len(self.order))

    @cached_property
    def pairs(self) -> Array:
        """int64 [E, 2] (low, high)."""
        return self.ends(slice(None))

    def ends(self, of: Array | slice) -> Array:
        """int64 [N, 2] (low, high) of some edges."""
        return np.sort(rim_edges(self.faces, self.order[self.start[of]]), axis=1)

    @cached_property
    def of_face(self) -> Array:
        """int64 [F, 3] edge of the sides (v0 v1), (v1 v2), (v2 v0)."""
        result = np.empty(len(self.order), np.int64)
        result[self.order] = np.repeat(np.arange(len(self.start)), self.counts)
        return result.reshape(-1, 3)


def edges(faces: Array) -> Edges:
    """The unique undirected edges of faces int [F, 3]; see `Edges`."""
    reach = 0
    for rows in blocks(len(faces)):
        a, b, c = faces[rows].T
        reach = max(reach, int(np.maximum(abs(a - b), np.maximum(abs(b - c), abs(c - a))).max()))
    shift = reach.bit_length()
    keys = np.empty((len(faces), 3), np.int64)
    for rows in blocks(len(faces)):
        some = faces[rows].astype(np.int64)
        following = np.concatenate([some[:, 1:], some[:, :1]], axis=1)
        low = np.minimum(some, following)
        keys[rows] = low << shift | np.maximum(some, following) - low
    order, keys = stable_order(keys.reshape(-1), overwrite=True)
    return Edges(faces, order, run_starts(keys))


def run_starts(keys: Array) -> Array:
    """Places int64 [R] in sorted keys [N] where another key begins."""
    starts = [np.zeros(min(len(keys), 1), np.int64)]
    for rows in blocks(len(keys) - 1):
        differ = keys[rows.start : rows.stop] != keys[rows.start + 1 : rows.stop + 1]
        starts.append(np.flatnonzero(differ) + (rows.start + 1))
    return np.concatenate(starts)


def among(values: Array, known: Array) -> Array:
    """Which of some integers [N] are in `known` [K], which is in rising order, bool [N]."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


def _index_type(count: int) -> type:
    """The smaller the numbers, the faster all that follows."""
    return np.int32 if count < 2**31 else np.int64


def stable_order(keys: Array, *, overwrite: bool = False) -> tuple[Array, Array]:
    """Stable argsort int32 [N] (int64 beyond 2^31) of integers >= 0, int64 or uint64, and the sorted keys.

    Where there is room the row is packed below its key: sorting plain numbers is several times faster than an argsort.
    `overwrite` allows to do so in place.
    """
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        order = np.argsort(keys, kind="stable")
        return order.astype(_index_type(len(keys))), keys[order]
    packed = keys.astype(np.int64, copy=not overwrite)
    packed <<= bits
    for rows in blocks(len(keys)):
        packed[rows] |= np.arange(rows.start, rows.stop)
    packed.sort()
    order = np.empty(len(keys), _index_type(len(keys)))
    np.bitwise_and(packed, (1 << bits) - 1, out=order, casting="unsafe")
    packed >>= bits
    return order, packed


def without(found: Edges, keep: Array) -> Edges:
    """The edges that remain, and their sides renumbered, when only the faces `keep` (bool [F]) stay."""
    stays = keep[found.order // 3]
    gone = np.searchsorted(found.start, np.flatnonzero(~stays), "right") - 1
    left = found.counts - np.bincount(gone, minlength=len(found.start))
    old = found.order[stays]
    order = old - 3 * np.cumsum(~keep, dtype=old.dtype)[old // 3]
    left = left[left > 0]
    return Edges(found.faces[keep], order, np.cumsum(left) - left)


def boundary_edges(faces: Array, found: Edges | None = None) -> Array:
    """Directed boundary edges int64 [B, 2] as their single face traverses them, in edge order."""
    found = found or edges(faces)
    return rim_edges(faces, found.order[found.start[found.counts == 1]])


def rim_edges(faces: Array, sides: Array) -> Array:
    """The directed edges int64 [B, 2] that sides int [B] of faces traverse."""
    flat = faces.reshape(-1)
    return np.stack([flat[sides], flat[next_side(sides)]], axis=1).astype(np.int64)


def manifold_pairs(found: Edges) -> tuple[Array, Array]:
    """Faces on both sides of every manifold edge: (edge index int64 [M], corners int32 [M, 2]).

    A corner is 3 * face + side, lower corner first, so `corners // 3` are the two faces.
    """
    manifold = np.flatnonzero(found.counts == 2)
    first = found.start[manifold]
    return manifold, np.stack([found.order[first], found.order[first + 1]]).T


def face_components(faces: Array, found: Edges | None = None, *, manifold_only: bool = False) -> Array:
    """Component label int64 [F] of every face; faces are neighbours when they share an edge.

    Labels run 0.. in the order of each component's lowest face. `manifold_only` ignores edges of three and more faces.
    """
    found = found or edges(faces)
    if manifold_only:
        a, b = (manifold_pairs(found)[1] // 3).T
    else:
        follows = np.ones(len(found.order), bool)
        follows[found.start] = False
        later = np.flatnonzero(follows)
        a, b = found.order[later - 1] // 3, found.order[later] // 3
    return graph_components(len(faces), a, b)


def graph_components(nodes: int, a: Array, b: Array) -> Array:
    """Component label int64 [nodes] of the undirected graph with edges a[i] - b[i], labelled by lowest node."""
    return signed_components(nodes, a, b)[0].astype(np.int64)


def signed_components(nodes: int, a: Array, b: Array, odd: Array | None = None) -> tuple[Array, Array]:
    """Components of an undirected graph, and on which of two sides of its component each node lies.

    Every node hooks onto its lowest neighbour, the trees shrink to their roots, and the graph between the roots is
    treated alike. So much for trees; where edges around a circle contradict each other some of them are ignored.

    Args:
        nodes: their number.
        a, b: int [M], the nodes that each edge joins.
        odd: bool [M], whether an edge joins nodes of different sides; none for never.

    Returns:
        (label int32 [nodes], int64 from 2^31 on, 0.. by lowest node; side bool [nodes], False for the lowest node of each
        component).
    """
    kind = _index_type(nodes)
    a, b = a.astype(kind, copy=False), b.astype(kind, copy=False)
    odd = np.zeros(len(a), bool) if odd is None else odd
    root = np.arange(nodes, dtype=kind)
    side = np.zeros(nodes, bool)
    for rows in blocks(len(a)):
        np.minimum.at(root, np.maximum(a[rows], b[rows]), np.minimum(a[rows], b[rows]))
    for rows in blocks(len(a)):
        low, high = np.minimum(a[rows], b[rows]), np.maximum(a[rows], b[rows])
        taken = root[high] == low
        side[high[taken]] = odd[rows][taken] & (high[taken] != low[taken])
    return _between_trees(_shrink(root, side), side, a, b, odd, signed_components)


def strongest_tree(nodes: int, a: Array, b: Array, weight: Array) -> tuple[Array, Array]:
    """`signed_components` of a graph whose edges may contradict each other: the heaviest are believed first.

    A spanning forest of greatest |weight| tells the sides (Boruvka's algorithm).

    Args:
        nodes: their number.
        a, b: int [M], the nodes that each edge joins, each pair of nodes at most once.
        weight: float [M], below zero for edges that join nodes of the same side.
    """
    heaviest = np.argsort(-np.abs(weight), kind="stable")
    return _strongest_tree(nodes, a[heaviest], b[heaviest], weight[heaviest] > 0)


def _strongest_tree(nodes: int, a: Array, b: Array, odd: Array) -> tuple[Array, Array]:
    """Edges come in the order of their strength."""
    node = np.arange(nodes)
    best = np.full(nodes, len(a))
    for end in (a, b):
        np.minimum.at(best, end, np.arange(len(a)))
    joined = best < len(a)
    edge = best[joined]
    root = node.copy()
    root[joined] = a[edge] + b[edge] - node[joined]
    root = np.where((root[root] == node) & (node < root), node, root)  # two that chose each other: the lower one leads
    side = np.zeros(nodes, bool)
    side[joined] = odd[edge]
    side &= root != node
    return _between_trees(_shrink(root, side), side, a, b, odd, _strongest_tree)


def _between_trees(
    number: Array, side: Array, a: Array, b: Array, odd: Array, solve: Callable[..., tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Labels and sides of nodes in trees `number`, when `solve` has joined the trees by the edges that are left."""
    left = [np.flatnonzero(number[a[rows]] != number[b[rows]]) + rows.start for rows in blocks(len(a))]
    left = np.concatenate([np.zeros(0, np.int64), *left])
    if not len(left):
        return number, side
    a, b = a[left], b[left]
    odd = odd[left] ^ side[a] ^ side[b]
    above, turned = solve(int(number.max()) + 1, number[a], number[b], odd)
    return above[number], side ^ turned[number]


def _shrink(root: Array, side: Array) -> Array:
    """Number int [N] of the tree of each node, 0.. by its root's place, where `root` names each node's parent or itself.

    In place, `side` becomes each node's side against its root instead of its parent (pointer doubling, block by block:
    where parents come first the trees of earlier blocks are flat already).
    """
    for rows in blocks(len(root)):
        moving = np.flatnonzero(root[rows] != np.arange(rows.start, rows.stop)) + rows.start
        while len(moving):
            parent = root[moving]
            above = root[parent]
            deep = above != parent
            moving, parent, above = moving[deep], parent[deep], above[deep]
            side[moving] ^= side[parent]
            root[moving] = above
    return (np.cumsum(root == np.arange(len(root), dtype=root.dtype), dtype=root.dtype) - 1)[root]


def same_direction(faces: Array, first: Array, second: Array) -> Array:
    """Whether two sides int [M] on the same edge traverse it in the same direction: bool [M]."""
    flat = faces.reshape(-1)
    return flat[first] == flat[second]


def next_side(side: Array) -> Array:
    """The next side (or corner) of the same face."""
    return side + np.where(side % 3 == 2, -2, 1).astype(side.dtype)


def tip(faces: Array, side: Array) -> Array:
    """The vertex int [N] across from sides int [N] of faces."""
    return faces.reshape(-1)[side + np.where(side % 3 == 0, 2, -1).astype(side.dtype)]


def blocks(count: int) -> Iterator[slice]:
    """Slices that cover 0..count, so short that what is made of them stays in the processor's cache.

    A cancel of the run that is obeyed takes effect between them.
    """
    for start in range(0, count, _BLOCK):
        check_obeyed()
        yield slice(start, min(start + _BLOCK, count))


def labels_at(points: Array, faces: Array, label: Array, count: int) -> Array:
    """Component of each of some vertices int [N], of `count` in all."""
    wanted = np.zeros(count, bool)
    wanted[points] = True
    face, corner = np.nonzero(wanted[faces])
    of_vertex = np.zeros(count, np.int64)
    of_vertex[faces[face, corner]] = label[face]
    return of_vertex[points]


def label_boxes(vertices: Array, faces: Array, label: Array, count: int) -> tuple[Array, Array]:
    """Least and greatest coordinates float64 [count, 3] of the faces of each of 0..count-1; -1 is nobody's label.

    No vertex may belong to two labels.
    """
    of_vertex = np.full(len(vertices), -1)
    for corner in faces.T:
        of_vertex[corner] = label
    used = np.flatnonzero(of_vertex >= 0)
    place = of_vertex[used]
    low, high = np.full((3, count), np.inf), np.full((3, count), -np.inf)
    for k in range(3):
        column = vertices[used, k].astype(np.float64)
        np.minimum.at(low[k], place, column)
        np.maximum.at(high[k], place, column)
    return low.T, high.T


def first_seen_order(labels: Array) -> Array:
    """Renumber labels int [N] to 0.. in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def face_normals(vertices: Array, faces: Array) -> Array:
    """Un-normalised normals [F, 3], length twice the face area, dtype of `vertices`."""
    result = np.empty((len(faces), 3), vertices.dtype)
    for rows in blocks(len(faces)):
        a, b, c = (vertices[faces[rows, k]].T for k in range(3))
        (px, py, pz), (qx, qy, qz) = b - a, c - a
        result[rows, 0] = py * qz - pz * qy
        result[rows, 1] = pz * qx - px * qz
        result[rows, 2] = px * qy - py * qx
    return result


def face_areas(vertices: Array, faces: Array) -> Array:
    """Areas [F]."""
    return 0.5 * row_lengths(face_normals(vertices, faces))


def row_lengths(rows: Array) -> Array:
    """Euclidean lengths [N] of rows [N, 3]."""
    return np.sqrt(np.einsum("nk,nk->n", rows, rows))


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals [V, 3]: area-weighted sum over incident faces; zero where a vertex has none or they cancel."""
    weighted = face_normals(vertices, faces).astype(np.float64)
    flat = faces.reshape(-1)
    total = np.stack([np.bincount(flat, np.repeat(weighted[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0).astype(vertices.dtype)


def compact(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Drop vertices that no face uses, keeping order: (vertices, faces, kept int64 = old index of each new vertex)."""
    used = np.zeros(len(vertices), bool)
    used[faces.reshape(-1)] = True
    kept = np.flatnonzero(used)
    if len(kept) == len(vertices):
        return vertices, faces, kept
    renumber = np.cumsum(used, dtype=faces.dtype) - 1
    return vertices[kept], renumber.take(faces), kept
