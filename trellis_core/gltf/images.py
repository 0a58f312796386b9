"""Texture images: encoding them for GLB files, the same pixels always to the same bytes, and opening those of others."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ..context import check_obeyed
from ..errors import InputError
from ..mesh.topology import Array

MIME_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_BLOCK = 4 << 20
"""Bytes of a picture that are compressed between two looks whether to stop."""
_LISTEN = 0.1
MAX_PIXELS = 144_000_000
"""Largest picture of a model that is opened: 12,000 a side."""
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, OverflowError, struct.error, zlib.error)
"""What PIL and its plugins raise for damaged data."""


def encode_image(pixels: Array, image_format: str = "png", quality: int = 90) -> bytes:
    """Encode uint8 [H, W, 3], or [H, W, 4] but for jpeg, as "png" (lossless), "webp" or "jpeg".

    WebP keeps colours under alpha 0, and everything at quality 100. JPEG stores colour at full size.

    Raises:
        InputError: unknown format, or one that this Pillow cannot write.
        Cancelled: the run that this is part of is to stop (see `context.obeying`); it is asked every tenth of a second.
    """
    check_format(image_format)
    if image_format == "png":
        return _png(pixels)
    from PIL import Image

    options: dict[str, object] = {"quality": quality, "subsampling": 0}
    if image_format == "webp":
        options = {"exact": True, "quality": quality, "method": 2}
        if quality == 100:
            options |= {"lossless": True, "quality": 20, "method": 0}  # lossless quality is effort
    stream = io.BytesIO()
    _beside(lambda: Image.fromarray(pixels).save(stream, image_format, **options))
    return stream.getvalue()


def _beside(work: Callable[[], object]) -> None:
    """Do what cannot be interrupted in a thread of its own. Who stops leaves it to its end, and nobody sees what it made."""
    pool = ThreadPoolExecutor(1)
    try:
        done = pool.submit(work)
        while not wait([done], timeout=_LISTEN).done:
            check_obeyed()
        done.result()
    finally:
        pool.shutdown(wait=False)


def check_format(image_format: str) -> None:
    """Raise `InputError` if textures cannot be stored so."""
    if image_format not in MIME_TYPES:
        raise InputError(f"Textures can be stored as {', '.join(MIME_TYPES)}, not as {image_format!r}.")
    if image_format != "png":
        from PIL import features

        if not features.check({"jpeg": "jpg"}.get(image_format, image_format)):
            raise InputError(f"The installed Pillow cannot write {image_format}: set image_format to png, or install another.")


def check_picture(data: bytes, what: str) -> None:
    """
    Raises:
        InputError: `data` is no picture that can be opened, or one with more than `MAX_PIXELS`. Names `what`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(data)).size
    except UnidentifiedImageError:
        raise InputError(f"{what} is no picture in a known format: save the model with PNG, JPEG or WebP.") from None
    except DECODE_ERRORS as error:
        raise InputError(f"{what} cannot be read as a picture ({error}).") from None
    if width * height > MAX_PIXELS:
        raise InputError(f"{what} is {width} x {height} pixels; shrink it to at most {MAX_PIXELS // 10**6} megapixels.")


def decoded(picture: Any, mode: str) -> Any:
    """A picture of PIL in another mode.

    Raises:
        InputError: its data is damaged.
    """
    try:
        return picture.convert(mode)
    except DECODE_ERRORS as error:
        raise InputError(f"A picture of the model is damaged or cut off ({error}): save the model again.") from None


def _png(pixels: Array) -> bytes:
    """PNG with every row stored as the difference to the one above: near the size of slower filters on smooth textures."""
    height, width, channels = pixels.shape
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 2  # filter type "up"
    flat = pixels.reshape(height, -1)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    packer, packed = zlib.compressobj(1), []
    for start in range(0, height, max(1, _BLOCK // rows.shape[1])):
        check_obeyed()
        packed.append(packer.compress(rows[start : start + max(1, _BLOCK // rows.shape[1])]))
    packed.append(packer.flush())
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", b"".join(packed)), (b"IEND", b""))
    )
