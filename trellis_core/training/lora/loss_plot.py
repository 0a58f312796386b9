"""The loss curve as a picture, without a plotting package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE = (640, 320)
LEFT, TOP, RIGHT, BOTTOM = 56, 24, 16, 32
INK, GRID, PALE, LINE = (40, 42, 48), (225, 226, 230), (190, 205, 235), (40, 90, 200)


def draw_curve(losses: Sequence[float]) -> Image.Image:
    """Every step's loss, pale, and their running mean."""
    values = np.asarray(losses, np.float64)
    picture = Image.new("RGB", SIZE, "white")
    canvas = ImageDraw.Draw(picture)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    low, high = 0.0, max(float(np.quantile(values, 0.99)) * 1.05, 1e-6)

    def points(curve: np.ndarray) -> list[tuple[float, float]]:
        x = LEFT + width * (np.arange(len(curve)) + 1) / max(len(curve), 1)
        y = TOP + height * (1 - np.clip((curve - low) / (high - low), 0, 1))
        return list(zip(x.tolist(), y.tolist(), strict=True))

    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + height * (1 - share)
        canvas.line([(LEFT, y), (SIZE[0] - RIGHT, y)], fill=GRID)
        canvas.text((6, y - 6), f"{low + share * (high - low):.3f}", fill=INK)
    canvas.text((LEFT, 6), f"loss, {len(values)} steps, last mean {running_mean(values)[-1]:.4f}", fill=INK)
    canvas.text((SIZE[0] - RIGHT - 40, SIZE[1] - 22), f"{len(values)}", fill=INK)
    canvas.line(points(values), fill=PALE)
    canvas.line(points(running_mean(values)), fill=LINE, width=2)
    return picture


def running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Mean over the last `share` of the steps so far, at least one."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - max(1, round(share * len(values))), 0)
    return (total[last] - total[first]) / (last - first)
