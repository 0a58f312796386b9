"""Small misfits between a picture and a model seen through one camera: a smooth displacement field (demons, Thirion 1998)."""

from __future__ import annotations

import numpy as np

from .images import blur, centres, sample, signed_distance

Array = np.ndarray
_LEVELS = (48, 96, 192)
_ROUNDS = 12
_STIFF = 0.035  # standard deviation of the smoothing, in sides of the picture
_FURTHEST = 0.05  # sides of the picture that a pixel may move
_REACH = 0.08  # sides of the picture up to which distances to the outline count


def register(model: Array, picture: Array, coarse: float) -> Array:
    """Where each pixel of the model's image lies in the picture.

    Args:
        model, picture: float32 [S, S, 4] in 0..1, straight alpha.
        coarse: size of the smallest details that the model can show, in sides of the picture. Finer ones of the picture would
            only pull it about.

    Returns:
        float32 [S, S, 2] steps (x, y) in pixels: what the model shows at p, the picture shows at p + step.
    """
    size = len(model)
    field = np.zeros((_LEVELS[0], _LEVELS[0], 2), np.float32)
    for level in _LEVELS:
        field = _resized(field, level) * (level / len(field))
        wanted, given = (_features(_resized(image, level), coarse * level) for image in (model, picture))
        for _ in range(_ROUNDS):
            warped = _warped(given, field)
            differ = wanted - warped
            down, across = np.gradient(warped, axis=(0, 1))
            steep = (across**2 + down**2).sum(axis=2)
            weight = 1 / (steep + (differ**2).sum(axis=2) * 0.5 + 1e-4)
            push = np.stack([(differ * across).sum(axis=2), (differ * down).sum(axis=2)], axis=2) * weight[..., None]
            field = blur(field + push, _STIFF * level)
            length = np.linalg.norm(field, axis=2, keepdims=True)
            field = field * np.minimum(1, _FURTHEST * level / np.maximum(length, 1e-6))
    return _resized(field, size) * (size / len(field))


def _features(image: Array, sigma: float) -> Array:
    """Distance to the outline and, inside, colours without their local mean: what light does not change."""
    size, mask = len(image), image[..., 3:] > 0.5
    distance = np.clip(signed_distance(mask[..., 0])[..., None] / (_REACH * size), -1, 1)
    color = image[..., :3] * image[..., 3:]
    color = blur(color, sigma)
    local = color - blur(color, 0.08 * size)
    return np.concatenate([1.5 * distance, 1.5 * local * mask], axis=2).astype(np.float32)


def _warped(image: Array, field: Array) -> Array:
    size = len(image)
    return sample(image, (centres(size) + field).reshape(-1, 2)).reshape(image.shape)


def _resized(image: Array, size: int) -> Array:
    """Bilinear after a blur that fits the step."""
    if size == len(image):
        return image
    smooth = blur(image, 0.5 * len(image) / size) if size < len(image) else image
    return sample(smooth, (centres(size) * (len(image) / size)).reshape(-1, 2)).reshape(size, size, -1).astype(np.float32)
