"""Filling texels that no surface covers from those around them: push-pull on an image pyramid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


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
        covered = pad(covered, (0, self.margin, 0, self.margin))
        self.covered, self.share = [covered], []  # by level, finest first: what has a source, and how much of 2 x 2 had
        while len(covered) > 1:
            self.share.append(avg_pool2d(covered[None].float(), 2)[0])
            covered = self.share[-1] > 0
            self.covered.append(covered)

    def __call__(self, channel: Tensor) -> Tensor:
        """Fill one channel float32 [S, S]; its uncovered texels must be zero."""
        pulled = [pad(channel, (0, self.margin, 0, self.margin)) if self.margin else channel]
        for share in self.share:
            pulled.append(avg_pool2d(pulled[-1][None], 2)[0] / share.clamp_min(1e-12))
        filled = pulled.pop()
        for level in reversed(range(len(pulled))):
            half = len(filled)
            known, own = (x.view(half, 2, half, 2) for x in (self.covered[level], pulled[level]))
            filled = torch.where(known, own, filled[:, None, :, None]).view(2 * half, 2 * half)
        return filled[: self.size, : self.size]
