"""Picture files as people have them, read as upright 8-bit sRGB: whatever the depth, colours, transparency and turn."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from math import ceil, sqrt
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ..errors import InputError

MAX_PIXELS = 80_000_000
"""Largest picture accepted, checked on the header before anything is decoded."""
MIN_SIDE = 8
"""Shortest side accepted, in pixels."""
OPAQUE = 204
"""Alpha above this (80 %) belongs to the subject."""
FINE_PIXELS = 1 << 23
"""Pictures with more are cut to their subject and shrunk as they are read, so that small files cannot take much memory."""
BLOCK_PIXELS = 1 << 20
"""Pixels that are converted at a time where numbers are wider than in the picture."""

_TOO_BIG = "has more than 80 megapixels; shrink it first (1024 pixels a side are all that is used)."
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def open_picture(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read a picture of any common kind as upright 8-bit RGB in sRGB, or RGBA with straight alpha if any of it is
    transparent.

    Of an animation the first frame is taken. Palette, grey, CMYK and 16-bit pictures are converted, the last keep their
    upper 8 bits; colours with an ICC profile of their own become sRGB. An alpha that leaves everything as good as opaque
    says nothing and is dropped.

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
            deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
            picture.load()
            known, profile = dict(picture.info), picture.info.get("icc_profile")
            upright = picture  # turned in place: a copy of a large picture is large
            ImageOps.exif_transpose(upright, in_place=True)
            upright.info.update({key: known[key] for key in ("transparency",) if key in known})
            read = _in_srgb(_bounded(_to_8bit(upright, deep)), upright.mode, profile)
        except Exception as error:  # Pillow's readers raise whatever they come across in a damaged file
            raise InputError(f"{name} is damaged or cut off ({error}); export it again.") from error
    if read.mode != "RGBA":
        return read
    extremes: Any = read.getchannel("A").getextrema()
    least, most = extremes
    if most <= OPAQUE:
        raise InputError(f"{name} is transparent everywhere: its alpha channel shows no subject.")
    return read.convert("RGB") if least > OPAQUE else _straight(read)


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
        return _open_other(source, name)
    except PermissionError:
        raise InputError(f"{name} may not be read; check its permissions.") from None
    except Exception as error:  # Pillow's readers raise whatever they come across in a damaged file
        raise InputError(f"{name} cannot be read as a picture ({error}).") from error


def _open_other(source: str | os.PathLike[str] | IO[bytes], name: str) -> Image.Image:
    """A picture of a kind that needs another package; says which where it is not installed."""
    head = _head(source)
    kind = head[8:12] if head[4:8] == b"ftyp" else b""
    if kind in _HEIC_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise InputError(
                f"{name} is a HEIC picture, as phones make them: install the package that reads them (pip install "
                "pillow-heif), or export it as JPEG or PNG."
            ) from None
        try:
            return HeifImageFile(source)
        except Exception as error:  # as with Pillow's own readers
            raise InputError(f"{name} is damaged or cut off ({error}); export it again.") from error
    if kind.startswith(b"avi") and not features.check("avif"):
        raise InputError(f"{name} is an AVIF picture, which the installed Pillow cannot read: pip install 'pillow>=11.3'.")
    if b"<svg" in head or head.lstrip().startswith(b"<?xml"):
        raise InputError(f"{name} is a drawing of lines (SVG), not a picture of pixels: export it as PNG.")
    raise InputError(f"{name} is not a picture in a known format; use PNG, JPEG or WebP.")


def _head(source: str | os.PathLike[str] | IO[bytes]) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return file.read(512)
    source.seek(0)
    head = source.read(512)
    source.seek(0)
    return head


def _to_8bit(picture: Image.Image, deep: bool) -> Image.Image:
    """RGB, RGBA, L or LA, or CMYK without transparency, whose profile speaks of inks.

    Args:
        deep: the file has 16 bits a channel: its transparent colour, if there is one, is told in these.
    """
    key = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey_to_8bit(picture, key)
    if picture.mode in ("La", "RGBa"):
        return picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if deep and isinstance(key, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None:
        return picture.convert("RGBA")
    if picture.mode in ("RGB", "RGBA", "L", "LA", "CMYK"):
        return picture
    return picture.convert("RGBA" if picture.mode == "PA" else "RGB")


def _grey_to_8bit(picture: Image.Image, key: Any) -> Image.Image:
    """Deep grey pictures: 16-bit integers, or floats where 1 is white. Pixels of the value `key` are transparent."""
    values = np.asarray(picture)
    levels = np.empty(values.shape, np.uint8)
    for rows in _blocks(values):
        wide = values[rows].astype(np.float64)
        wide = np.nan_to_num(wide) * 255 if picture.mode == "F" else wide // 256
        levels[rows] = np.clip(wide, 0, 255)
    grey = Image.fromarray(levels)
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _blocks(pixels: np.ndarray) -> list[slice]:
    """Rows of [h, w, ...], some at a time."""
    step = max(BLOCK_PIXELS // max(pixels.shape[1], 1), 1)
    return [slice(top, top + step) for top in range(0, len(pixels), step)]


def _bounded(picture: Image.Image) -> Image.Image:
    """A picture of more than `FINE_PIXELS` cut to the surroundings of what is opaque, then shrunk by a whole number.

    What is left shows the subject at twice the size that is used at least, or in all its pixels.
    """
    box = (0, 0, *picture.size)
    if picture.width * picture.height <= FINE_PIXELS:
        return picture
    if "A" in picture.getbands():
        opaque = picture.getchannel("A").point([255 * (value > OPAQUE) for value in range(256)]).getbbox() or box
        margin = max(opaque[2] - opaque[0], opaque[3] - opaque[1]) // 4 + MIN_SIDE
        left, top = max(opaque[0] - margin, 0), max(opaque[1] - margin, 0)
        box = left, top, min(opaque[2] + margin, picture.width), min(opaque[3] + margin, picture.height)
    factor = ceil(sqrt((box[2] - box[0]) * (box[3] - box[1]) / FINE_PIXELS))
    return picture.crop(box) if factor == 1 else picture.reduce(factor, box)


def _in_srgb(picture: Image.Image, mode: str, profile: bytes | None) -> Image.Image:
    """RGB or RGBA in sRGB. A profile that cannot be used is passed over, as viewers do.

    Args:
        picture: from `_to_8bit`. mode: what the file had, which the profile speaks of.
    """
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    colours = picture.convert("L" if picture.mode == "LA" else "RGB") if alpha is not None else picture
    if mode in ("L", "LA", "1") or mode.startswith("I"):
        colours = colours.convert("L")  # a profile of greys needs a picture of greys
    convert = _conversion(profile, colours.mode)
    result = convert(colours) if convert else colours.convert("RGB")
    if alpha is not None:
        result.putalpha(alpha)
    result.info.clear()
    return result


def _conversion(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    if not profile or not features.check("littlecms2"):
        return None
    from PIL import ImageCms

    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(theirs) or "").lower():
            return None
        transform = ImageCms.buildTransform(theirs, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return lambda colours: ImageCms.applyTransform(colours, transform) or colours


def _straight(picture: Image.Image) -> Image.Image:
    """The picture with straight alpha, if its colours were multiplied with their alpha before, as some programs do.

    Along the rim each half transparent pixel is compared with the opaque one beside it: as it is, and divided by its
    alpha. Multiplied colours are never above their alpha, and nearer to their neighbours when divided.
    """
    rgba = np.asarray(picture)
    alpha = rgba[..., 3].astype(np.int16)
    partly = (alpha > 8) & (alpha < 248)
    if not partly.any() or (rgba[..., :3].max(2) > alpha + 1)[alpha > 0].mean() > 0.001:
        return picture
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        opaque = np.roll(alpha, step, axis) > 250
        rim = partly & opaque
        found.append((rgba[rim].astype(np.float32), np.roll(rgba, step, axis)[rim][:, :3].astype(np.float32)))
    rim, beside = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(rim) < 16:
        return picture
    as_it_is = np.abs(rim[:, :3] - beside).mean()
    divided = np.abs(np.minimum(rim[:, :3] * (255 / rim[:, 3:]), 255) - beside).mean()
    if as_it_is < 8 or divided > as_it_is / 2:
        return picture
    colours = np.where(alpha[..., None] > 0, rgba[..., :3] * (255.0 / np.maximum(alpha, 1)[..., None]), 0).clip(0, 255)
    return Image.fromarray(np.dstack([colours.round().astype(np.uint8), rgba[..., 3]]))
