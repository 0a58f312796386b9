"""Small image operations on float arrays [h, w] or [h, w, C]."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur by three box blurs a direction; edges are continued."""
    if sigma < 0.3:
        return image
    width = int(np.floor(np.sqrt(12 * sigma * sigma / 3 + 1)))
    radius = max((width - 1) // 2, 1)
    for _ in range(3):
        for axis in (0, 1):
            image = _box(image, radius, axis)
    return image


def _box(image: Array, radius: int, axis: int) -> Array:
    pad = [(0, 0)] * image.ndim
    pad[axis] = (radius + 1, radius)
    total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
    count = image.shape[axis]
    high = np.take(total, np.arange(2 * radius + 1, 2 * radius + 1 + count), axis=axis)
    low = np.take(total, np.arange(count), axis=axis)
    return ((high - low) / (2 * radius + 1)).astype(np.float32)


def masked_blur(image: Array, mask: Array, sigma: float) -> Array:
    """Blur of an image [h, w, C] that looks only at pixels with weight `mask` [h, w] 0..1."""
    weight = blur(mask.astype(np.float32), sigma)
    return blur(image * mask[..., None], sigma) / np.maximum(weight, 1e-4)[..., None]


def sample(image: Array, place: Array) -> Array:
    """Bilinear samples [N, C] of an image [h, w, C] at places [N, 2] in pixels (x, y), pixel centres at .5; edges continue."""
    height, width = image.shape[:2]
    x = np.clip(place[:, 0] - 0.5, 0, width - 1)
    y = np.clip(place[:, 1] - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    u, v = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - u) + image[top, left + 1] * u
    lower = image[top + 1, left] * (1 - u) + image[top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


def distance_inside(mask: Array) -> Array:
    """About the distance in pixels, float32 [h, w], from each pixel of a bool mask to the nearest pixel outside of it."""
    height, width = mask.shape
    far = np.float32(height + width)
    found = np.where(mask, far, 0).astype(np.float32)
    found[[0, -1]] = np.minimum(found[[0, -1]], 1)
    found[:, [0, -1]] = np.minimum(found[:, [0, -1]], 1)
    for axis in (0, 1):  # exact along lines first, then the lower envelope of cones over a window
        along = np.moveaxis(found, axis, 0)
        for order in (range(1, len(along)), range(len(along) - 2, -1, -1)):
            step = 1 if isinstance(order, range) and order.step == 1 else -1
            for k in order:
                np.minimum(along[k], along[k - step] + 1, out=along[k])
    return found


def signed_distance(mask: Array) -> Array:
    """`distance_inside` outside of a mask, minus that inside: negative inside, in pixels (city block)."""
    return distance_inside(~mask) - distance_inside(mask)
