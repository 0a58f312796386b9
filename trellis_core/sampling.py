"""Sampling with the flow networks of a family: what the stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from .roles import flow_role, flow_roles
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
        latent: of one object, denormalised; [1, C, r, r, r] of the structure, else rows [T, C] on `coords`.
        coords: int32 [T, 4] latent voxels of sample 0, None for the structure.
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


def sampler_values(settings: GenerationSettings, stage: str, recommended: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that sample `stage` ("structure", "shape" or "texture"), by name: each as it is used.

    `recommended` are the sampler `params` of a family's pipeline.json; they stand in for settings that the user did not give,
    as in the original program (docs/method/sampling.md).
    """
    used: dict[str, Any] = {}
    for key, endings in SAMPLER_FIELDS.items():
        names = [f"{STAGE_PREFIX[stage]}_{ending}" for ending in endings]
        values = [getattr(settings, name) for name in names]
        if recommended and key in recommended and not settings.model_fields_set.intersection(names):
            values = list(recommended[key]) if len(names) > 1 else [recommended[key]]
        used |= zip(names, values, strict=True)
    return used


def sampler_params(settings: GenerationSettings, stage: str, recommended: Mapping[str, Any] | None = None) -> SamplerParams:
    """How to sample `stage`; see `sampler_values`."""
    used = sampler_values(settings, stage, recommended)
    groups = {key: [used[f"{STAGE_PREFIX[stage]}_{end}"] for end in ends] for key, ends in SAMPLER_FIELDS.items()}
    values: dict[str, Any] = {key: tuple(group) if len(group) > 1 else group[0] for key, group in groups.items()}
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
    noise: Sequence[torch.Generator]
    watch: Watch | None

    def sample(self, scale: int, coords: Tensor, grid: int, ctx: RunContext, known: Tensor | None = None) -> Tensor:
        """Sample with the network of `scale` on coords [N, 4] of grid^3; normalised float32 [N, C], on the CPU.

        `known` is a latent [N, C'] on the same rows that the network sees beside the noisy one.
        """
        tokens = tokens_of(self.condition, scale)
        items = [rows_of(coords, index) for index in range(len(self.noise))]
        sampler = self.family.samplers[self.stage]
        params = sampler_params(self.settings, self.stage, sampler.params)
        times = flow_schedule(params.steps, params.rescale_t)
        role, most = flow_role(self.stage, scale), max(len(one) for one, _ in items)
        with self.family.network(role, ctx.part(0, LOADED), most) as flow, use_attention(ctx.attention):
            width = flow.params.in_channels - (0 if known is None else known.shape[1])

            def walk(ctx: RunContext, index: int) -> Tensor:
                one, rows = items[index]
                one = one.to(ctx.device)
                cond = tokens[index % len(tokens)][None].to(ctx.device)
                beside = None if known is None else known[rows].to(ctx.device)
                start = torch.randn(len(one), width, generator=self.noise[index])
                on_step = self.watch and partial(self._show, self.watch, params.steps, one, grid)

                def go(ctx: RunContext) -> Tensor:
                    ready = prepare_slat(flow, one, cond, times, beside, ctx)
                    return denoise(ready, start, params, sampler.sigma_min, ctx, on_step, one[:, 0].long()).cpu()

                return recovering(ctx, go)

            return torch.cat([walk(part, index) for index, part in enumerate(ctx.part(LOADED, 1.0).split(len(items)))])

    def _show(self, watch: Watch, steps: int, coords: Tensor, grid: int, step: int, _x: Tensor, estimate: Tensor) -> None:
        norm = self.family.shape_norm if self.stage == "shape" else self.family.texture_norm
        watch(Estimate(self.stage, step + 1, steps, norm.undo(estimate), coords, grid))


def rows_of(coords: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """One object of a batch alone: its coords int32 [M, 4] as sample 0, and bool [N], which rows of all are its own."""
    rows = coords[:, 0] == index
    one = coords[rows].clone()
    one[:, 0] = 0
    return one, rows


def numbered(items: Sequence[Tensor]) -> Tensor:
    """Coords [M, 4] of single objects as those of a batch [N, 4], on the CPU."""
    batch = [item.clone() for item in items]
    for index, one in enumerate(batch):
        one[:, 0] = index
    return torch.cat(batch).contiguous()


def made_with(family: Family, settings: GenerationSettings, stage: str, scale: int | None = None) -> dict[str, Any]:
    """What a stage is sampled with, every value as it is used: weights, sampler settings, LoRAs.

    Args:
        scale: of the network that makes the stage's result; None for the structure.
    """
    role = flow_roles(stage)[scale]
    loras = [f"{use.name} at {use.strength:g}" for use in family.loras.get(role, ()) if use.strength]
    used = {"weights": family.name, **sampler_values(settings, stage, family.samplers[stage].params)}
    used |= {"precision": family.networks[role].precision} if family.networks[role].precision else {}
    used |= {"step_caching": settings.step_caching} if settings.step_caching else {}
    return used | ({f"{stage}_loras": loras} if loras else {})
