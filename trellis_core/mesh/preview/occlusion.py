"""What keeps light from a point: a shadow map for the key light, crevices on the screen, closeness to the floor.

Lengths are in radii of the object's bounding sphere, positions in the studio frame (y up) around its centre.
"""

from __future__ import annotations

import numpy as np

from .scanline import barycentric, visible_layers

MAP_SIDE = 384
EXTENT = 1.1
"""The maps reach this far from the centre."""
TAPS = 8
REACH = 0.3
"""Surfaces farther apart than this do not shade each other's crevices."""


class DepthMap:
    """How far the object comes towards an eye infinitely far away.

    Args:
        axes: [3, 3] rows right, up, towards the eye.
    """

    def __init__(self, points: np.ndarray, faces: np.ndarray, axes: np.ndarray) -> None:
        self.axes = axes
        seen = points @ axes.T
        screen = (seen[:, :2] / EXTENT + 1) * (MAP_SIDE / 2)
        height = np.full(MAP_SIDE**2, -np.inf)
        layer = next(visible_layers(screen, seen[:, 2] + 2, faces, MAP_SIDE), None)
        if layer is not None:
            corner = faces[layer.face]
            centre = np.stack([layer.pixel % MAP_SIDE + 0.5, layer.pixel // MAP_SIDE + 0.5], axis=1)
            height[layer.pixel] = (barycentric(screen[corner], centre) * seen[corner, 2]).sum(1)
        self.height = height.reshape(MAP_SIDE, MAP_SIDE)

    def visible(self, points: np.ndarray, spread: float, bias: float, turn: np.ndarray) -> np.ndarray:
        """Share of a disc of radius `spread` around each point [N, 3] that the eye sees; `turn` [N] rotates the taps."""
        seen = points @ self.axes.T
        count = np.zeros(len(points), np.float32)
        for x, y in _disc(TAPS, turn):
            column = ((seen[:, 0] + spread * x) / EXTENT + 1) * (MAP_SIDE / 2)
            row = ((seen[:, 1] + spread * y) / EXTENT + 1) * (MAP_SIDE / 2)
            inside = (column >= 0) & (column < MAP_SIDE) & (row >= 0) & (row < MAP_SIDE)
            height = self.height[np.where(inside, row, 0).astype(np.int64), np.where(inside, column, 0).astype(np.int64)]
            count += ~inside | (height <= seen[:, 2] + bias)
        return count / TAPS


def look_along(towards: np.ndarray) -> np.ndarray:
    """Axes (right, up, towards) of an eye in direction `towards`, which must not be vertical."""
    right = np.cross([0.0, 1.0, 0.0], towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


class Floor:
    """A floor under the object and how much of the sky the object hides from it."""

    def __init__(self, points: np.ndarray, faces: np.ndarray) -> None:
        from scipy.ndimage import gaussian_filter

        self.height = float(points[np.unique(faces), 1].min())
        from_below = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
        gap = -DepthMap(points, faces, from_below).height - self.height
        per_radius = MAP_SIDE / 2 / EXTENT
        # Parts hanging higher cast a wider and fainter shade.
        self.shade = sum(
            weight * gaussian_filter((gap < reach).astype(np.float32), reach * per_radius, mode="constant")
            for reach, weight in ((0.03, 0.3), (0.12, 0.3), (0.4, 0.3))
        )

    def hidden_sky(self, points: np.ndarray) -> np.ndarray:
        """Share 0..1 of the sky hidden from floor points [N, 3]."""
        from scipy.ndimage import map_coordinates

        at = (points[:, [2, 0]] / EXTENT + 1) * (MAP_SIDE / 2) - 0.5
        return map_coordinates(self.shade, at.T, order=1, mode="constant")


def open_sky(position: np.ndarray, normal: np.ndarray, pixel: np.ndarray, width: int, focal: float) -> np.ndarray:
    """Ambient obscurance of the nearest surfaces, from their positions alone (McGuire et al. 2011, Alchemy).

    Args:
        position, normal: [N, 3] of the visible pixels, in camera axes with the eye at the origin.
        pixel: int64 [N] their places; width: side of the image; focal: its focal length in pixels.

    Returns:
        float32 [N], 1 in the open.
    """
    from scipy.ndimage import uniform_filter

    slot = np.full(width * width, -1, np.int32)
    slot[pixel] = np.arange(len(pixel), dtype=np.int32)
    column, row = pixel % width, pixel // width
    reach = REACH * focal / -position[:, 2]
    hidden = np.zeros(len(pixel), np.float32)
    for x, y in _disc(TAPS, pixel_turn(pixel, width)):
        other = np.clip(row + reach * y, 0, width - 1).astype(np.int64) * width
        other += np.clip(column + reach * x, 0, width - 1).astype(np.int64)
        neighbour = slot[other]
        offset = position[neighbour] - position
        square = (offset * offset).sum(1)
        rise = np.maximum((offset * normal).sum(1) - 0.015, 0)
        hidden += np.where(neighbour >= 0, rise * REACH / (square + 0.02 * REACH**2) * (square < 4 * REACH**2), 0)
    image, weight = np.zeros((2, width * width), np.float32)
    image[pixel], weight[pixel] = np.maximum(1 - hidden / TAPS, 0), 1
    smooth, cover = (uniform_filter(a.reshape(width, width), 5).ravel()[pixel] for a in (image, weight))
    return smooth / cover


def pixel_turn(pixel: np.ndarray, width: int) -> np.ndarray:
    """An angle for each pixel; the 16 angles of a 4 x 4 block are spread evenly and well mixed."""
    column, row = pixel % width % 4, pixel // width % 4
    return ((column * 4 + row) * 7 % 16).astype(np.float32) * (2 * np.pi / 16)


def _disc(count: int, turn: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` points [N], [N] on a golden spiral over the unit disc, turned by the angles `turn` [N]."""
    cos, sin = np.cos(turn), np.sin(turn)
    points = []
    for k in range(count):
        radius, angle = ((k + 0.5) / count) ** 0.5, k * 2.399963
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        points.append((x * cos - y * sin, x * sin + y * cos))
    return points
