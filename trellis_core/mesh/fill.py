"""Filling texels that no surface covers from those around them: push-pull on an image pyramid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad


def fill_gaps(image: Tensor, covered: Tensor) -> Tensor:
    """Give every uncovered texel the mean of its nearest covered surroundings; covered ones stay as they are.

    Nearest means: of the smallest aligned 2^k square around it that has any. That continues colours over chart borders
    and leaves no seam in mip maps. An image without any covered texel comes back as zeros.

    Args:
        image: float32 [C, S, S]; what uncovered texels hold does not matter.
        covered: bool [S, S].
    """
    if bool(covered.all()):
        return image
    weight = covered.to(image.dtype)[None]
    image = image * weight
    if image.shape[-1] == 1:
        return image
    odd = image.shape[-1] % 2
    both = pad(torch.cat([image, weight]), (0, odd, 0, odd))
    half = avg_pool2d(both[None], 2)[0]
    some = half[-1] > 0
    coarse = fill_gaps(half[:-1] / half[-1].clamp_min(1e-12), some)
    around = interpolate(coarse[None], scale_factor=2.0, mode="nearest")[0]
    return torch.where(covered, image, around[:, : image.shape[1], : image.shape[2]])
