"""Draws the example pictures that do not come from the training generator: two flat icons and a path-traced toadstool.

    python examples/draw_pictures.py

They show what the bundled mini family does with pictures of a style it never saw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
SIZE, OVERSAMPLE = 512, 4


class Canvas:
    """A transparent picture drawn in units of 1/100 of its side, antialiased by oversampling."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (SIZE * OVERSAMPLE,) * 2)
        self.draw = ImageDraw.Draw(self.image)
        self.unit = SIZE * OVERSAMPLE / 100

    def _scaled(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.unit, y * self.unit) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        self.draw.ellipse(self._scaled([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        self.draw.polygon(self._scaled(points), fill=fill)

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: str) -> None:
        self.draw.pieslice(self._scaled([(x - rx, y - ry), (x + rx, y + ry)]), start, end, fill=fill)

    def save(self, name: str) -> None:
        self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(HERE / name, optimize=True)


def tree_icon() -> None:
    """A flat fir tree of three tiers with a darker shaded side."""
    canvas = Canvas()
    canvas.polygon([(44, 78), (56, 78), (57, 95), (43, 95)], "#8a5a33")
    for top, bottom, half in ((42, 80, 30), (24, 58, 24), (6, 36, 17)):
        canvas.polygon([(50, top), (50 - half, bottom), (50 + half, bottom)], "#3f9b4f")
        canvas.polygon([(50, top), (50, bottom), (50 + half, bottom)], "#2f7d40")
    canvas.save("icon_tree.png")


def duck_icon() -> None:
    """A flat bath duck, three-quarter from its right."""
    canvas = Canvas()
    canvas.polygon([(10, 50), (24, 60), (22, 74)], "#f2b705")
    canvas.ellipse(48, 68, 37, 24, "#ffd23f")
    canvas.ellipse(63, 32, 22, 21, "#ffd23f")
    canvas.ellipse(41, 66, 17, 11, "#f2b705")
    canvas.polygon([(80, 30), (97, 36), (80, 42)], "#f26430")
    canvas.ellipse(69, 27, 3.6, 4.2, "#222222")
    canvas.ellipse(70.2, 25.6, 1.2, 1.4, "#ffffff")
    canvas.save("icon_duck.png")


# The toadstool is a signed distance field, z up, lit by a soft sky and a window, with one diffuse bounce.

CAP, STEM, SPOT, GROUND = range(4)
SPOTS = np.array(
    [
        [-0.16, -0.2, 0.42],
        [0.12, -0.27, 0.36],
        [0.02, -0.08, 0.47],
        [-0.29, -0.02, 0.35],
        [0.26, -0.06, 0.38],
        [-0.06, -0.33, 0.3],
    ]
)


def distances(p: np.ndarray) -> np.ndarray:
    """[N, 3] -> [N, 4] distance to the cap, the stem, the spots and the ground."""
    radius = np.hypot(p[:, 0], p[:, 1])
    dome = (np.linalg.norm(p * [1 / 0.4, 1 / 0.4, 1 / 0.3] - [0, 0, 0.16 / 0.3], axis=1) - 1) * 0.3
    cap = np.maximum(dome, 0.14 - p[:, 2]) - 0.012
    waist = 0.1 + 0.05 * np.clip(-p[:, 2] / 0.45, -0.2, 1) ** 2
    stem = np.maximum(radius - waist, np.abs(p[:, 2] + 0.14) - 0.31) * 0.8 - 0.01
    spots = np.linalg.norm(p[:, None] - SPOTS, axis=2).min(1) - 0.062
    return np.stack([cap, stem, spots, p[:, 2] + 0.46], axis=1)


def march(origin: np.ndarray, direction: np.ndarray, steps: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Sphere tracing: (distance along the ray, bool hit)."""
    along = np.full(len(origin), 1e-2)
    for _ in range(steps):
        along += distances(origin + direction * along[:, None]).min(1)
    near = distances(origin + direction * along[:, None]).min(1)
    return along, (near < 4e-3) & (along < 8)


def colour(p: np.ndarray) -> np.ndarray:
    """Linear albedo [N, 3] with a little grain in the cap and fibres in the stem."""
    part = distances(p).argmin(1)
    grain = np.sin(p @ [91.0, 57.0, 33.0]) * np.sin(p @ [-41.0, 77.0, 59.0])
    fibre = np.sin(np.arctan2(p[:, 1], p[:, 0]) * 38 + 6 * np.sin(p[:, 2] * 17))
    table = np.array([[0.55, 0.035, 0.02], [0.72, 0.62, 0.45], [0.85, 0.82, 0.74], [0.78, 0.78, 0.78]])
    shade = np.where(part == CAP, 1 + 0.18 * grain, np.where(part == STEM, 1 + 0.1 * fibre, 1.0))
    return table[part] * shade[:, None]


def normals(p: np.ndarray) -> np.ndarray:
    steps = np.eye(3) * 2e-3
    n = np.stack([distances(p + e).min(1) - distances(p - e).min(1) for e in steps], axis=1)
    return n / np.linalg.norm(n, axis=1, keepdims=True)


def sky(direction: np.ndarray) -> np.ndarray:
    """Radiance [N, 3] of an overcast studio with one large window."""
    window = np.clip(direction @ np.array([-0.55, -0.5, 0.67]) - 0.72, 0, 1) * 26
    base = 0.35 + 0.45 * np.clip(direction[:, 2], 0, 1)
    return base[:, None] * [0.95, 1.0, 1.06] + window[:, None] * [1.0, 0.95, 0.85]


def toadstool(size: int = 256, samples: int = 24) -> None:
    """Path-trace the photo-like picture and save it with its studio backdrop and once cut out."""
    rng = np.random.default_rng(7)
    eye = np.array([-0.75, -1.75, 0.72])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    total, alpha = np.zeros((size * size, 3)), np.zeros(size * size)
    row, column = np.divmod(np.arange(size * size), size)
    for _ in range(samples):
        jitter = rng.random((2, size * size))
        x, y = (column + jitter[0]) / size * 2 - 1, 1 - (row + jitter[1]) / size * 2
        ray = forward + (right * x[:, None] + up * y[:, None]) * 0.36
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        along, hit = march(np.broadcast_to(eye, ray.shape), ray)
        p = eye + ray * along[:, None]
        n = normals(p)
        bounce = n + _directions(rng, len(p))
        bounce /= np.linalg.norm(bounce, axis=1, keepdims=True)
        far, blocked = march(p + n * 8e-3, bounce, 32)
        second = colour(p + bounce * far[:, None]) * 0.55
        light = np.where(blocked[:, None], second, sky(bounce))
        mirror = ray - 2 * (ray * n).sum(1, keepdims=True) * n
        gloss = 0.03 + 0.35 * (1 - np.clip(-(ray * n).sum(1), 0, 1)) ** 5
        part = distances(p).argmin(1)
        glossy = np.where(part == CAP, gloss, 0)[:, None] * sky(mirror)
        total += np.where(hit[:, None], colour(p) * light + glossy, 0.85)
        alpha += hit & (part != GROUND)
    linear = total / samples * 1.05
    srgb = np.clip(linear / (1 + 0.12 * linear), 0, 1) ** (1 / 2.2) + rng.normal(0, 0.008, linear.shape)
    rgb = (np.clip(srgb, 0, 1) * 255).round().astype(np.uint8).reshape(size, size, 3)
    cut = np.dstack([rgb, (alpha / samples * 255).round().astype(np.uint8).reshape(size, size)])
    Image.fromarray(rgb).save(HERE / "photo_toadstool.jpg", quality=92)
    Image.fromarray(cut).save(HERE / "photo_toadstool_cut.png", optimize=True)


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
    v = rng.normal(size=(count, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


if __name__ == "__main__":
    tree_icon()
    duck_icon()
    toadstool()
