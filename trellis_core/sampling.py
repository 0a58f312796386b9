"""Sampling with the flow networks of a family: what the stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .context import RunContext
from .errors import InputError
from .family import Family
from .flow.attention import use_attention
from .flow.prepared import PreparedFlow, prepare_slat
from .flow.sampler import SamplerParams, flow_schedule, sample
from .memory.plan import recovering
from .settings import SAMPLER_FIELDS, STAGE_PREFIX, GenerationSettings
from .values import Condition

LOADED = 0.15
"""Share of a sampling stage's progress that stands for reading its network."""


@dataclass(frozen=True)
class Estimate:
    """What a sampler, half way, takes its result to be.

    Attributes:
        stage: "structure", "shape" or "texture".
        step, steps: how many steps are done, of how many.
        latent: denormalised; [B, C, r, r, r] of the structure, else rows [T, C] on `coords`.
        coords: int32 [T, 4] latent voxels, None for the structure.
        grid: voxels per axis of `coords`.
    """

    stage: str
    step: int
    steps: int
    latent: Tensor
    coords: Tensor | None = None
    grid: int = 0


Watch = Callable[[Estimate], None]
"""Is shown the estimate after every step of a sampler; must not change it."""


def sampler_params(settings: GenerationSettings, stage: str, family_defaults: Mapping[str, Any] | None = None) -> SamplerParams:
    """How to sample `stage` ("structure", "shape" or "texture").

    `family_defaults` are the sampler `params` of a family's pipeline.json; they stand in for settings that the user did not
    give, as in the original program (spec A 6).
    """
    values: dict[str, Any] = {}
    for key, endings in SAMPLER_FIELDS.items():
        names = [f"{STAGE_PREFIX[stage]}_{ending}" for ending in endings]
        own = tuple(getattr(settings, name) for name in names)
        values[key] = own if len(own) > 1 else own[0]
        if family_defaults and key in family_defaults and not settings.model_fields_set.intersection(names):
            values[key] = family_defaults[key]
    values["guidance_interval"] = tuple(values["guidance_interval"])
    return SamplerParams(**values, step_caching=settings.step_caching)


def denoise(
    flow: PreparedFlow,
    noise: Tensor,
    params: SamplerParams,
    sigma_min: float,
    ctx: RunContext,
    on_step: Callable[[int, Tensor, Tensor], None] | None,
    sample_rows: Tensor | None = None,
) -> Tensor:
    """From noise on the CPU to a latent on the context's device; see `flow.sampler.sample`."""
    return sample(
        flow,
        noise.to(ctx.device),
        params,
        cond=flow.cond,
        neg=flow.neg,
        both=flow.both,
        sigma_min=sigma_min,
        ctx=ctx,
        sample_rows=sample_rows,
        on_step=on_step,
    )


def tokens_of(condition: Condition, scale: int) -> Tensor:
    """The picture's tokens [B, L, C] for a network of `scale`; raises `InputError` if they were not made."""
    if scale not in condition.tokens:
        made = ", ".join(map(str, condition.tokens))
        raise InputError(f"The condition holds tokens for scale {made}, not {scale}: make it with the same settings.")
    return condition.tokens[scale]


@dataclass(frozen=True)
class LatentSampling:
    """How to sample the latents of a stage, "shape" or "texture"."""

    family: Family
    condition: Condition
    settings: GenerationSettings
    stage: str
    generator: torch.Generator
    watch: Watch | None

    def sample(self, scale: int, coords: Tensor, grid: int, ctx: RunContext, known: Tensor | None = None) -> Tensor:
        """Sample with the network of `scale` on coords [N, 4] of grid^3; normalised float32 [N, C], on the CPU.

        `known` is a latent [N, C'] on the same rows that the network sees beside the noisy one.
        """
        tokens = tokens_of(self.condition, scale)
        samples = int(coords[-1, 0]) + 1
        tokens = tokens.expand(samples, -1, -1).to(ctx.device)
        kind = {"shape": "shape", "texture": "tex"}[self.stage]
        sampler, rows = self.family.samplers[self.stage], coords.to(ctx.device)
        params = sampler_params(self.settings, self.stage, sampler.params)
        beside = None if known is None else known.to(ctx.device)
        with self.family.network(f"{kind}_slat_flow_model_{scale}", ctx.part(0, LOADED), len(coords)) as flow:
            width = flow.params.in_channels - (0 if known is None else known.shape[1])
            noise = torch.randn(len(coords), width, generator=self.generator)

            def walk(ctx: RunContext) -> Tensor:
                ready = prepare_slat(flow, rows, tokens, flow_schedule(params.steps, params.rescale_t), beside, ctx)
                on_step = self.watch and (lambda i, x, x0: self._show(i + 1, params.steps, x0, rows, grid))
                return denoise(ready, noise, params, sampler.sigma_min, ctx, on_step, rows[:, 0].long()).cpu()

            with use_attention(ctx.attention):
                return recovering(ctx.part(LOADED, 1.0), walk)

    def _show(self, step: int, steps: int, estimate: Tensor, coords: Tensor, grid: int) -> None:
        norm = self.family.shape_norm if self.stage == "shape" else self.family.texture_norm
        self.watch(Estimate(self.stage, step, steps, norm.undo(estimate), coords, grid))
