"""The reference's parallel edge collapse (docs/method/mesh.md): rounds of independent collapses under a rising cost threshold.

Sums run in float32 and in index order: which of two nearly equal edges collapses depends on the last bit.
"""

from __future__ import annotations

import numpy as np

from ..context import QUIET, RunContext
from ..mesh.ragged import ragged
from ..mesh.topology import Array, edges, face_normals

LAMBDA_LENGTH = 1e-2
LAMBDA_SKINNY = 1e-3
MAX_ROUNDS = 500
MAX_THRESHOLD = 1e2  # in a unit cube every finite cost lies below


def simplify(vertices: Array, faces: Array, target: int, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Collapse edges until at most `target` faces are left (it may overshoot), or nothing cheap is left to collapse.

    Args:
        vertices: float32 [V, 3]. faces: int32 [F, 3].
    """
    threshold = 1e-8
    start = len(faces)
    for _ in range(MAX_ROUNDS):
        if len(faces) <= target or threshold > MAX_THRESHOLD:
            break
        ctx.report((start - len(faces)) / max(start - target, 1), "simplify")
        before = len(faces)
        vertices, faces = collapse_round(vertices, faces, threshold)
        if before - len(faces) < 0.01 * before:
            threshold *= 10
    return vertices, faces


def collapse_round(vertices: Array, faces: Array, threshold: float) -> tuple[Array, Array]:
    """Collapse every edge that costs at most `threshold` and is the cheapest around both of its ends."""
    found = edges(faces)
    pairs = found.pairs
    target, cost = _edge_costs(vertices, faces, pairs, found.counts)
    bits = cost.view(np.uint32).astype(np.uint64)
    key = (bits << np.uint64(32)) | np.arange(len(pairs), dtype=np.uint64)

    none = np.full(len(vertices), np.iinfo(np.uint64).max)
    at_vertex = none.copy()
    np.minimum.at(at_vertex, pairs.reshape(-1), np.repeat(key, 2))
    at_face = at_vertex[faces].min(axis=1)
    around = none.copy()
    np.minimum.at(around, faces.reshape(-1), np.repeat(at_face, 3))
    chosen = (cost <= np.float32(threshold)) & (around[pairs] == key[:, None]).all(axis=1)

    low, high = pairs[chosen].T
    vertices = vertices.copy()
    vertices[low] = target[chosen]
    gone = np.zeros(len(vertices), bool)
    gone[high] = True
    onto = np.cumsum(~gone) - 1  # vertices that lose their last face stay, as in the reference
    onto[high] = onto[low]
    moved = onto[faces].astype(faces.dtype)
    alive = (moved != np.roll(moved, -1, axis=1)).all(axis=1)
    return vertices[~gone], moved[alive]


def _edge_costs(vertices: Array, faces: Array, pairs: Array, counts: Array) -> tuple[Array, Array]:
    """Where each edge would collapse to, float32 [E, 3], and its cost, float32 [E], infinite where a face would flip."""
    on_border = np.zeros(len(vertices), bool)
    on_border[pairs[counts == 1]] = True
    low, high = pairs.T
    a, b = vertices[low], vertices[high]
    target = (a + b) * np.float32(0.5)
    only_low, only_high = on_border[low] & ~on_border[high], on_border[high] & ~on_border[low]
    target[only_low], target[only_high] = a[only_low], b[only_high]

    quadric = _vertex_quadrics(vertices, faces)
    skinny, flips = _shape_change(vertices, faces, pairs, target)
    edge = b - a
    length2 = _dot(edge, edge)
    cost = _quadric_error(quadric[low] + quadric[high], target)
    cost += np.float32(LAMBDA_LENGTH) * length2
    cost += np.float32(LAMBDA_SKINNY) * skinny * length2
    cost[flips] = np.inf
    return target, cost


def _dot(a: Array, b: Array) -> Array:
    """Dot products of rows, summed x, y, z in this order."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


_TERMS = tuple((i, j) for i in range(4) for j in range(i, 4))  # upper triangle of a quadric, row by row


def _vertex_quadrics(vertices: Array, faces: Array) -> Array:
    """Sum of the quadrics of the incident planes (unit normals): upper triangles, float32 [V, 10]."""
    normal = face_normals(vertices, faces)
    length = np.sqrt(_dot(normal, normal))
    with np.errstate(divide="ignore", invalid="ignore"):
        normal *= (1 / length)[:, None]  # a collapsed face is NaN and so blocks the collapse of its edges
    plane = np.concatenate([normal, -_dot(normal, vertices[faces[:, 0]])[:, None]], axis=1)
    products = np.stack([plane[:, i] * plane[:, j] for i, j in _TERMS], axis=1)
    quadric = np.zeros((len(vertices), len(_TERMS)), np.float32)
    np.add.at(quadric, faces.reshape(-1), np.repeat(products, 3, axis=0))
    return quadric


def _quadric_error(quadric: Array, point: Array) -> Array:
    """p^T Q p for p = (x, y, z, 1), float32 [E], summed term by term in the order of `_TERMS`."""
    homogeneous = np.concatenate([point, np.ones_like(point[:, :1])], axis=1)
    error = np.zeros(len(point), np.float32)
    for k, (i, j) in enumerate(_TERMS):
        weight = quadric[:, k] if i == j else np.float32(2) * quadric[:, k]
        error += weight * homogeneous[:, i] * homogeneous[:, j]
    return error


def _shape_change(vertices: Array, faces: Array, pairs: Array, target: Array) -> tuple[Array, Array]:
    """Mean skinniness (0 equilateral .. 1 needle) of the faces that survive each collapse, and whether one flips."""
    edge, face, corner = _surviving_faces(faces, pairs, len(vertices))
    old = vertices[faces[face]]
    new = old.copy()
    new[np.arange(len(face)), corner] = target[edge]
    old_normal = np.cross(old[:, 1] - old[:, 0], old[:, 2] - old[:, 0])
    side = new[:, 2] - new[:, 1], new[:, 1] - new[:, 0], new[:, 2] - new[:, 0]
    new_normal = np.cross(side[1], side[2])
    area = np.float32(0.5) * np.sqrt(_dot(new_normal, new_normal))
    sides2 = _dot(side[0], side[0]) + _dot(side[1], side[1]) + _dot(side[2], side[2])
    quality = np.float32(4) * np.sqrt(np.float32(3)) * area / np.maximum(sides2, np.float32(1e-12))

    amount = np.bincount(edge, minlength=len(pairs))
    skinny = np.zeros(len(pairs), np.float32)
    np.add.at(skinny, edge, 1 - np.clip(quality, 0, 1))
    flips = np.zeros(len(pairs), bool)
    flips[edge[_dot(old_normal, new_normal) < 0]] = True
    return skinny / np.maximum(amount, 1).astype(np.float32), flips


def _surviving_faces(faces: Array, pairs: Array, vertex_count: int) -> tuple[Array, Array, Array]:
    """Every (edge, face, corner 0..2) where the face has one end of the edge, at that corner, and not the other."""
    flat = faces.reshape(-1)
    by_vertex = np.argsort(flat, kind="stable")
    degree = np.bincount(flat, minlength=vertex_count)
    start = np.cumsum(degree) - degree
    amount = degree[pairs].reshape(-1)
    row, within = ragged(amount)
    corner = by_vertex[start[pairs.reshape(-1)[row]] + within]
    edge, end = row // 2, row % 2
    keep = (faces[corner // 3] != pairs[edge, 1 - end][:, None]).all(axis=1)
    return edge[keep], corner[keep] // 3, corner[keep] % 3
