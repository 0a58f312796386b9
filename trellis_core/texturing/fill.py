"""Filling texels that no surface covers from those around them: push-pull on an image pyramid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_TEXELS = 1 << 16
"""Texels averaged at once: few enough to stay in the processor's cache."""


class GapFiller:
    """Gives every uncovered texel the mean of its nearest covered surroundings; covered ones stay as they are.

    Nearest means: of the smallest aligned 2^k square around it that has any. That continues colours over chart borders
    and leaves no seam in mip maps. Without any covered texel all become zero.

    Args:
        covered: bool [S, S].
    """

    def __init__(self, covered: Tensor) -> None:
        self.size = len(covered)
        self.margin = (1 << (self.size - 1).bit_length()) - self.size
        level = pad(covered, (0, self.margin, 0, self.margin))
        self.covered, self.share = [level], []  # by level, finest first: what has a source; one over how many of 2 x 2 have
        while len(level) > 1:
            count = _sums(level.to(torch.uint8)[..., None])[0]
            level = count > 0
            self.covered.append(level)
            self.share.append(count.float().clamp_min_(1).reciprocal_())

    def __call__(self, picture: Tensor) -> Tensor:
        """Fill uint8 [S, S, 4]; its uncovered texels must be zero."""
        finest = pad(picture, (0, 0, 0, self.margin, 0, self.margin)) if self.margin else picture.clone()
        pulled, planes = [finest.view(torch.int32)[..., 0]], None
        for share in self.share:
            planes = (_sums(finest) if planes is None else _sums(planes.permute(1, 2, 0))) * share
            pulled.append(_texels(planes))
        filled = pulled.pop()
        while pulled:
            own, half = pulled.pop(), len(filled)
            twice = torch.stack([filled, filled], dim=2).view(half, 1, 2 * half)
            known = self.covered[len(pulled)].view(half, 2, 2 * half)
            filled = torch.where(known, own.view(half, 2, 2 * half), twice).view(2 * half, 2 * half)
        return filled[: self.size, : self.size, None].contiguous().view(torch.uint8)


def _texels(planes: Tensor) -> Tensor:
    """Float [4, S, S], 0..255, rounded to bytes: each texel's four as one int32 [S, S]."""
    return torch.stack(planes.round().to(torch.uint8).unbind(), dim=2).view(torch.int32)[..., 0]


def _sums(level: Tensor) -> Tensor:
    """Sums over 2 x 2 texels of [S, S, C]: [C, S / 2, S / 2], int16 if they were uint8."""
    half, channels = len(level) // 2, level.shape[2]
    kind = torch.int16 if level.dtype == torch.uint8 else level.dtype
    result = torch.empty(channels, half, half, dtype=kind, device=level.device)
    step = max(_TEXELS // (2 * half), 1)
    for start in range(0, half, step):
        rows = level[2 * start : 2 * (start + step)].to(kind)
        rows = rows[0::2] + rows[1::2]
        for channel in range(channels):
            torch.add(rows[:, 0::2, channel], rows[:, 1::2, channel], out=result[channel, start : start + step])
    return result
