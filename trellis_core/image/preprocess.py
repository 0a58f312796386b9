"""From a picture to the square that the encoder sees: crop to the subject on black (docs/method/networks.md)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from ..errors import InputError
from .reading import MIN_SIDE, OPAQUE

MAX_SIDE = 1024
"""Longer pictures are shrunk to this before the crop."""

Matte = Callable[[Image.Image], Image.Image]


def preprocess(picture: Image.Image, matte: Matte | None = None) -> Image.Image:
    """Cut a picture to the square around its subject, on black.

    Follows the original program to the bit: only mode RGBA with some alpha below 255 counts as cut out, the bounding
    box leaves out its last pixel, sides are halved downwards, values are truncated to 8 bit. Other than there, a subject
    that is small in a large picture is cut out of it before the picture is shrunk, and so keeps its pixels.

    Args:
        matte: turns an RGB picture into an RGBA one whose alpha shows the subject (see `image.matting`); used only if
            the picture is not cut out already.

    Returns:
        Square RGB picture, at most `MAX_SIDE` pixels a side.

    Raises:
        InputError: the picture is not cut out and there is no `matte`, or no subject is left.
    """
    rgba = np.asarray(subject_of(picture, matte), dtype=np.float32) / 255
    return Image.fromarray((rgba[..., :3] * rgba[..., 3:] * 255).astype(np.uint8))


def subject_of(picture: Image.Image, matte: Matte | None = None) -> Image.Image:
    """The same square as RGBA, before it is laid on black."""
    cut_out = picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).min() < 255
    if not cut_out and matte is None:
        raise InputError(
            "The picture has no transparent background, so it is not known what to model. Use a PNG or WebP whose"
            " background is cut out; or let the background be removed (matting extra: pip install rembg); or, if the"
            " background is one plain colour, turn on plain-background keying."
        )
    if max(picture.size) > MAX_SIDE:
        picture = _shrunk(_surroundings(picture) if cut_out else picture)
    if matte is not None and not cut_out:
        picture = matte(picture.convert("RGB"))
    return picture.crop(_subject_square(np.asarray(picture.getchannel("A"))))


def _surroundings(picture: Image.Image) -> Image.Image:
    """The part of a picture around a subject that takes less than half of it; else the whole picture."""
    left, top, right, bottom = _subject_box(np.asarray(picture.getchannel("A")))
    side = max(right - left, bottom - top)
    if 2 * side >= max(picture.size):
        return picture
    margin = side // 4 + MIN_SIDE  # the crop to a square that follows has to find what it would have found
    return picture.crop(
        (max(left - margin, 0), max(top - margin, 0), min(right + margin, picture.width), min(bottom + margin, picture.height))
    )


def _shrunk(picture: Image.Image) -> Image.Image:
    scale = min(MAX_SIDE / max(picture.size), 1)
    if scale == 1:
        return picture
    width, height = (int(side * scale) for side in picture.size)
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"The picture is {picture.width} x {picture.height} pixels: shrunk to {MAX_SIDE}, hardly anything is left of its "
            "shorter side. Crop it to the object."
        )
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _subject_square(alpha: np.ndarray) -> tuple[float, float, float, float]:
    """Crop box (left, top, right, bottom) around the opaque pixels of alpha uint8 [h, w]; may reach off the canvas."""
    left, top, right, bottom = _subject_box(alpha)
    half = max(right - left, bottom - top) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half


def _subject_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row with opaque pixels: left, top, right, bottom."""
    rows, columns = (np.flatnonzero((alpha > OPAQUE).any(axis)) for axis in (1, 0))
    if rows.size == 0:
        raise InputError("No subject was found: nothing in the picture is opaque after the background is taken away.")
    left, right, top, bottom = (int(v) for v in (columns[0], columns[-1], rows[0], rows[-1]))
    if max(right - left, bottom - top) < MIN_SIDE - 1:
        raise InputError(
            f"The subject is only a few pixels wide ({right - left + 1} x {bottom - top + 1} of {alpha.shape[1]} x "
            f"{alpha.shape[0]}): use a picture in which it is larger."
        )
    return left, top, right, bottom
