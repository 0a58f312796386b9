"""Objects from the outlines of real pictures: each picture is blown up like a balloon and wears its own colours.

The frame is that of the picture: x to the right, z up, the picture's plane at y = 0, its front towards -y. What the picture
shows lies where it shows it, which is the relation that the networks are to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from ....image.preprocess import preprocess
from ....image.reading import open_picture
from .objects import FRAME

FINE = 128
"""Steps of the lattice on which a picture is blown up; a grid of 64 takes every other one."""
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
EVALUATED = Path(__file__).with_name("outside.txt")
"""Pictures that no training may see, one file name a line."""


@dataclass(frozen=True)
class Relief:
    """A solid over the picture's plane: inside where y^2 < height^2 = 4 depth^2 u(x, z).

    Attributes:
        potential: u float32 [FINE + 1, FINE + 1] by x and z, negative outside the outline.
        depth: half thickness, as a multiple of that of a ball of the same outline.
        flat: thickness above which the solid is cut flat, in object units.
    """

    potential: np.ndarray
    depth: float
    flat: float

    def values(self, grid: int) -> np.ndarray:
        """float32 [grid + 1]^3 at the voxel corners, negative inside; only its zero set has a meaning."""
        step = FINE // grid
        square = 4 * self.depth**2 * self.potential[::step, ::step]
        y = np.linspace(-0.5, 0.5, grid + 1, dtype=np.float32)
        balloon = y[None, :, None] ** 2 - square[:, None, :]
        return np.maximum(balloon, (y**2 - self.flat**2)[None, :, None]).astype(np.float32)


def training_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that training may see: none of the evaluation, in no skin tone."""
    held = {name.split(".")[0] for name in EVALUATED.read_text().split()}

    def plain(name: str) -> str:
        return "-".join(code for code in name.split("-") if code not in SKIN_TONES)

    found = [path for path in sorted(folder.glob("*.webp")) + sorted(folder.glob("*.png")) if plain(path.stem) not in held]
    return [path for path in found if plain(path.stem) == path.stem]


def varied(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture turned, stretched, mirrored, recoloured, at random and mildly; RGBA."""
    picture = picture.convert("RGBA")
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if rng.random() < 0.06:
        picture = ImageOps.flip(picture)
    if rng.random() < 0.5:
        picture = picture.rotate(rng.normal(0, 14), Image.Resampling.BICUBIC, expand=True)
    if rng.random() < 0.5:
        width, height = picture.size
        picture = picture.resize((int(width * rng.uniform(0.7, 1.3)), height), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        bands = picture.split()
        order = rng.permutation(3)
        picture = Image.merge("RGBA", [bands[order[0]], bands[order[1]], bands[order[2]], bands[3]])
    return picture


def pair(first: Image.Image, second: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two pictures in one, the second smaller and partly over the first."""
    canvas = Image.new("RGBA", (384, 384))
    for picture, share in ((first, rng.uniform(0.6, 1)), (second, rng.uniform(0.3, 0.7))):
        size = int(256 * share)
        part = picture.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
        at = rng.integers(0, 384 - size, 2)
        canvas.alpha_composite(part, tuple(int(v) for v in at))
    return canvas


def cropped(picture: Image.Image, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The square that the pipeline cuts out: (RGB uint8 [size, size, 3] on black, alpha float32 [size, size])."""
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.putalpha(picture.getchannel("A"))
    rgb, alpha = (preprocess(p).resize((size, size), Image.Resampling.LANCZOS) for p in (picture, white))
    return np.asarray(rgb), np.asarray(alpha.getchannel(0), dtype=np.float32) / 255


def relief(alpha: np.ndarray, rng: np.random.Generator) -> Relief:
    """The balloon of a cut-out picture's alpha float32 [S, S]: u solves laplace(u) = -1 inside, 0 at the outline."""
    from . import kernels

    side = int(round(FRAME * FINE))
    image = Image.fromarray(alpha).resize((side, side), Image.Resampling.BILINEAR)
    mask = np.zeros((FINE + 1, FINE + 1), np.float32)
    low = (FINE + 1 - side) // 2
    mask[low : low + side, low : low + side] = np.asarray(image)[::-1].T  # [x, z]
    inside = _solid(mask > 0.5)
    spacing = 1 / FINE
    potential = kernels.inflate(inside, 220) * np.float32(spacing**2)
    outer = ndimage.distance_transform_edt(~inside).astype(np.float32) * spacing
    slope = 0.35 * np.sqrt(max(float(potential.max()), 1e-6))
    potential = ndimage.gaussian_filter(np.where(inside, potential, -slope * outer), 1.0)
    ball = 2 * np.sqrt(float(potential.max()))
    depth = rng.uniform(0.6, 1.0) if rng.random() < 0.8 else rng.uniform(0.3, 0.6)
    flat = rng.uniform(0.35, 0.8) * depth * ball if rng.random() < 0.25 else 1.0
    return Relief(potential, min(depth, 0.45 / ball), max(float(flat), 0.03))


def _solid(mask: np.ndarray) -> np.ndarray:
    """Without specks, and with strokes at least as wide as the voxels can hold."""
    labels, count = ndimage.label(mask)
    if count > 1:
        size = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
        mask = np.isin(labels, 1 + np.flatnonzero(size >= max(24, 0.004 * size.sum())))
    thin = mask & ~ndimage.binary_dilation(ndimage.binary_erosion(mask, iterations=2), iterations=2)
    return mask | ndimage.binary_dilation(thin)


def painted(rgb: np.ndarray, alpha: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours float32 [N, 3] of surface points [N, 3]: the picture's in front, running out to a blurred copy behind."""
    front, behind = _spread(rgb, alpha)
    x, y = 0.5 + points[:, 0] / FRAME, 0.5 - points[:, 2] / FRAME
    share = np.clip((points[:, 1:2] + 0.01) / 0.05, 0, 1)
    return np.clip(_look(front, x, y) * (1 - share) + _look(behind, x, y) * share, 0, 1).astype(np.float32)


def _look(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples [N, 3] of an image [S, S, 3] at x, y in 0..1."""
    where = np.stack([y, x]) * len(image) - 0.5
    return np.stack([ndimage.map_coordinates(image[..., c], where, order=1, mode="nearest") for c in range(3)], 1)


def _spread(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Straight colours continued outside of the outline: in full detail, and at an eighth of it."""
    cover = np.where(alpha > 0.6, alpha, 0)[..., None]
    colours = np.concatenate([rgb.astype(np.float32) / 255 * (cover > 0), cover], 2)
    levels = [colours]
    while len(levels[-1]) > 1:
        c = levels[-1]
        levels.append((c[::2, ::2] + c[1::2, ::2] + c[::2, 1::2] + c[1::2, 1::2]) / 4)
    filled, behind = levels[-1], None
    for level in reversed(levels[:-1]):
        wide = filled.repeat(2, 0).repeat(2, 1)
        wide = ndimage.uniform_filter(wide, (3, 3, 1), mode="nearest")
        filled = level + (1e-2 if len(level) > 16 else 0.2) * wide
        if len(level) == 16:
            behind = filled[..., :3] / filled[..., 3:]
    return filled[..., :3] / filled[..., 3:], behind


def as_photographed(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture on black, uint8 [S, S, 3], as it looks after small sizes, blur and bad JPEG."""
    from io import BytesIO

    image, size = Image.fromarray(rgb), len(rgb)
    if rng.random() < 0.2:
        small = int(size * rng.uniform(0.4, 0.9))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.15:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 80)))
        image = Image.open(file).convert("RGB")
    return np.asarray(image)


def random_picture(paths: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """A varied picture of the list, now and then two in one."""
    first = varied(open_picture(paths[rng.integers(len(paths))]), rng)
    if rng.random() < 0.08:
        return pair(first, varied(open_picture(paths[rng.integers(len(paths))]), rng), rng)
    return first
