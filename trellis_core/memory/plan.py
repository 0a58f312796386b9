"""What a run will take, stage by stage, before it starts; and how to make it fit a budget (docs/method/decoders.md)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch

from ..context import RunContext
from ..errors import EXHAUSTED, OutOfBudgetError, is_exhaustion
from ..family import Family, Route, read_and_drop
from ..kernels import works_on
from ..lora.apply import Use
from ..roles import IMAGE_ROLE, STRUCTURE_DECODER, STRUCTURE_FLOW, flow_role
from ..settings import GenerationSettings
from ..weights.network_file import NetworkFile
from .footprint import activation_bytes

TOKENS_PER_CELL = 2.4
"""Latent voxels of a usual object per square of the grid's side: 2,200 at 32, 9,600 at 64 (docs/method/decoders.md)."""
MARGIN = 1.07
"""What allocators and kernels take beside the tensors."""
FEWEST_TOKENS = 4096
"""A token limit below this would not leave an object of any detail."""

T = TypeVar("T")


def _said(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


@dataclass(frozen=True)
class Step:
    """One network's turn: `rows` as `footprint.activation_bytes` counts, bytes of its weights and of its activations."""

    role: str
    rows: int
    weights: int
    activations: int

    @property
    def total(self) -> int:
        return round((self.weights + self.activations) * MARGIN)


@dataclass(frozen=True)
class Plan:
    """A run that fits: its steps, and the context and the settings to run it with."""

    steps: tuple[Step, ...]
    ctx: RunContext
    settings: GenerationSettings

    @property
    def peak(self) -> int:
        """Bytes; networks take turns, so it is that of the largest step."""
        return max(step.total for step in self.steps)

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'network':32} {'rows':>10} {'weights':>9} {'work':>9} {'together':>9}"]
        for s in self.steps:
            parts = "".join(f" {_said(size):>9}" for size in (s.weights, s.activations, s.total))
            lines.append(f"{s.role:32} {s.rows:10,}{parts}")
        how = "saving memory" if self.ctx.frugal else "at full speed"
        lines.append(f"Peak {_said(self.peak)}, {how}, at most {self.settings.max_num_tokens:,} tokens.")
        return "\n".join(lines)


def with_budget(ctx: RunContext, family: Family) -> RunContext:
    """The context; if it has no budget, and no host looks after the memory, with what is free on an NVIDIA or AMD GPU."""
    if ctx.memory_budget is not None or ctx.device.type != "cuda" or family.hold is not read_and_drop:
        return ctx
    return replace(ctx, memory_budget=torch.cuda.mem_get_info(ctx.device)[0])


def plan_run(family: Family, settings: GenerationSettings, ctx: RunContext, tokens: int | None = None) -> Plan:
    """Choose how to run within the context's memory budget; the mesh work after the networks is planned by itself.

    Objects of a batch go through the networks one after another, so one object is planned for.

    Args:
        tokens: latent voxels of one object at the final resolution if they are known; else those of a usual object.

    Raises:
        OutOfBudgetError: not even the most frugal way fits; says what would.
    """
    route = family.route(settings.resolution, settings.cascade)
    plan, budget = _plan(family, settings, route, ctx, tokens), ctx.memory_budget
    if budget is None or plan.peak <= budget:
        return plan
    plan = _plan(family, settings, route, replace(ctx, frugal=True), tokens)
    if plan.peak <= budget:
        return plan
    if route.low and tokens is None:  # a cascade lowers its resolution to obey a limit of tokens
        limits = list(_limits_below(settings.max_num_tokens))
        fewer = lambda n: settings.model_copy(update={"max_num_tokens": n})  # noqa: E731
        plans = lru_cache(lambda n: _plan(family, fewer(n), route, plan.ctx, None))
        if limits and plans(limits[-1]).peak <= budget:
            return plans(limits[bisect_left(limits, True, key=lambda n: plans(n).peak <= budget)])
    raise OutOfBudgetError(_refusal(family, settings, plan, budget))


def _limits_below(limit: int) -> Iterator[int]:
    while limit > FEWEST_TOKENS:
        limit = max(FEWEST_TOKENS, limit * 3 // 4)
        yield limit


def _plan(family: Family, settings: GenerationSettings, route: Route, ctx: RunContext, tokens: int | None) -> Plan:
    start, target = family.scales[route.start], family.scales[route.target]
    coarse = round(TOKENS_PER_CELL * start.structure_grid**2)
    fine = tokens or round(TOKENS_PER_CELL * target.structure_grid**2)
    fine = min(fine, settings.max_num_tokens) if route.low else fine
    steps = []
    for role in family.roles(route):
        rows, scale = fine, route.model
        if role == IMAGE_ROLE:
            rows = max(family.scales[key].image_size for key in (512, route.start, route.model)) ** 2
        elif role in (STRUCTURE_FLOW, STRUCTURE_DECODER):
            rows, scale = family.networks[STRUCTURE_FLOW].args["resolution"] ** 3, 512
        elif route.low and role == flow_role("shape", route.low):
            rows, scale = coarse, route.low
        steps.append(_step(family, role, rows, scale, ctx))
    return Plan(tuple(steps), ctx, settings)


def _step(family: Family, role: str, rows: int, scale: int, ctx: RunContext) -> Step:
    network, uses = family.networks[role], family.loras.get(role, ())
    params, dtype, weights = _facts(network, ctx.device, ctx.dtype)
    encoder = _facts(family.networks[IMAGE_ROLE], ctx.device, ctx.dtype)[0]
    context = (family.scales[scale].image_size // encoder.patch_size) ** 2 + 1 + encoder.num_register_tokens
    beside = bool(uses) and (dtype != torch.float32 or network.precision is not None)  # else they are merged
    loras = sum(map(_numbers, uses)) * dtype.itemsize if beside else 0
    work = activation_bytes(
        params, rows, dtype, ctx.frugal, works_on(ctx.device), device_type=ctx.device.type, context=context,
        precision=network.precision, loras=beside,
    )  # fmt: skip
    return Step(role, rows, weights + loras, work)


def _numbers(use: Use) -> int:
    parts = (part for delta in use.adapter.deltas.values() for part in vars(delta).values())
    return sum(part.numel() for part in parts if isinstance(part, torch.Tensor))


@lru_cache(maxsize=64)
def _facts(network: NetworkFile, device: torch.device, dtype: torch.dtype | None) -> tuple[Any, torch.dtype, int]:
    """Params, dtype of the torso and bytes of the weights."""
    model = network.build(RunContext(device, dtype))
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return model.params, getattr(model, "dtype", torch.float32), size


def _refusal(family: Family, settings: GenerationSettings, plan: Plan, budget: int) -> str:
    worst = max(plan.steps, key=lambda step: step.total)
    text = (
        f"Resolution {settings.resolution} takes {_said(plan.peak)} when saving memory, the budget is "
        f"{_said(budget)}. Most is taken by {worst.role}: {_said(worst.weights)} of weights, "
        f"{_said(worst.activations)} of work."
    )
    for resolution in sorted((r for r in family.resolutions if r < settings.resolution), reverse=True):
        smaller = settings.model_copy(update={"resolution": resolution})
        if _plan(family, smaller, family.route(resolution), plan.ctx, None).peak <= budget:
            return f"{text} Resolution {resolution} would fit."
    return f"{text} Raise the budget, or use smaller weights or a smaller dtype."


def recovering(ctx: RunContext, work: Callable[[RunContext], T]) -> T:
    """Do `work`; if the device runs out of memory, do it once more in the frugal way.

    Raises:
        OutOfBudgetError: there is not enough memory for the frugal way either.
    """
    try:
        return work(ctx)
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        if ctx.frugal:
            raise OutOfBudgetError(EXHAUSTED) from error
    _forget(ctx)
    try:
        return work(replace(ctx, frugal=True))
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        raise OutOfBudgetError(EXHAUSTED) from error


def _forget(ctx: RunContext) -> None:
    if ctx.device.type == "cuda":
        torch.cuda.empty_cache()
