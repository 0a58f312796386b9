"""Small shaded pictures of what a sampler is making, while it makes it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .context import RunContext
from .family import Family
from .roles import SHAPE_DECODER, STRUCTURE_DECODER
from .sampling import Estimate
from .vae.structure import active_voxels
from .values import PbrVoxels

SIDE = 256
EVERY = 2
"""Steps between two pictures; the last step always has one."""

BACKGROUND = np.array((236, 236, 238), np.float32)
CLAY = np.array((176, 178, 186), np.float32)
LIGHT = np.array((-0.45, 0.75, 0.48), np.float32)
"""Direction to the lamp in the picture's frame: right, up, towards the viewer."""


def glimpse(family: Family, estimate: Estimate, ctx: RunContext) -> Image.Image | None:
    """The first object of an estimate as voxels: of the decoded structure, or of the shape one doubling finer.

    None for steps that are skipped, for textures, and as long as nothing is there to see.
    """
    if (estimate.step % EVERY and estimate.step != estimate.steps) or estimate.stage == "texture":
        return None
    if estimate.stage == "structure":
        latent = estimate.latent[:1]
        with family.network(STRUCTURE_DECODER, ctx, latent[0, 0].numel()) as decoder:
            logits = decoder(latent)
        coords, grid = active_voxels(logits, logits.shape[-1]), logits.shape[-1]
    elif estimate.coords is None:
        return None
    else:
        first = estimate.coords[:, 0] == 0
        rows = estimate.coords[first]
        with family.network(SHAPE_DECODER, ctx, len(rows)) as decoder:
            coords, grid = decoder.upsample(estimate.latent[first], rows, 1), 2 * estimate.grid
    return voxel_picture(coords[:, 1:].cpu(), grid) if len(coords) else None


def painted_picture(voxels: PbrVoxels) -> Image.Image:
    """Decoded voxels in their colours, before there is a surface to bake them on."""
    return voxel_picture(voxels.coords, voxels.resolution, colors=voxels.attrs[:, :3].clamp(0, 1))


def voxel_picture(coords: Tensor, grid: int, side: int = SIDE, colors: Tensor | None = None) -> Image.Image:
    """Voxels int [N, 3] of grid^3, z up, on paper: seen from the front right and a little above.

    Args:
        colors: float [N, 3] in 0..1, sRGB; without them it is clay.
    """
    turn, tilt = np.radians((35.0, 25.0))
    # Rows right, up, towards the viewer; the front of an object looks along -y.
    right = np.array((np.cos(turn), np.sin(turn), 0))
    towards = np.array((np.sin(turn) * np.cos(tilt), -np.cos(turn) * np.cos(tilt), np.sin(tilt)))
    axes = np.stack([right, np.cross(towards, right), towards])
    seen = ((coords.numpy() + 0.5) / grid - 0.5) @ axes.T
    pixel = side / 1.55  # the cube's diagonal, and a rim
    x, y = np.floor(side / 2 + seen[:, 0] * pixel), np.floor(side / 2 - seen[:, 1] * pixel)

    reach = int(np.ceil(0.75 * pixel / grid))
    steps = np.arange(-reach, reach + 1)
    dx, dy = (d.ravel() for d in np.meshgrid(steps, steps))
    columns, rows = (np.clip(a[:, None] + d, 0, side - 1).astype(np.int64) for a, d in ((x, dx), (y, dy)))
    depth = np.full(side * side, -np.inf, np.float32)
    pixels = rows * side + columns
    np.maximum.at(depth, pixels.ravel(), np.repeat(seen[:, 2], len(dx)).astype(np.float32))
    paint = np.broadcast_to(CLAY, (side * side, 3))
    if colors is not None:
        near = np.argsort(seen[:, 2], kind="stable")  # whoever is nearer paints over those behind it
        paint = np.zeros((side * side, 3), np.float32)
        for voxels in np.array_split(near, max(1, len(near) >> 14)):
            paint[pixels[voxels]] = 255 * colors.numpy()[voxels, None]
    return _shaded(depth.reshape(side, side), pixel, paint.reshape(side, side, 3))


def _shaded(depth: np.ndarray, pixel: float, paint: np.ndarray) -> Image.Image:
    """Paint [S, S, 3] in 0..255 with normals from the slope of the depth map [S, S], -inf where there is paper."""
    covered = np.isfinite(depth)
    depth = np.where(covered, depth, -1.0)
    smooth = _blurred(depth)
    down, right = np.gradient(np.where(covered, smooth, depth) * pixel)
    normal = np.stack([-right, down, np.ones_like(depth)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = 0.35 + 0.65 * np.clip(normal @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    picture = np.where(covered[..., None], paint * 1.35 * light[..., None], BACKGROUND)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _blurred(depth: np.ndarray) -> np.ndarray:
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(depth)[None, None], 3, 1, 1, count_include_pad=False)
    return blurred[0, 0].numpy()
