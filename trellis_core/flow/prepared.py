"""A flow transformer made ready for one sampling run: exact shortcuts for all that does not change between the steps.

Positions are embedded once, the time modulation of all steps is one batch, the context is projected once, and the
unguided branch, whose context is zeros, gets its cross-attention in closed form. Calling the network itself is the readable
twin; both agree up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import QUIET, RunContext
from .attention import Batch
from .context import Both, Context, Kept, Nothing
from .slat import SLatFlowModel
from .structure import SparseStructureFlowModel
from .transformer import FlowTransformer, Layout

PAIR_ROWS = 4096
"""Tokens of all samples up to which both guided branches go through the network as one batch. With more, one branch alone
fills any machine, and the batch would only take memory."""
KEPT_BYTES = 1 << 30
"""Keys and values of the context are kept between steps up to this size; projecting them again is 2 % of a step's work."""


@dataclass(frozen=True)
class PreparedFlow:
    """Velocity of a network at the times it was prepared for; what `flow.sampler.sample` calls.

    Attributes:
        cond, neg: hand these to the sampler as its contexts.
    """

    model: FlowTransformer
    layout: Layout
    cond: Context
    neg: Context
    fold: Callable[[Tensor], Tensor]
    unfold: Callable[[Tensor], Tensor]
    modulations: dict[float, Tensor]
    pair: tuple[Layout, Context] | None
    ctx: RunContext

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """x as the network takes it, t float32 [B] one of the prepared times in all samples -> velocity like x."""
        return self.unfold(self.model.velocity(self.fold(x), self.layout, self._modulation(t), context, self.ctx))

    @property
    def both(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """For the sampler: the velocities with `cond` and with `neg` in one batch. None where that does not pay."""
        if self.pair is None:
            return None
        layout, context = self.pair

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            tokens, mod = self.fold(x), self._modulation(torch.cat((t, t)))
            first, second = self.model.velocity(torch.cat((tokens, tokens)), layout, mod, context, self.ctx).chunk(2)
            return self.unfold(first), self.unfold(second)

        return both

    def _modulation(self, t: Tensor) -> Tensor:
        return self.modulations[float(t[0])].expand(len(t), -1)


@torch.no_grad()
def prepare_structure(
    model: SparseStructureFlowModel, cond: Tensor, times: Sequence[float], ctx: RunContext = QUIET
) -> PreparedFlow:
    """For cubes [B, C, R, R, R] with cond [B, L, Cc], at these times in 0..1."""
    layout = model.layout_of(len(cond), cond.device)
    return prepare(model, layout, cond, times, model.fold, model.unfold, ctx)


@torch.no_grad()
def prepare_slat(
    model: SLatFlowModel,
    coords: Tensor,
    cond: Tensor,
    times: Sequence[float],
    known: Tensor | None = None,
    ctx: RunContext = QUIET,
) -> PreparedFlow:
    """For rows [T, C] on coords int32 [T, 4] with cond [B, L, Cc]; `known` [T, Cs] goes beside the channels of the rows."""
    layout = model.layout_of(coords, len(cond))

    def fold(rows: Tensor) -> Tensor:
        return layout.batch.fold(rows if known is None else torch.cat((rows, known), dim=1))

    return prepare(model, layout, cond, times, fold, lambda v: v.flatten(0, -2), ctx)


def prepare(
    model: FlowTransformer,
    layout: Layout,
    cond: Tensor,
    times: Sequence[float],
    fold: Callable[[Tensor], Tensor],
    unfold: Callable[[Tensor], Tensor],
    ctx: RunContext,
) -> PreparedFlow:
    """For tokens of this layout; `fold` and `unfold` lead from what the sampler has to folded tokens and back."""
    tokens = model.tokens(cond)
    keep = not ctx.frugal and kept_bytes(model, cond[..., 0].numel()) <= KEPT_BYTES
    kept = Kept.of(model.blocks, tokens) if keep else tokens
    neg = Nothing.of(model.blocks, tokens.rows.new_zeros(1, tokens.rows.shape[-1]))
    taus = torch.tensor(times, dtype=torch.float64).mul(1000).float()
    table = dict(zip(taus.tolist(), model.modulation(taus).split(1), strict=True))
    together = not ctx.frugal and sum(layout.batch.lengths) <= PAIR_ROWS
    pair = (_doubled(layout), Both(kept, neg)) if together else None
    return PreparedFlow(model, layout, kept, neg, fold, unfold, table, pair, ctx)


def kept_bytes(model: FlowTransformer, rows: int) -> int:
    """What is kept of this many context rows of all samples together."""
    return 2 * rows * model.params.model_channels * model.params.num_blocks * model.dtype.itemsize


def _doubled(layout: Layout) -> Layout:
    """The same tokens twice, one after the other."""
    batch = Batch(layout.batch.lengths * 2)

    def twice(x: Tensor) -> Tensor:
        """Positions that even samples share need no copy."""
        return x if layout.batch.is_even and x.shape[0] != len(layout.batch.lengths) else torch.cat((x, x))

    phases = layout.phases
    return Layout(batch, phases and (twice(phases[0]), twice(phases[1])), None if layout.added is None else twice(layout.added))
