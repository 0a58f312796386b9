"""Where a token is: 3-D rotary phases on interleaved pairs, and the additive variant (docs/method/networks.md)."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rotary_phases(positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation of every pair of head components.

    The pairs are shared out in three equal runs to x, y and z; pairs left over do not turn.

    Args:
        positions: [..., 3] integer voxel indices.

    Returns:
        cos, sin: float32 [..., 1, head_width / 2], ready to broadcast over heads.
    """
    pairs = head_width // 2
    per_axis = pairs // 3
    steps = torch.arange(per_axis, device=positions.device, dtype=torch.float32)
    frequency = 1.0 / BASE ** (steps / per_axis)
    angles = (positions[..., None].float() * frequency).flatten(-2)
    angles = torch.nn.functional.pad(angles, (0, pairs - 3 * per_axis))[..., None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (2i, 2i+1) of the heads x [..., H, d] by `phases`; float32 inside, the dtype of x outside."""
    cos, sin = phases
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def additive_embedding(positions: Tensor, channels: int) -> Tensor:
    """Sine and cosine of each axis side by side, zero-padded: [..., 3] -> float32 [..., channels]."""
    per_axis = channels // 6
    steps = torch.arange(per_axis, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() / BASE ** (steps / per_axis)
    table = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)
    return torch.nn.functional.pad(table, (0, channels - table.shape[-1]))
