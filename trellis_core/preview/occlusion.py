"""What keeps light from a point: a shadow map for the key light, crevices on the screen, closeness to the floor.

Lengths are in radii of the object's bounding sphere, positions in the studio frame (y up) around its centre.
"""

from __future__ import annotations

import numpy as np

from ..mesh.scanline import barycentric, dot, visible_layers

MAP_SIDE = 384
TAPS = 8
REACH = 0.3
"""Surfaces farther apart than this do not shade each other's crevices."""


class DepthMap:
    """How far the object comes towards an eye infinitely far away.

    Args:
        axes: [3, 3] rows right, up, towards the eye.
        extent: the map reaches this far from the centre.
    """

    def __init__(self, points: np.ndarray, faces: np.ndarray, axes: np.ndarray, extent: float) -> None:
        self.axes, self.extent = axes, extent
        seen = points @ axes.T
        screen = (seen[:, :2] / extent + 1) * (MAP_SIDE / 2)
        height = np.full(MAP_SIDE**2, -np.inf)
        layer = next(visible_layers(screen, seen[:, 2] + 2, faces, MAP_SIDE), None)
        if layer is not None:
            corner = faces[layer.face]
            centre = np.stack([layer.pixel % MAP_SIDE + 0.5, layer.pixel // MAP_SIDE + 0.5], axis=1)
            height[layer.pixel] = dot(barycentric(screen[corner], centre), seen[corner, 2])
        self.height = height.astype(np.float32).reshape(MAP_SIDE, MAP_SIDE)

    def visible(self, points: np.ndarray, spread: float, bias: float, taps: np.ndarray) -> np.ndarray:
        """Share [N] of a disc of radius `spread` around each point [N, 3] that the eye sees; `taps` from `tap_set`."""
        seen = points @ self.axes.T.astype(points.dtype)
        per_radius = MAP_SIDE / 2 / self.extent
        column, row = (seen[:, axis] * per_radius + MAP_SIDE / 2 for axis in (0, 1))
        level = seen[:, 2] + bias
        count = np.zeros(len(points), np.float32)
        for k in range(TAPS):
            # The outermost texels are empty, so points off the map are in the light.
            x = np.clip(column + spread * per_radius * _DISC[taps, k, 0], 0, MAP_SIDE - 1).astype(np.int32)
            y = np.clip(row + spread * per_radius * _DISC[taps, k, 1], 0, MAP_SIDE - 1).astype(np.int32)
            count += self.height[y, x] <= level
        return count / TAPS


def look_along(towards: np.ndarray) -> np.ndarray:
    """Axes (right, up, towards) of an eye in direction `towards`, which must not be vertical."""
    right = np.cross([0.0, 1.0, 0.0], towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


class Floor:
    """A floor under the object and how much of the sky the object hides from it."""

    EXTENT = 2.2

    def __init__(self, points: np.ndarray, faces: np.ndarray) -> None:
        from scipy.ndimage import gaussian_filter

        self.height = float(points[np.unique(faces), 1].min())
        from_below = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
        gap = -DepthMap(points, faces, from_below, self.EXTENT).height - self.height
        per_radius = MAP_SIDE / 2 / self.EXTENT
        # Parts hanging higher cast a wider and fainter shade.
        self.shade = sum(
            weight * gaussian_filter((gap < reach).astype(np.float32), reach * per_radius, mode="constant")
            for reach, weight in ((0.03, 0.3), (0.12, 0.3), (0.4, 0.3))
        )

    def hidden_sky(self, points: np.ndarray) -> np.ndarray:
        """Share 0..1 of the sky hidden from floor points [N, 3]."""
        from scipy.ndimage import map_coordinates

        at = (points[:, [2, 0]] / self.EXTENT + 1) * (MAP_SIDE / 2) - 0.5
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
    hidden, taps = np.zeros(len(pixel), np.float32), tap_set(pixel, width)
    for k in range(TAPS):
        x = np.clip(column + reach * _DISC[taps, k, 0], 0, width - 1).astype(np.int64)
        y = np.clip(row + reach * _DISC[taps, k, 1], 0, width - 1).astype(np.int64)
        neighbour = slot[y * width + x]
        offset = position[neighbour] - position
        square = dot(offset, offset)
        rise = np.maximum(dot(offset, normal) - 0.015, 0)
        hidden += np.where(neighbour >= 0, rise * REACH / (square + 0.02 * REACH**2) * (square < 4 * REACH**2), 0)
    image, weight = np.zeros((2, width * width), np.float32)
    image[pixel], weight[pixel] = np.maximum(1 - hidden / TAPS, 0), 1
    smooth, cover = (uniform_filter(a.reshape(width, width), 5).ravel()[pixel] for a in (image, weight))
    return smooth / cover


def tap_set(pixel: np.ndarray, width: int) -> np.ndarray:
    """Which of the 16 rows of `_DISC` a pixel samples with: neighbours differ, each 4 x 4 block uses all."""
    return (pixel % width % 4 * 4 + pixel // width % 4) * 7 % 16


def _disc() -> np.ndarray:
    """float32 [16, TAPS, 2]: a golden spiral over the unit disc, turned in 16 ways."""
    k = np.arange(TAPS)
    angle = k * 2.399963 + np.arange(16)[:, None] * (2 * np.pi / 16)
    radius = np.sqrt((k + 0.5) / TAPS)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).astype(np.float32)


_DISC = _disc()
