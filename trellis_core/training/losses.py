"""Training objectives: flow matching (docs/method/sampling.md) and the autoencoders' reconstruction losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_MIN = 1e-5


@dataclass(frozen=True)
class TimeSchedule:
    """Distribution of the training time t in 0..1: `uniform`, or `logitNormal` = sigmoid(mean + std N(0, 1))."""

    name: str = "logitNormal"
    mean: float = 0.0
    std: float = 1.0

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """float32 [count], drawn on the CPU."""
        if self.name == "uniform":
            return torch.rand(count, generator=generator)
        return torch.sigmoid(torch.randn(count, generator=generator) * self.std + self.mean)


def drop_condition(cond: Tensor, p_uncond: float, draws: np.ndarray | None = None) -> Tensor:
    """Zero the whole token sequence of a sample with probability p_uncond: what guidance calls unconditional.

    cond [B, L, C]; `draws` float [B] in 0..1, by default from numpy's global generator as in the reference.
    """
    draws = np.random.rand(len(cond)) if draws is None else draws
    keep = torch.from_numpy(draws >= p_uncond).to(cond.device)
    return torch.where(keep.view(-1, *[1] * (cond.ndim - 1)), cond, 0.0)


def diffuse(x0: Tensor, noise: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> tuple[Tensor, Tensor]:
    """Noisy x_t and its velocity target. x0, noise of one shape; t broadcasts against them (0 clean .. 1 noise)."""
    x_t = (1 - t) * x0 + (sigma_min + (1 - sigma_min) * t) * noise
    return x_t, (1 - sigma_min) * noise - x0


@dataclass(frozen=True)
class FlowLoss:
    """Everything one flow-matching step computed; `value` is the scalar to minimise."""

    value: Tensor
    noise: Tensor
    t: Tensor
    x_t: Tensor
    cond: Tensor
    prediction: Tensor


def flow_matching_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    cond: Tensor,
    schedule: TimeSchedule,
    *,
    rows: Tensor | None = None,
    p_uncond: float = 0.1,
    sigma_min: float = SIGMA_MIN,
    generator: torch.Generator | None = None,
    draws: np.ndarray | None = None,
) -> FlowLoss:
    """Mean squared velocity error over all elements, noise drawn first, then t, then the condition dropout.

    Args:
        model: (x_t, t * 1000 [B], cond) -> velocity.
        x0: dense [B, ...] or sparse rows [T, C].
        cond: [B, L, C] image tokens.
        rows: int64 [T], the sample of every sparse row; None for dense x0.
    """
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t = schedule.sample(len(cond), generator)
    cond = drop_condition(cond, p_uncond, draws) if p_uncond > 0 else cond
    wide = t.view(-1, *[1] * (x0.ndim - 1)) if rows is None else t[rows][:, None]
    x_t, target = diffuse(x0, noise, wide, sigma_min)
    prediction = model(x_t, t * 1000, cond)
    return FlowLoss(F.mse_loss(prediction, target), noise, t, x_t, cond, prediction)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of KL(N(mean, exp(logvar)) || N(0, 1))."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def shape_reconstruction(
    raw: Tensor, vertices: Tensor, flags: Tensor, subdivisions: list[Tensor], occupancies: list[Tensor], margin: float = 0.5
) -> dict[str, Tensor]:
    """Terms of the shape autoencoder on ground-truth voxels.

    raw [N, 7] decoder output; vertices [N, 3] in voxel units; flags bool [N, 3];
    subdivisions, occupancies: logits and bool [N_i, 8] per level.
    """
    predicted = (1 + 2 * margin) * raw[:, :3].sigmoid() - margin
    return {
        "vertex": F.mse_loss(predicted, vertices),
        "flags": F.binary_cross_entropy_with_logits(raw[:, 3:6], flags.float()),
        "subdivision": torch.stack(
            [F.binary_cross_entropy_with_logits(a, on.float()) for a, on in zip(subdivisions, occupancies, strict=True)]
        ).sum(),
    }


def split_loss(raw_weight: Tensor, vertices: Tensor, quads: Tensor) -> Tensor:
    """Teach the split weights which diagonal of a quad bends less.

    Diagonal 0-2 is taken where w0 w2 > w1 w3, so the log ratio of the products is the logit; quads count as much as the
    choice matters.

    Args:
        raw_weight: [N] raw channel; the weight is its softplus.
        vertices: [N, 3] ground-truth positions.
        quads: integer [Q, 4] rows, in winding order.
    """
    v0, v1, v2, v3 = vertices[quads].unbind(1)

    def flatness(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        first, second = torch.linalg.cross(b - a, c - a), torch.linalg.cross(c - a, d - a)
        return F.cosine_similarity(first, second, dim=1)

    gain = flatness(v0, v1, v2, v3) - flatness(v1, v2, v3, v0)
    log_weight = F.softplus(raw_weight).clamp_min(1e-6).log()[quads]
    logit = log_weight[:, 0] + log_weight[:, 2] - log_weight[:, 1] - log_weight[:, 3]
    return F.binary_cross_entropy_with_logits(logit, (gain > 0).float(), weight=gain.abs())
