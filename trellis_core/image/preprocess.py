"""From a picture file to the square that the encoder sees: open, check, crop to the subject on black (spec A 2.1)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

MAX_PIXELS = 80_000_000
"""Largest picture accepted, checked on the header before anything is decoded."""
MIN_SIDE = 8
"""Shortest side accepted, in pixels."""
OPAQUE = 204
"""Alpha above this (80 %) belongs to the subject."""
MAX_SIDE = 1024
"""Longer pictures are shrunk to this before the crop."""

Matte = Callable[[Image.Image], Image.Image]

_TOO_BIG = "has more than 80 megapixels; shrink it first (1024 pixels a side are all that is used)."


def open_picture(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read a picture of any common kind as upright 8-bit RGB, or RGBA if it has any transparency.

    Of an animation the first frame is taken. Palette, grey, CMYK and 16-bit pictures are converted; a 16-bit grey
    picture keeps its upper 8 bits.

    Raises:
        InputError: no such file, not a picture, damaged, too small (`MIN_SIDE`), too big (`MAX_PIXELS`), or nothing in
            it is opaque.
    """
    name = str(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "The picture")
    picture = _open_header(source, name)
    with picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise InputError(f"{name} is {width} x {height} and {_TOO_BIG}")
        if min(width, height) < MIN_SIDE:
            raise InputError(f"{name} is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed.")
        try:
            picture.load()
            upright = ImageOps.exif_transpose(_to_8bit(picture))
        except Exception as error:  # Pillow's readers raise whatever they come across in a damaged file
            raise InputError(f"{name} is damaged or cut off ({error}); export it again.") from error
    if upright.mode == "RGBA" and upright.getchannel("A").getextrema()[1] <= OPAQUE:
        raise InputError(f"{name} is transparent everywhere: its alpha channel shows no subject.")
    return upright


def preprocess(picture: Image.Image, matte: Matte | None = None) -> Image.Image:
    """Cut a picture to the square around its subject, on black.

    Follows the original program to the bit: only mode RGBA with some alpha below 255 counts as cut out, the bounding
    box leaves out its last pixel, sides are halved downwards, values are truncated to 8 bit.

    Args:
        matte: turns an RGB picture into an RGBA one whose alpha shows the subject (see `image.matting`); used only if
            the picture is not cut out already.

    Returns:
        Square RGB picture, at most `MAX_SIDE` pixels a side.

    Raises:
        InputError: the picture is not cut out and there is no `matte`, or no subject is left.
    """
    cut_out = picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 255
    if not cut_out and matte is None:
        raise InputError(
            "The picture has no transparent background, so it is not known what to model. Use a PNG or WebP whose"
            " background is cut out; or let the background be removed (matting extra: pip install rembg); or, if the"
            " background is one plain colour, turn on plain-background keying."
        )
    scale = MAX_SIDE / max(picture.size)
    if scale < 1:
        width, height = picture.size
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
    if not cut_out:
        picture = matte(picture.convert("RGB"))
    square = picture.crop(_subject_square(np.asarray(picture.getchannel("A"))))
    rgba = np.asarray(square, dtype=np.float32) / 255
    return Image.fromarray((rgba[..., :3] * rgba[..., 3:] * 255).astype(np.uint8))


def _open_header(source: str | os.PathLike[str] | IO[bytes], name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(source)
    except FileNotFoundError:
        raise InputError(f"There is no picture file {name}.") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder, not a picture file.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} {_TOO_BIG}") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture in a known format; use PNG, JPEG or WebP.") from None
    except PermissionError:
        raise InputError(f"{name} may not be read; check its permissions.") from None
    except Exception as error:  # Pillow's readers raise whatever they come across in a damaged file
        raise InputError(f"{name} cannot be read as a picture ({error}).") from error


def _to_8bit(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGB", "RGBA"):
        return picture.convert("RGBA") if "transparency" in picture.info else picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey_to_8bit(picture)
    transparent = "transparency" in picture.info or picture.mode in ("LA", "PA", "La", "RGBa")
    return picture.convert("RGBA" if transparent else "RGB")


def _grey_to_8bit(picture: Image.Image) -> Image.Image:
    """Deep grey pictures: 16-bit integers, or floats where 1 is white."""
    values = np.asarray(picture).astype(np.float64)
    levels = np.nan_to_num(values) * 255 if picture.mode == "F" else values // 256
    grey = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")
    grey.info.update(picture.info)
    return grey


def _subject_square(alpha: np.ndarray) -> tuple[float, float, float, float]:
    """Crop box (left, top, right, bottom) around the opaque pixels of alpha uint8 [h, w]; may reach off the canvas."""
    rows, columns = np.nonzero(alpha > OPAQUE)
    if rows.size == 0:
        raise InputError("No subject was found: nothing in the picture is opaque after the background is taken away.")
    left, right, top, bottom = (int(v) for v in (columns.min(), columns.max(), rows.min(), rows.max()))
    half = max(right - left, bottom - top) // 2
    if half == 0:
        raise InputError("The subject is only a few pixels wide; use a picture in which it is larger.")
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half
