"""The reference's parallel edge collapse (spec B 5.4): rounds of independent collapses under a rising cost threshold.

Sums run in float32 and in index order: which of two nearly equal edges collapses depends on the last bit.
"""

from __future__ import annotations

import numpy as np

from ...run import QUIET, RunContext
from ..topology import Array, compact, edges, face_normals

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
    onto = np.arange(len(vertices))
    onto[high] = low
    moved = onto[faces].astype(faces.dtype)
    alive = (moved != np.roll(moved, -1, axis=1)).all(axis=1)
    return compact(vertices, moved[alive])[:2]


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
    quadric = quadric[low] + quadric[high]
    point = np.concatenate([target, np.ones_like(target[:, :1])], axis=1)
    error = np.einsum("ei,eij,ej->e", point, quadric, point)

    skinny, flips = _shape_change(vertices, faces, pairs, target)
    length2 = ((b - a) ** 2).sum(axis=1)
    cost = error + np.float32(LAMBDA_LENGTH) * length2 + np.float32(LAMBDA_SKINNY) * skinny * length2
    cost[flips] = np.inf
    return target, cost.astype(np.float32)


def _vertex_quadrics(vertices: Array, faces: Array) -> Array:
    """Sum of plane quadrics of the incident faces, unit normals, float32 [V, 4, 4]."""
    normal = face_normals(vertices, faces)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    offset = -(normal * vertices[faces[:, 0]]).sum(axis=1, keepdims=True)
    plane = np.concatenate([normal, offset], axis=1)
    quadric = np.zeros((len(vertices), 16), np.float32)
    outer = (plane[:, :, None] * plane[:, None, :]).reshape(-1, 16)
    np.add.at(quadric, faces.reshape(-1), np.repeat(outer, 3, axis=0))
    return quadric.reshape(-1, 4, 4)


def _shape_change(vertices: Array, faces: Array, pairs: Array, target: Array) -> tuple[Array, Array]:
    """Mean skinniness (0 equilateral .. 1 needle) of the faces that survive each collapse, and whether one flips."""
    edge, end, face, corner = _surviving_faces(faces, pairs, len(vertices))
    old = vertices[faces[face]]
    new = old.copy()
    new[np.arange(len(face)), corner] = target[edge]
    old_normal = np.cross(old[:, 1] - old[:, 0], old[:, 2] - old[:, 0])
    new_normal = np.cross(new[:, 1] - new[:, 0], new[:, 2] - new[:, 0])
    area = np.float32(0.5) * np.linalg.norm(new_normal, axis=1)
    sides2 = ((new - np.roll(new, -1, axis=1)) ** 2).sum(axis=(1, 2))
    quality = np.clip(np.float32(4 * 3**0.5) * area / np.maximum(sides2, np.float32(1e-12)), 0, 1)

    amount = np.bincount(edge, minlength=len(pairs))
    total = np.zeros(len(pairs), np.float32)
    np.add.at(total, edge, 1 - quality)
    skinny = np.divide(total, amount, out=np.zeros_like(total), where=amount > 0, casting="unsafe")
    flips = np.zeros(len(pairs), bool)
    flips[edge[(old_normal * new_normal).sum(axis=1) < 0]] = True
    return skinny, flips


def _surviving_faces(faces: Array, pairs: Array, vertex_count: int) -> tuple[Array, Array, Array, Array]:
    """Every (edge, end 0/1, face, corner of that end in the face) with the end in the face and the other end not."""
    flat = faces.reshape(-1)
    by_vertex = np.argsort(flat, kind="stable")
    degree = np.bincount(flat, minlength=vertex_count)
    start = np.cumsum(degree) - degree
    amount = degree[pairs].reshape(-1)
    row = np.repeat(np.arange(amount.size), amount)
    within = np.arange(len(row)) - np.repeat(np.cumsum(amount) - amount, amount)
    corner = by_vertex[start[pairs.reshape(-1)[row]] + within]
    edge, end = row // 2, row % 2
    keep = (faces[corner // 3] != pairs[edge, 1 - end][:, None]).all(axis=1)
    edge, end, corner = edge[keep], end[keep], corner[keep]
    return edge, end, corner // 3, corner % 3
