"""Flow stages: rectified flow in latent space, conditioned on the image tokens (docs/method/sampling.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...flow.sampler import SamplerParams, sample
from ..losses import TimeSchedule, flow_matching_loss

STRUCTURE_TIMES = TimeSchedule("logitNormal", 1.0, 1.0)
SHAPE_TIMES = TimeSchedule("logitNormal", 0.7, 1.0)
TEXTURE_TIMES = TimeSchedule("uniform")

STRUCTURE_SAMPLER = SamplerParams(6, 2.0, 0.5, (0.6, 1.0), 3.0)
SHAPE_SAMPLER = SamplerParams(1, 1.0, 0.0, (0.0, 1.0), 1.0)
TEXTURE_SAMPLER = SamplerParams(6, 2.5, 0.8, (0.3, 1.0), 3.0)
"""mini wants fewer steps than the published weights. A shape flow that has seen little keeps outlines and closed surfaces best
in one step without guidance, which is its mean (docs/mini.md): choose anew when it has been trained on."""


def structure_flow_loss(
    model: nn.Module,
    x0: Tensor,
    cond: Tensor,
    generator: torch.Generator,
    *,
    p_uncond: float = 0.1,
    schedule: TimeSchedule = STRUCTURE_TIMES,
) -> Tensor:
    """x0 [B, C, r, r, r], cond [B, L, D] -> mean squared velocity error."""
    draws = torch.rand(len(cond), generator=generator).numpy()
    return flow_matching_loss(model, x0, cond, schedule, p_uncond=p_uncond, generator=generator, draws=draws).value


def slat_flow_loss(
    model: nn.Module,
    x0: Tensor,
    coords: Tensor,
    cond: Tensor,
    generator: torch.Generator,
    schedule: TimeSchedule,
    *,
    concat: Tensor | None = None,
    p_uncond: float = 0.1,
) -> Tensor:
    """x0 [T, C] normalised latent on coords int32 [T, 4], cond [B, L, D]; concat [T, Cs] for the texture."""
    draws = torch.rand(len(cond), generator=generator).numpy()

    def velocity(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return model(x, coords, t, c, concat)

    loss = flow_matching_loss(
        velocity, x0, cond, schedule, rows=coords[:, 0].long(), p_uncond=p_uncond, generator=generator, draws=draws
    )
    return loss.value


def sample_structure(model: nn.Module, cond: Tensor, params: SamplerParams = STRUCTURE_SAMPLER, seed: int = 0) -> Tensor:
    """Structure latents [B, C, r, r, r] for image tokens [B, L, D]."""
    p = model.params
    noise = torch.randn(len(cond), p.in_channels, *[p.resolution] * 3, generator=torch.Generator().manual_seed(seed))
    return sample(model, noise, params, cond=cond, neg=torch.zeros_like(cond))


def sample_slat(
    model: nn.Module, coords: Tensor, cond: Tensor, params: SamplerParams, *, concat: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Normalised latent rows [T, C] on coords int32 [T, 4]."""
    channels = model.params.out_channels
    noise = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(seed))
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, t, c: model(x, coords, t, c, concat)  # noqa: E731
    return sample(velocity, noise, params, cond=cond, neg=torch.zeros_like(cond), sample_rows=coords[:, 0].long())
