"""Mip-mapped texture lookup on 8-bit images (docs/method/mesh.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

WRAPS = ("repeat", "clamp", "mirror")


@dataclass(frozen=True)
class Texture2D:
    """A picture with its mip chain, all levels behind one another in one table.

    Attributes:
        texels: float32 [sum of H*W over the levels, C], 0..1.
        sizes: int64 [L, 2] height and width of each level.
        offsets: int64 [L] first row of each level.
        wrap: "repeat", "clamp" or "mirror".
        linear: bilinear lookup and mip levels; else the texel of the base level that the point lies in.
    """

    texels: Tensor
    sizes: Tensor
    offsets: Tensor
    wrap: str
    linear: bool

    @classmethod
    def build(cls, image: Tensor, *, wrap: str = "repeat", linear: bool = True) -> Texture2D:
        """From uint8 [H, W] or [H, W, C]; raises `InputError` unless linear lookup finds a square with a power-of-two side.

        Each level is the 2x2 mean of the one below, truncated to 8 bits, down to a single texel.
        """
        if wrap not in WRAPS:
            raise InputError(f"Texture wrap mode must be one of {', '.join(WRAPS)}, not {wrap!r}.")
        level = image[:, :, None] if image.ndim == 2 else image
        height, width, channels = level.shape
        if linear and (height != width or height & (height - 1)):
            raise InputError(f"A filtered texture must be square with a power-of-two side, this one is {width} x {height}.")
        levels = [level]
        while linear and len(level) > 1:
            side = len(level) // 2
            level = (level.int().view(side, 2, side, 2, channels).sum((1, 3)) // 4).to(torch.uint8)
            levels.append(level)
        sizes = torch.tensor([level.shape[:2] for level in levels])
        count = sizes.prod(1)
        texels = torch.cat([level.reshape(-1, channels) for level in levels]).float() / 255
        return cls(texels, sizes, count.cumsum(0) - count, wrap, linear)

    def sample(self, uv: Tensor, texels_per_voxel: Tensor) -> Tensor:
        """Values float64 [P, C] at `uv` float64 [P, 2], v up.

        `texels_per_voxel` float64 [P] is the footprint in texture heights; its log2 in texels is the mip level.
        """
        if not self.linear:
            return self._nearest(uv)
        last = len(self.sizes) - 1
        level = (texels_per_voxel * self.sizes[0, 0]).log2()
        level = torch.where(level.isfinite(), level, 0.0).clamp(0, last)
        below = level.floor().long()
        share = (level - below)[:, None]
        return (1 - share) * self._bilinear(uv, below) + share * self._bilinear(uv, (below + 1).clamp(max=last))

    def _bilinear(self, uv: Tensor, level: Tensor) -> Tensor:
        height, width = self.sizes[level].unbind(1)
        x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]
        columns = [self._wrapped(left.long() + step, width) for step in (0, 1)]
        rows = [self.offsets[level] + self._wrapped(top.long() + step, height) * width for step in (0, 1)]
        upper, lower = (
            (1 - right_share) * self.texels[row + columns[0]] + right_share * self.texels[row + columns[1]] for row in rows
        )
        return (1 - bottom_share) * upper + bottom_share * lower

    def _nearest(self, uv: Tensor) -> Tensor:
        height, width = self.sizes[0]
        column = self._wrapped((uv[:, 0] * width).floor().long(), width)
        row = self._wrapped(((1 - uv[:, 1]) * height).floor().long(), height)
        return self.texels[row * width + column].double()

    def _wrapped(self, index: Tensor, size: Tensor) -> Tensor:
        if self.wrap == "repeat":
            return index.remainder(size)
        if self.wrap == "clamp":
            return index.clamp(min=0).minimum(size - 1)
        index = index.remainder(2 * size)
        return torch.where(index < size, index, 2 * size - 1 - index)
