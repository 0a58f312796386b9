"""Small image operations on float arrays [h, w] or [h, w, C]."""

from __future__ import annotations

import numpy as np
from PIL import Image

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
    total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float32)
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


def centres(size: int) -> Array:
    """Places float32 [size, size, 2] of all pixels of a square image."""
    axis = np.arange(size, dtype=np.float32) + 0.5
    return np.stack(np.meshgrid(axis, axis), axis=2)


def resized(picture: Array, size: int) -> Array:
    """A picture float [S, S, 4] with straight alpha, its areas averaged, float32 [size, size, 4]."""
    premultiplied = np.concatenate([picture[..., :3] * picture[..., 3:], picture[..., 3:]], axis=2).astype(np.float32)
    planes = [Image.fromarray(premultiplied[..., k]).resize((size, size), Image.Resampling.BOX) for k in range(4)]
    small = np.stack([np.asarray(plane) for plane in planes], axis=2)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-4)
    return small.clip(0, 1)


def distance_inside(mask: Array) -> Array:
    """Distance in pixels along rows and columns, float32 [h, w], from each pixel of a bool mask to the nearest one outside.

    What lies beyond the image counts as outside.
    """
    found = np.where(np.pad(mask, 1), np.float32(sum(mask.shape)), np.float32(0))
    for axis in (0, 1):
        along = np.moveaxis(found, axis, 0)
        for k in range(1, len(along)):
            np.minimum(along[k], along[k - 1] + 1, out=along[k])
        for k in range(len(along) - 2, -1, -1):
            np.minimum(along[k], along[k + 1] + 1, out=along[k])
    return found[1:-1, 1:-1]


def signed_distance(mask: Array) -> Array:
    """`distance_inside` outside of a mask, minus that inside: negative inside, in pixels (city block)."""
    return distance_inside(~mask) - distance_inside(mask)
