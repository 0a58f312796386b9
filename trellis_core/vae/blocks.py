"""Blocks of the sparse autoencoders (docs/method/decoders.md). Attribute names are the published parameter names.

Blocks see plain feature rows [N, C] beside the neighbour map of their voxels.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..context import RunContext
from ..layers import Layer
from ..sparse.conv import ROW_BLOCK, NeighborMap, SubmanifoldConv3d
from ..sparse.resample import ResamplePlan, channel_to_space, downsample_mean, space_to_channel, upsample_nearest

BLOCK_EPS = 1e-6


def plain_norm(x: Tensor, eps: float = BLOCK_EPS) -> Tensor:
    """Layer norm over channels without parameters, in float32, cast back."""
    return F.layer_norm(x.float(), x.shape[1:], eps=eps).to(x.dtype)


def _affine_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.float()).to(x.dtype)


CHUNK_BYTES = {False: 128 << 20, True: 16 << 20}
"""Size of the widest intermediate that a chunk of rows makes, in float32; by whether the run is frugal."""


def chunk_rows(channels: int, frugal: bool) -> int:
    """Rows of this width that make a chunk, a multiple of ROW_BLOCK."""
    return max(1, CHUNK_BYTES[frugal] // (channels * 4 * ROW_BLOCK)) * ROW_BLOCK


def zeroed(layer: Layer) -> Layer:
    """The layer with all parameters zero: a residual branch that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SparseConvNeXtBlock3d(nn.Module):
    """x + MLP(norm(conv(x))), hidden width 4 C, SiLU."""

    def __init__(
        self,
        channels: int,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv = SubmanifoldConv3d(channels, channels, device=device, dtype=dtype)
        self.norm = ops.LayerNorm(channels, eps=BLOCK_EPS, device=device, dtype=torch.float32)
        self.mlp = nn.Sequential(
            ops.Linear(channels, 4 * channels, device=device, dtype=dtype),
            nn.SiLU(),
            zeroed(ops.Linear(4 * channels, channels, device=device, dtype=dtype)),
        )

    def forward(self, x: Tensor, nmap: NeighborMap) -> Tensor:
        return x + self.mlp(_affine_norm(self.norm, self.conv(x, nmap)))

    def in_chunks(self, x: Tensor, nmap: NeighborMap, ctx: RunContext) -> Tensor:
        """`forward` without gradient, its wide inner rows a chunk at a time."""
        out = torch.empty_like(x)
        for rows, h in self.conv.chunks(x, nmap, chunk_rows(4 * x.shape[1], ctx.frugal)):
            ctx.check()
            torch.add(x[rows], self.mlp(_affine_norm(self.norm, h)), out=out[rows])
        return out


class ResampleBlock(nn.Module):
    """norm1 -> SiLU -> conv1 and resampling -> plain norm -> SiLU -> conv2, beside a resampled skip."""

    @staticmethod
    def fits(channels: int, out_channels: int) -> bool:
        """Whether it can lead from so many channels to so many."""
        return True

    def __init__(
        self,
        channels: int,
        middle: int,
        out_channels: int,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, out_channels
        self.norm1 = ops.LayerNorm(channels, eps=BLOCK_EPS, device=device, dtype=torch.float32)
        self.conv1 = SubmanifoldConv3d(channels, middle, device=device, dtype=dtype)
        self.conv2 = zeroed(SubmanifoldConv3d(out_channels, out_channels, device=device, dtype=dtype))

    def _enter(self, x: Tensor) -> Tensor:
        return F.silu(_affine_norm(self.norm1, x))

    def _leave(self, h: Tensor, nmap: NeighborMap) -> Tensor:
        return self.conv2(F.silu(plain_norm(h)), nmap)


class SparseResBlockC2S3d(ResampleBlock):
    """Up-stage C -> O by channel-to-space. Needs C % 8 == 0 and O % (C / 8) == 0.

    `to_subdiv`, if there, tells from the raw block input which children exist.
    """

    @staticmethod
    def fits(channels: int, out_channels: int) -> bool:
        return channels % 8 == 0 and 8 * out_channels % channels == 0

    def __init__(self, channels: int, out_channels: int, pred_subdiv: bool = True, **layer: Any) -> None:
        super().__init__(channels, 8 * out_channels, out_channels, **layer)
        if pred_subdiv:
            self.to_subdiv = _linear(channels, 8, **layer)

    def forward(self, x: Tensor, coarse: NeighborMap, plan: ResamplePlan) -> Tensor:
        """x [N, C] on the coarse voxels -> [F, O] on the plan's fine voxels."""
        h = channel_to_space(self.conv1(self._enter(x), coarse), plan)
        skip = channel_to_space(x, plan).repeat_interleave(self.out_channels * 8 // self.channels, dim=1)
        return self._leave(h, plan.neighbors) + skip

    def in_chunks(self, x: Tensor, coarse: NeighborMap, plan: ResamplePlan, ctx: RunContext) -> Tensor:
        """`forward` without gradient, the eight-fold rows of conv1 a chunk of parents at a time.

        The plan's fine rows must follow their parents' order, as those of `split_plan` do.
        """
        return self.climb(self.entered(x, ctx), x, coarse, plan, ctx)

    def entered(self, x: Tensor, ctx: RunContext) -> Tensor:
        """What conv1 reads, like x."""
        entered = torch.empty_like(x)
        for part, entry in zip(x.split(step := chunk_rows(self.channels, ctx.frugal)), entered.split(step), strict=True):
            entry.copy_(self._enter(part))
        return entered

    def climb(self, entered: Tensor, x: Tensor, coarse: NeighborMap, plan: ResamplePlan, ctx: RunContext) -> Tensor:
        """The rest of `in_chunks`. `coarse` and x [N, C] may be of some rows alone; `entered` is of all."""
        h = x.new_empty(len(plan.coords), self.out_channels)
        for rows, wide in self.conv1.chunks(entered, coarse, chunk_rows(8 * self.out_channels, ctx.frugal)):
            ctx.check()
            fine = plan.children(rows)
            slots = plan.slot[fine] - 8 * rows.start
            h[fine] = F.silu(plain_norm(wide.view(-1, self.out_channels).index_select(0, slots)))
        del entered
        eighths, repeats = x.reshape(len(x) * 8, -1), self.out_channels * 8 // self.channels
        out = torch.empty_like(h)
        for rows, left in self.conv2.chunks(h, plan.neighbors, chunk_rows(self.out_channels, ctx.frugal)):
            ctx.check()
            skip = eighths.index_select(0, plan.slot[rows]).repeat_interleave(repeats, dim=1)
            torch.add(left, skip, out=out[rows])
        return out


class SparseResBlockUpsample3d(ResampleBlock):
    """Up-stage C -> O by copying parents (not in the published weights)."""

    def __init__(self, channels: int, out_channels: int, pred_subdiv: bool = True, **layer: Any) -> None:
        super().__init__(channels, out_channels, out_channels, **layer)
        self.skip_connection = nn.Identity() if channels == out_channels else _linear(channels, out_channels, **layer)
        if pred_subdiv:
            self.to_subdiv = _linear(channels, 8, **layer)

    def forward(self, x: Tensor, coarse: NeighborMap, plan: ResamplePlan) -> Tensor:
        """x [N, C] on the coarse voxels -> [F, O] on the plan's fine voxels."""
        h = self.conv1(upsample_nearest(self._enter(x), plan), plan.neighbors)
        return self._leave(h, plan.neighbors) + self.skip_connection(upsample_nearest(x, plan))


class SparseResBlockS2C3d(ResampleBlock):
    """Down-stage C -> O by space-to-channel. Needs O % 8 == 0 and 8 C % O == 0."""

    @staticmethod
    def fits(channels: int, out_channels: int) -> bool:
        return out_channels % 8 == 0 and 8 * channels % out_channels == 0

    def __init__(self, channels: int, out_channels: int, **layer: Any) -> None:
        super().__init__(channels, out_channels // 8, out_channels, **layer)

    def forward(self, x: Tensor, plan: ResamplePlan, coarse: NeighborMap) -> Tensor:
        """x [F, C] on the plan's fine voxels -> [N, O] on the voxels of `coarse`."""
        rows = coarse.rows
        h = space_to_channel(self.conv1(self._enter(x), plan.neighbors), plan, rows)
        skip = space_to_channel(x, plan, rows).view(rows, self.out_channels, 8 * self.channels // self.out_channels)
        return self._leave(h, coarse) + skip.mean(dim=2)


class SparseResBlockDownsample3d(ResampleBlock):
    """Down-stage C -> O by averaging the children that exist (not in the published weights)."""

    def __init__(self, channels: int, out_channels: int, **layer: Any) -> None:
        super().__init__(channels, out_channels, out_channels, **layer)
        self.skip_connection = nn.Identity() if channels == out_channels else _linear(channels, out_channels, **layer)

    def forward(self, x: Tensor, plan: ResamplePlan, coarse: NeighborMap) -> Tensor:
        """x [F, C] on the plan's fine voxels -> [N, O] on the voxels of `coarse`."""
        h = self.conv1(downsample_mean(self._enter(x), plan, coarse.rows), coarse)
        return self._leave(h, coarse) + self.skip_connection(downsample_mean(x, plan, coarse.rows))


def _linear(channels: int, out_channels: int, *, ops: ModuleType = nn, **where: Any) -> nn.Module:
    return ops.Linear(channels, out_channels, **where)


UP_BLOCKS = {block.__name__: block for block in (SparseResBlockC2S3d, SparseResBlockUpsample3d)}
DOWN_BLOCKS = {block.__name__: block for block in (SparseResBlockS2C3d, SparseResBlockDownsample3d)}
