"""The elementwise work of a flow transformer's layer: as it reads on paper, or by one kernel where kernels run.

All of it is bound by memory: on a GPU the plain form reads and writes the tokens a dozen times where one would do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import usable
from .rope import rotate


def normed(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    """Layer norm of tokens [..., C] in float32, in the dtype of h."""
    if usable(h) and (norm.weight is None or _at_hand(norm, h)):
        from ..kernels.fused import norm as kernel

        return kernel(h, norm.eps, affine=None if norm.weight is None else (norm.weight, norm.bias))[1]
    return norm(h.float()).to(h.dtype)


def modulated(norm: nn.LayerNorm, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift for a norm without parameters; scale and shift broadcast against h."""
    if usable(h):
        from ..kernels.fused import norm as kernel

        return kernel(h, norm.eps, modulation=(scale, shift))[1]
    return normed(norm, h) * (1 + scale) + shift


def added_and_modulated(norm: nn.LayerNorm, h: Tensor, branch: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """h + branch, and that `modulated`; the branch is like h or one vector [C]."""
    if usable(h):
        from ..kernels.fused import norm as kernel

        return kernel(h, norm.eps, modulation=(scale, shift), branch=branch)
    h = h + branch
    return h, modulated(norm, h, scale, shift)


def gated(h: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """h + branch gate; the gate broadcasts against h."""
    if usable(h):
        from ..kernels.fused import gated as kernel

        return kernel(h, branch, gate)
    return h + branch * gate


def heads(x: Tensor, gain: Tensor | None, phases: tuple[Tensor, Tensor] | None) -> Tensor:
    """Heads [..., H, d] scaled to length sqrt(d), times `gain` float32 [H, d], then turned by `phases`; None leaves a step
    out. Float32 inside, rounded to the dtype of x after each step."""
    if usable(x) and (gain is not None or phases is not None):
        from ..kernels.fused import norm_and_turn

        return norm_and_turn(x, gain, phases)
    if gain is not None:
        x = (F.normalize(x.float(), dim=-1) * (gain.float() * x.shape[-1] ** 0.5)).to(x.dtype)
    return x if phases is None else rotate(x, phases)


def _at_hand(norm: nn.LayerNorm, h: Tensor) -> bool:
    """Hosts may keep parameters elsewhere and bring them along in their own `forward`."""
    return type(norm) is nn.LayerNorm and norm.weight.device == h.device
