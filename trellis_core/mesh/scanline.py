"""A z-buffer in numpy: triangles to visible pixels, all spans of all triangles at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..mesh.ragged import ragged

FACES_AT_ONCE = 200_000


@dataclass(frozen=True)
class Layer:
    """One surface per pixel: pixel int64 [N] (row * width + column, ascending) and the face int64 [N] seen there."""

    pixel: np.ndarray
    face: np.ndarray


def visible_layers(screen: np.ndarray, nearness: np.ndarray, faces: np.ndarray, width: int) -> Iterator[Layer]:
    """The surfaces behind each pixel of a square image, nearest first; both sides of a triangle are seen.

    A pixel belongs to a triangle if its centre does; a centre on an edge belongs to one of the two neighbours.

    Args:
        screen: float64 [V, 2] pixel positions (x right, y down), the first pixel covers [0, 1)^2.
        nearness: float64 [V] > 0, larger is nearer, affine on the screen: 1/z in perspective, a - z without.
        faces: int [F, 3].
        width: side of the image in pixels.
    """
    pixel, rank = [], []
    scale = 1 / nearness.max() if nearness.size else 1.0
    for start in range(0, len(faces), FACES_AT_ONCE):
        some = faces[start : start + FACES_AT_ONCE]
        at, near, face = _fragments(screen[some], nearness[some] * scale, width)
        pixel.append(at)
        # Depth above face: comparing the keys compares the depths, and equal depths have one answer.
        bits = near.astype(np.float32).view(np.uint32).astype(np.uint64)
        rank.append(((np.uint64(0xFFFFFFFF) - bits) << np.uint64(32)) | (face + start).astype(np.uint64))
    if not pixel:
        return
    pixels, ranks = np.concatenate(pixel), np.concatenate(rank)
    while pixels.size:
        best = np.full(width * width, np.iinfo(np.uint64).max)
        np.minimum.at(best, pixels, ranks)
        seen = np.flatnonzero(best != np.iinfo(np.uint64).max)
        yield Layer(seen, (best[seen] & np.uint64(0xFFFFFFFF)).astype(np.int64))
        behind = ranks > best[pixels]
        pixels, ranks = pixels[behind], ranks[behind]


def barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Screen-space weights [N, 3] of points [N, 2] in triangles [N, 3, 2], clipped to the triangle."""
    a, b, c = corners[:, 0] - points, corners[:, 1] - points, corners[:, 2] - points
    first, second, third = _cross(b, c), _cross(c, a), _cross(a, b)
    total = first + second + third
    total = np.where(total == 0, np.inf, total)
    first, second = np.clip(first / total, 0, 1), np.clip(second / total, 0, 1)
    second = np.minimum(second, 1 - first)
    return np.stack([first, second, 1 - first - second], axis=1)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row: [N, C], [N, C] -> [N]."""
    return np.einsum("nc,nc->n", a, b)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _fragments(corners: np.ndarray, near: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixel, nearness, face) of every covered pixel of every triangle; corners [F, 3, 2], near [F, 3]."""
    y = corners[..., 1]
    first = np.clip(np.ceil(y.min(1) - 0.5), 0, width).astype(np.int64)
    stop = np.clip(np.ceil(y.max(1) - 0.5), 0, width).astype(np.int64)
    face, row = _ranges(first, stop)
    left, right = _span(corners, face, row + 0.5)
    start = np.clip(np.ceil(left - 0.5), 0, width).astype(np.int64)
    end = np.clip(np.ceil(right - 0.5), 0, width).astype(np.int64)
    span, column = _ranges(start, end)
    face, row = face[span], row[span]
    # Nearness is a plane over the screen; slivers would extrapolate it, so it is held to the range of the corners.
    slope, origin = _planes(corners, near)
    value = origin[face] + slope[face, 0] * (column + 0.5) + slope[face, 1] * (row + 0.5)
    return row * width + column, np.clip(value, near.min(1)[face], near.max(1)[face]), face


def _ranges(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every integer of every range [start, stop), with the index of its range in front."""
    count = np.maximum(stop - start, 0)
    owner, offset = ragged(count)
    return owner, start[owner] + offset


def _span(corners: np.ndarray, face: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the line at height y [N] enters and leaves triangles `face` [N]."""
    left, right = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        a, b = corners[:, i], corners[:, j]
        # From the upper end to the lower, so that both triangles of an edge compute the same crossing.
        swap = (a[:, 1] > b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] > b[:, 0]))
        top, bottom = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
        rise = bottom[:, 1] - top[:, 1]
        slope = (bottom[:, 0] - top[:, 0]) / np.where(rise == 0, 1, rise)
        x = top[face, 0] + (y - top[face, 1]) * slope[face]
        crosses = (top[face, 1] <= y) & (y < bottom[face, 1])
        left = np.where(crosses, np.minimum(left, x), left)
        right = np.where(crosses, np.maximum(right, x), right)
    return np.where(left <= right, left, 0), np.where(left <= right, right, 0)


def _planes(corners: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope [F, 2] and origin [F] of the planes through the corners' values."""
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p, q = value[:, 1] - value[:, 0], value[:, 2] - value[:, 0]
    area = _cross(u, v)
    area = np.where(area == 0, np.inf, area)
    slope = np.stack([p * v[:, 1] - q * u[:, 1], q * u[:, 0] - p * v[:, 0]], axis=1) / area[:, None]
    return slope, value[:, 0] - dot(slope, corners[:, 0])
