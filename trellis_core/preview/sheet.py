"""Contact sheets: pictures side by side with a line of text beneath each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 250, 250)
INK = (70, 70, 74)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | Image.Image]],
    labels: Sequence[Sequence[str]] | None = None,
    *,
    cell: int = 256,
) -> Image.Image:
    """Lay pictures out in rows, each fitted into a square of `cell` pixels.

    Args:
        rows: uint8 arrays [h, w, 3 or 4] or Pillow pictures; rows may differ in length.
        labels: one text for every picture, or None.
    """
    gap, line = max(cell // 32, 4), (cell // 14 + 8 if labels else 0)
    columns = max((len(row) for row in rows), default=0)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, len(rows) * (cell + line + gap) + gap), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(cell // 18, 9))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            left, top = gap + x * (cell + gap), gap + y * (cell + line + gap)
            image = _fitted(picture, cell)
            sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2), image)
            if labels:
                pen.text((left + cell / 2, top + cell + line / 2), labels[y][x], fill=INK, font=font, anchor="mm")
    return sheet


def _fitted(picture: np.ndarray | Image.Image, cell: int) -> Image.Image:
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGBA")
    scale = cell / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
