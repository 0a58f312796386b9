"""Edges, adjacency, components and normals of triangle meshes: the helpers that every mesh step shares.

All functions are pure and work on numpy arrays: vertices float [V, 3], faces int [F, 3]. Edges are undirected
pairs (low, high) of vertex indices in lexicographic order; an edge is a boundary edge with one incident face,
manifold with two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Edges(NamedTuple):
    """Unique undirected edges.

    Attributes:
        pairs: int64 [E, 2] (low, high), lexicographic.
        of_face: int64 [F, 3] edge index of the sides (v0 v1), (v1 v2), (v2 v0).
        counts: int64 [E] incident faces.
    """

    pairs: Array
    of_face: Array
    counts: Array


def edges(faces: Array) -> Edges:
    """The unique undirected edges of faces int [F, 3]; see `Edges`."""
    if not len(faces):
        return Edges(np.zeros((0, 2), np.int64), np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).astype(np.int64).reshape(-1, 2)
    span = int(sides.max()) + 1
    keys = sides.min(1) * span + sides.max(1)
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return Edges(np.stack([unique // span, unique % span], axis=1), inverse.reshape(-1, 3), counts)


def boundary_edges(faces: Array, found: Edges | None = None) -> Array:
    """Directed boundary edges int64 [B, 2] as their single face traverses them, in edge order."""
    found = found or edges(faces)
    face, side = np.nonzero(found.counts[found.of_face] == 1)
    order = np.argsort(found.of_face[face, side], kind="stable")
    face, side = face[order], side[order]
    return np.stack([faces[face, side], faces[face, (side + 1) % 3]], axis=1).astype(np.int64)


def manifold_pairs(found: Edges) -> tuple[Array, Array]:
    """Faces on both sides of every manifold edge: (edge index int64 [M], corners int64 [M, 2]).

    A corner is 3 * face + side, lower corner first, so `corners // 3` are the two faces.
    """
    flat = found.of_face.reshape(-1)
    order = np.argsort(flat, kind="stable")
    starts = np.concatenate([[0], np.cumsum(found.counts)])[:-1]
    manifold = np.flatnonzero(found.counts == 2)
    first = starts[manifold]
    return manifold, np.stack([order[first], order[first + 1]], axis=1)


def face_components(faces: Array, found: Edges | None = None, *, manifold_only: bool = False) -> Array:
    """Component label int64 [F] of every face; faces are neighbours when they share an edge.

    Labels run 0.. in the order of each component's lowest face. `manifold_only` ignores edges of three and more faces.
    """
    found = found or edges(faces)
    face = np.repeat(np.arange(len(faces)), 3)
    edge = found.of_face.reshape(-1)
    if manifold_only:
        keep = found.counts[edge] == 2
        face, edge = face[keep], edge[keep]
    labels = graph_components(len(faces) + len(found.pairs), face, len(faces) + edge)
    return first_seen_order(labels[: len(faces)])


def graph_components(nodes: int, a: Array, b: Array) -> Array:
    """Component label int64 [nodes] of the undirected graph with edges a[i] - b[i], labelled by lowest node."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(nodes, nodes))
    return first_seen_order(connected_components(graph, directed=False)[1])


def first_seen_order(labels: Array) -> Array:
    """Renumber labels int [N] to 0.. in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def face_normals(vertices: Array, faces: Array) -> Array:
    """Un-normalised normals [F, 3], length twice the face area, dtype of `vertices`."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def face_areas(vertices: Array, faces: Array) -> Array:
    """Areas [F]."""
    return 0.5 * np.linalg.norm(face_normals(vertices, faces), axis=1)


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
    renumber = np.cumsum(used) - 1
    return vertices[kept], renumber[faces].astype(faces.dtype), kept
