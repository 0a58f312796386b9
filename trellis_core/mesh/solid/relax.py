"""Moving the vertices of a quad surface: into gaps, and for evener quads."""

from __future__ import annotations

import math

import numpy as np

from ...context import check_obeyed
from ..topology import Array

_ROUNDS = 30
_STEP = 0.5
_FLAT = 0.97  # how far the normals around a vertex must agree for it to slide; below, it begins to stay where it is
_FURTHEST = 0.5  # steps that a vertex may move, per voxel of band


def relax(vertices: Array, corner: Array, free: Array, start: Array) -> Array:
    """Stretch `free` vertices, bool [V], smoothly between the others.

    Args:
        vertices: float64 [V, 3]; free ones may be NaN.
        corner: int [Q, 4] rings.
        start: float [V, 3], where free vertices without a place begin.
    """
    if not free.any():
        return vertices
    vertices = np.where(np.isnan(vertices), start, vertices)
    ring = corner[free[corner].any(axis=1)]
    a, b = ring.reshape(-1), np.roll(ring, -1, axis=1).reshape(-1)
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    rows = free[a]
    a, b = a[rows], b[rows]
    moving, slot = np.unique(a, return_inverse=True)
    amount = np.bincount(slot)[:, None]
    for _ in range(_ROUNDS):
        check_obeyed()
        vertices[moving] = np.stack([np.bincount(slot, vertices[b, k]) for k in range(3)], axis=1) / amount
    return vertices


def even_out(vertices: Array, corner: Array, band: float, share: float) -> Array:
    """Smooth a surface for evener quads.

    Vertices slide along the surface towards the mean of the quads around them, not across creases; with a band above 1 they
    also leave it, fully with a band of 4.

    Args:
        vertices: float64 [V, 3] in lattice steps.
        corner: int [Q, 4] rings.
        band: 0..4, how many passes are made and how far each vertex may go.
        share: 0..1, of the way that is gone in the end.
    """
    normal, agree = _normals(vertices, corner)
    slide = np.clip((agree - _FLAT) / (1 - _FLAT), 0, 1)[:, None]
    leave = min(max((band - 1) / 3, 0.0), 1.0)
    slide = slide + (1 - slide) * leave
    amount = np.maximum(np.bincount(corner.reshape(-1), minlength=len(vertices)), 1)[:, None]
    moved = vertices
    for _ in range(math.ceil(band)):
        check_obeyed()
        middle = sum(moved[corner[:, k]] for k in range(4)) / 4
        total = _gathered(middle, corner, len(vertices))
        step = total / amount - moved
        out = np.einsum("vk,vk->v", step, normal)[:, None] * normal
        moved = moved + _STEP * (slide * (step - out) + leave * out)
    arm = moved - vertices
    length = np.linalg.norm(arm, axis=1, keepdims=True)
    return vertices + share * arm * np.minimum(1, _FURTHEST * band / np.maximum(length, 1e-12))


def _normals(vertices: Array, corner: Array) -> tuple[Array, Array]:
    """Unit normals float64 [V, 3], and the length of the sum of unit quad normals over their number, 1 where all agree."""
    across = np.cross(vertices[corner[:, 2]] - vertices[corner[:, 0]], vertices[corner[:, 3]] - vertices[corner[:, 1]])
    across /= np.linalg.norm(across, axis=1, keepdims=True).clip(1e-30)
    total = _gathered(across, corner, len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    amount = np.maximum(np.bincount(corner.reshape(-1), minlength=len(vertices)), 1)
    return total / length.clip(1e-30), length[:, 0] / amount


def _gathered(of_quad: Array, corner: Array, count: int) -> Array:
    """Sum float64 [count, 3] at each vertex of the values [Q, 3] of its quads."""
    total = np.zeros((count, 3))
    for axis in range(3):
        value = np.ascontiguousarray(of_quad[:, axis])
        for k in range(4):
            total[:, axis] += np.bincount(corner[:, k], value, count)
    return total
