"""Flow Euler sampling with classifier-free guidance inside an interval of times (docs/method/sampling.md).

A sample at time t is x_t = (1 - t) x_0 + (sigma + (1 - sigma) t) noise, sigma = sigma_min; networks predict
v = (1 - sigma) noise - x_0; time runs from 1 to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..context import QUIET, RunContext

Velocity = Callable[[Tensor, Tensor, Any], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class SamplerParams:
    """How to walk from noise to sample.

    Attributes:
        steps: Euler steps.
        guidance_strength: g in v = g v(cond) + (1 - g) v(neg); 1 means no guidance, 0 only the negative.
        guidance_rescale: 0..1, how far the spread of the guided estimate is pulled back to that of the unguided one.
        guidance_interval: times (low, high), both inclusive, at which guidance acts.
        rescale_t: above 1 spends more of the steps at high noise.
        step_caching: how many steps in a row may take a velocity that is extrapolated from earlier ones; 0 for none.
    """

    steps: int = 50
    guidance_strength: float = 3.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rescale_t: float = 1.0
    step_caching: int = 0


def flow_schedule(steps: int, rescale_t: float) -> list[float]:
    """The steps + 1 times from 1 to 0, for rescale_t >= 1.

    Float64 and this very formula: some published guidance intervals end exactly on one of these times.
    """
    u = np.linspace(1.0, 0.0, steps + 1)
    return (rescale_t * u / (1 + (rescale_t - 1) * u)).tolist()


@torch.no_grad()
def sample(
    model_fn: Velocity,
    noise: Tensor,
    params: SamplerParams,
    *,
    cond: Any,
    neg: Any,
    sigma_min: float = 1e-5,
    ctx: RunContext = QUIET,
    sample_rows: Tensor | None = None,
    on_step: OnStep | None = None,
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Integrate the flow from `noise` to a sample. Draws no random numbers.

    Args:
        model_fn: `model_fn(x, t, cond) -> v`, t float32 [B] times 1000, on the CPU. Called once a step, twice where
            guidance acts.
        noise: float32 [B, ...] dense, or token rows [T, c] with `sample_rows`.
        cond, neg: handed to `model_fn` as they are; `neg` is not touched where guidance does not act.
        sample_rows: int64 [T], the sample of each row; rows of a sample contiguous, samples in order, none empty.
        both: `both(x, t)` gives the velocities with `cond` and with `neg` at once; called in place of two calls.
        on_step: called as `on_step(i, x, pred_x0)` after step i with the new x and this step's estimate of the sample.

    Returns:
        The sample, shaped like `noise`.
    """
    guide = _Guidance(model_fn, cond, neg, params.guidance_rescale, sigma_min, ctx, sample_rows, both)
    past = _Past(params.step_caching)
    times = flow_schedule(params.steps, params.rescale_t)
    low, high = params.guidance_interval
    count = noise.shape[0] if sample_rows is None else int(sample_rows[-1]) + 1
    x = noise
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        tau = torch.full((count,), 1000 * t, dtype=torch.float32)
        strength = params.guidance_strength if low <= t <= high else 1.0
        v = past.extrapolated(t, strength) if i + 1 < params.steps else None
        if v is None:
            v = guide.velocity(x, t, tau, strength)
            past.learn(t, strength, v)
        before, x = x, x - (t - t_next) * v
        if on_step is not None:
            on_step(i, x, guide.estimate(before, v, t))
        ctx.report((i + 1) / params.steps)
    return x


@dataclass
class _Past:
    """The last two velocities that were computed, and a guess at the next: along the straight line through them in time.

    Where guidance sets in or ends velocities jump, so those of the other side are forgotten.
    """

    most: int
    known: tuple[tuple[float, Tensor], ...] = ()
    strength: float | None = None
    guesses: int = 0

    def extrapolated(self, t: float, strength: float) -> Tensor | None:
        """The velocity at time t, or None where it must be computed."""
        if strength != self.strength or len(self.known) < 2 or self.guesses == self.most:
            return None
        self.guesses += 1
        (t0, v0), (t1, v1) = self.known
        return torch.lerp(v0, v1, (t - t0) / (t1 - t0))

    def learn(self, t: float, strength: float, v: Tensor) -> None:
        kept = self.known[-1:] if strength == self.strength else ()
        self.known, self.strength, self.guesses = (*kept, (t, v)) if self.most else (), strength, 0


@dataclass(frozen=True)
class _Guidance:
    """The guided velocity field."""

    model_fn: Velocity
    cond: Any
    neg: Any
    rescale: float
    sigma_min: float
    ctx: RunContext
    sample_rows: Tensor | None
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None

    def velocity(self, x: Tensor, t: float, tau: Tensor, strength: float) -> Tensor:
        if strength == 1.0:
            return self._call(x, tau, self.cond)
        if strength == 0.0:
            return self._call(x, tau, self.neg)
        if self.both is not None:
            self.ctx.check()
            positive, negative = self.both(x, tau)
        else:
            positive, negative = self._call(x, tau, self.cond), self._call(x, tau, self.neg)
        v = strength * positive + (1 - strength) * negative
        if self.rescale > 0:
            v = self._rescaled(x, v, positive, t)
        return v

    def estimate(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        """The sample that a straight line from x along v ends in."""
        return (1 - self.sigma_min) * x - self._noise_level(t) * v

    def _rescaled(self, x: Tensor, v: Tensor, positive: Tensor, t: float) -> Tensor:
        """Pull the spread of the guided estimate towards that of the unguided one."""
        guided = self.estimate(x, v, t)
        spread = self._std(self.estimate(x, positive, t)) / self._std(guided).clamp_min(1e-12)
        if self.sample_rows is not None:
            spread = spread[self.sample_rows]
        spread = spread.view(-1, *[1] * (x.dim() - 1))
        mixed = self.rescale * (guided * spread) + (1 - self.rescale) * guided
        return ((1 - self.sigma_min) * x - mixed) / self._noise_level(t)

    def _noise_level(self, t: float) -> float:
        return self.sigma_min + (1 - self.sigma_min) * t

    def _call(self, x: Tensor, tau: Tensor, cond: Any) -> Tensor:
        self.ctx.check()
        return self.model_fn(x, tau, cond)

    def _std(self, x: Tensor) -> Tensor:
        """[B], over all elements of a sample."""
        if self.sample_rows is None:
            return x.flatten(1).std(dim=1, correction=0)
        rows = x.split(torch.bincount(self.sample_rows).tolist())
        return torch.stack([r.std(correction=0) for r in rows])
