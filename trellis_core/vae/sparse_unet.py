"""Sparse-convolution autoencoders of the shape and of the texture (docs/method/decoders.md).

Both are U-nets without cross links: the encoder halves the grid len(num_blocks) - 1 times, the decoder doubles it as
often. A decoder follows the subdivision that it predicts itself, that another decoder predicted (guides), or that an
encoder remembered (plans).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..context import QUIET, RunContext
from ..errors import EmptyResultError, InputError
from ..layers import Layers
from ..network_params import Count, NetworkParams, Width, Widths, needs
from ..sparse.conv import NeighborMap
from ..sparse.libraries import chosen
from ..sparse.resample import ResamplePlan, merge_plan, split_plan
from .blocks import DOWN_BLOCKS, UP_BLOCKS, ResampleBlock, SparseConvNeXtBlock3d, SparseResBlockC2S3d, plain_norm

OUTER_EPS = 1e-5
SLAB_ROWS = 1 << 16
"""Parents whose children a frugal decoder finishes at a time, at most."""
FEWEST_SLABS = 4
OUTPUT_ROWS = 1 << 18
"""Rows whose float32 copies the output layer of a decoder reads at a time."""


@dataclass(frozen=True)
class _UnetParams(NetworkParams):
    model_channels: Widths
    latent_channels: Width
    num_blocks: Annotated[tuple[Count, ...], Field(min_length=1)]
    use_fp16: bool = False

    def __post_init__(self) -> None:
        levels, counts = len(self.model_channels), len(self.num_blocks)
        needs(levels == counts, f"there are {levels} widths for {counts} levels")
        steps = self._steps()
        needs(len(steps) >= levels - 1, f"there are {len(steps)} blocks between {levels} levels")
        for block, (before, after) in zip(steps, pairwise(self.model_channels), strict=False):
            needs(block.fits(before, after), f"a {block.__name__} cannot lead from {before} to {after} channels")

    def _steps(self) -> list[type[ResampleBlock]]:
        """The blocks between the levels."""
        raise NotImplementedError

    def torso_dtype(self, override: torch.dtype | None) -> torch.dtype:
        """Dtype of linear layers and convolutions inside the blocks."""
        return override or (torch.float16 if self.use_fp16 else torch.float32)


@dataclass(frozen=True)
class SparseUnetVaeEncoderParams(_UnetParams):
    """Shape of an encoder; `in_channels` 6 for both published ones, one down block less than levels."""

    in_channels: Width = 6
    down_block_type: tuple[Literal["SparseResBlockS2C3d", "SparseResBlockDownsample3d"], ...] = ("SparseResBlockS2C3d",) * 8

    def _steps(self) -> list[type[ResampleBlock]]:
        return [DOWN_BLOCKS[name] for name in self.down_block_type]


@dataclass(frozen=True)
class SparseUnetVaeDecoderParams(_UnetParams):
    """Shape of a decoder; `pred_subdiv` says whether it predicts its own subdivision."""

    out_channels: Width = 6
    pred_subdiv: bool = True
    up_block_type: tuple[Literal["SparseResBlockC2S3d", "SparseResBlockUpsample3d"], ...] = ("SparseResBlockC2S3d",) * 8

    def _steps(self) -> list[type[ResampleBlock]]:
        return [UP_BLOCKS[name] for name in self.up_block_type]


@dataclass(frozen=True)
class FlexiDualGridVaeEncoderParams(SparseUnetVaeEncoderParams):
    """Shape encoder: 6 input channels (`dual_grid_features`)."""


@dataclass(frozen=True)
class FlexiDualGridVaeDecoderParams(SparseUnetVaeDecoderParams):
    """Shape decoder: 7 output channels (`dual_grid_heads`); a dual vertex may leave its voxel by `voxel_margin`."""

    out_channels: Width = 7
    voxel_margin: Annotated[float, Field(ge=0, le=4)] = 0.5


@dataclass(frozen=True)
class Latent:
    """What an encoder says.

    Attributes:
        mean, logvar: float32 [T, C] of the posterior; inference uses the mean.
        coords: int32 [T, 4] latent voxels, lexicographic.
        plans: one per level, coarse to fine, as a decoder consumes them.
    """

    mean: Tensor
    logvar: Tensor
    coords: Tensor
    plans: list[ResamplePlan]


@dataclass(frozen=True)
class ShapeDecoding:
    """What a decoder says.

    Attributes:
        raw: float32 [N, out] outputs before any activation.
        coords: int32 [N, 4] voxels of the finest level.
        subdivisions: logits [N_i, 8] of every up-stage on its coarse voxels; empty without subdivision head.
    """

    raw: Tensor
    coords: Tensor
    subdivisions: list[Tensor]


class SparseUnetVaeEncoder(nn.Module):
    """Voxel features to latent posterior."""

    def __init__(
        self,
        params: SparseUnetVaeEncoderParams,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, params.torso_dtype(dtype)
        outer = {"device": device, "dtype": torch.float32}
        layer = {"ops": ops, "device": device, "dtype": self.dtype}
        width, last = params.model_channels, len(params.model_channels) - 1
        self.input_layer = ops.Linear(params.in_channels, width[0], **outer)
        self.blocks = Layers[Layers[Any]]()
        for level, count in enumerate(params.num_blocks):
            blocks: list[nn.Module] = [SparseConvNeXtBlock3d(width[level], **layer) for _ in range(count)]
            if level < last:
                blocks.append(DOWN_BLOCKS[params.down_block_type[level]](width[level], width[level + 1], **layer))
            self.blocks.append(Layers(blocks))
        self.to_latent = ops.Linear(width[-1], 2 * params.latent_channels, **outer)

    def forward(self, feats: Tensor, coords: Tensor, *, ctx: RunContext = QUIET) -> Latent:
        """feats float32 [N, in_channels] on coords int32 [N, 4] (rows in any order) -> posterior on the latent grid."""
        if not len(coords):
            raise EmptyResultError("There is no voxel to encode: the mesh is empty or lies outside the unit cube.")
        h = self.input_layer(feats.float()).to(self.dtype)
        nmap, plans = NeighborMap.build(coords), []
        total, done = sum(map(len, self.blocks)), 0
        for blocks in self.blocks:
            for block in blocks:
                if isinstance(block, SparseConvNeXtBlock3d):
                    h = block(h, nmap)
                else:
                    plan, coords = merge_plan(coords, nmap)
                    nmap = NeighborMap.build(coords)
                    h = block(h, plan, nmap)
                    plans.insert(0, plan)
                done += 1
                ctx.report(done / total)
        mean, logvar = self.to_latent(plain_norm(h.float(), OUTER_EPS)).chunk(2, dim=1)
        return Latent(mean, logvar, coords, plans)


class SparseUnetVaeDecoder(nn.Module):
    """Latent to voxel features."""

    def __init__(
        self,
        params: SparseUnetVaeDecoderParams,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, params.torso_dtype(dtype)
        outer = {"device": device, "dtype": torch.float32}
        layer = {"ops": ops, "device": device, "dtype": self.dtype}
        width, last = params.model_channels, len(params.model_channels) - 1
        self.from_latent = ops.Linear(params.latent_channels, width[0], **outer)
        self.blocks = Layers[Layers[Any]]()
        for level, count in enumerate(params.num_blocks):
            blocks: list[nn.Module] = [SparseConvNeXtBlock3d(width[level], **layer) for _ in range(count)]
            if level < last:
                up = UP_BLOCKS[params.up_block_type[level]]
                blocks.append(up(width[level], width[level + 1], params.pred_subdiv, **layer))
            self.blocks.append(Layers(blocks))
        self.output_layer = ops.Linear(width[-1], params.out_channels, **outer)

    def forward(
        self,
        z: Tensor,
        coords: Tensor,
        guides: list[Tensor] | None = None,
        plans: list[ResamplePlan] | None = None,
        *,
        ctx: RunContext = QUIET,
    ) -> tuple[Tensor, Tensor]:
        """Latent z float32 [T, C] on coords int32 [T, 4] -> (raw float32 [N, out], coords int32 [N, 4]).

        Args:
            guides: subdivision logits of another decoder, one [N_i, 8] per up-stage; only their sign counts.
            plans: remembered subdivision, coarse to fine; wins over guides and prediction. Output rows in plan order.
        """
        decoding = self.decode(z, coords, guides, plans, ctx=ctx)
        return decoding.raw, decoding.coords

    def decode(
        self,
        z: Tensor,
        coords: Tensor,
        guides: list[Tensor] | None = None,
        plans: list[ResamplePlan] | None = None,
        *,
        ctx: RunContext = QUIET,
    ) -> ShapeDecoding:
        """As `forward`, with the logits of the subdivision head, if there is one, on every level."""
        if guides is None and plans is None and not self.params.pred_subdiv:
            raise InputError("This decoder predicts no subdivision: give it the shape decoder's guides or an encoder's plans.")
        if guides is not None and self.params.pred_subdiv:
            raise InputError("This decoder predicts its own subdivision and takes no guides.")
        h, nmap, logits = self._enter(z, coords)
        total, done = sum(map(len, self.blocks)), 0
        for level, blocks in enumerate(self.blocks):
            for block in blocks:
                if isinstance(block, SparseConvNeXtBlock3d):
                    h = _body(block, h, nmap, ctx)
                else:
                    if self.params.pred_subdiv:
                        logits.append(block.to_subdiv(h))
                    marks = logits if guides is None else guides
                    plan = plans[level] if plans is not None else self._subdivide(coords, marks[level])
                    if plans is None and self._ends_with(level, h, ctx):
                        raw = self._in_slabs(block, h, nmap, plan, ctx.part(done / total, 1.0))
                        return ShapeDecoding(raw, plan.coords, logits)
                    h = block(h, nmap, plan) if plans is not None else _up(block, h, nmap, plan, ctx)
                    coords, nmap = plan.coords, plan.neighbors
                done += 1
                ctx.report(done / total)
        return ShapeDecoding(self._leave(h), coords, logits)

    def _ends_with(self, level: int, h: Tensor, ctx: RunContext) -> bool:
        """Whether to go from this level to the output in slabs."""
        last = level + 2 == len(self.blocks) and not len(self.blocks[-1])
        ours = isinstance(self.blocks[level][-1], SparseResBlockC2S3d) and chosen(h) is None
        return ctx.frugal and last and ours and not torch.is_grad_enabled()

    def _in_slabs(
        self, block: SparseResBlockC2S3d, h: Tensor, nmap: NeighborMap, plan: ResamplePlan, ctx: RunContext
    ) -> Tensor:
        """The last up-stage and the output [N, out], some parents at a time, together with the neighbours that theirs look at.

        Of the finest level's size, four times that of all others together, nothing is made but voxels and output.
        """
        raw = h.new_empty(len(plan.coords), self.params.out_channels, dtype=torch.float32)
        entered = block.entered(h, ctx)
        for own in nmap.chunks(min(SLAB_ROWS, -(-nmap.rows // FEWEST_SLABS))):
            fine = plan.children(own)
            if fine.stop > fine.start:
                near = nmap.around(own)
                part, mine = plan.part(near, own)
                made = block.climb(entered, h.index_select(0, near), nmap.only(near), part, ctx)
                raw[fine] = self._leave(made[mine])
            ctx.report(own.stop / nmap.rows)
        return raw

    def _leave(self, h: Tensor) -> Tensor:
        return torch.cat([self.output_layer(plain_norm(rows.float(), OUTER_EPS)) for rows in h.split(OUTPUT_ROWS)])

    def upsample(self, z: Tensor, coords: Tensor, times: int, *, ctx: RunContext = QUIET) -> Tensor:
        """coords int32 [N, 4] of the predicted voxels after `times` up-stages, without computing their features."""
        if not 1 <= times < len(self.blocks):
            raise InputError(f"This decoder can upsample 1 to {len(self.blocks) - 1} times, not {times}.")
        h, nmap, _ = self._enter(z, coords)
        for level in range(times):
            *body, up = self.blocks[level]
            for done, block in enumerate(body):
                h = _body(block, h, nmap, ctx)
                ctx.report((level + done / len(body)) / times)
            plan = self._subdivide(coords, up.to_subdiv(h))
            if level + 1 < times:
                h, nmap = _up(up, h, nmap, plan, ctx), plan.neighbors
            coords = plan.coords
            ctx.report((level + 1) / times)
        return coords

    def _enter(self, z: Tensor, coords: Tensor) -> tuple[Tensor, NeighborMap, list[Tensor]]:
        if not len(coords):
            raise EmptyResultError("There is no active voxel to decode: the structure came out empty. Try another seed.")
        return self.from_latent(z.float()).to(self.dtype), NeighborMap.build(coords), []

    @staticmethod
    def _subdivide(coords: Tensor, logits: Tensor) -> ResamplePlan:
        plan = split_plan(coords, logits > 0)
        if not len(plan.coords):
            raise EmptyResultError("The decoder found no active voxel: nothing is left of the shape. Try another seed.")
        return plan


def _body(block: SparseConvNeXtBlock3d, h: Tensor, nmap: NeighborMap, ctx: RunContext) -> Tensor:
    """A block on h [N, C]; in chunks of rows where nothing has to be remembered for a backward pass."""
    return block(h, nmap) if torch.is_grad_enabled() else block.in_chunks(h, nmap, ctx)


def _up(block: nn.Module, h: Tensor, nmap: NeighborMap, plan: ResamplePlan, ctx: RunContext) -> Tensor:
    """An up-stage along a fresh plan, likewise."""
    if torch.is_grad_enabled() or not isinstance(block, SparseResBlockC2S3d):
        return block(h, nmap, plan)
    return block.in_chunks(h, nmap, plan, ctx)


class FlexiDualGridVaeEncoder(SparseUnetVaeEncoder):
    """Shape encoder; its input is `dual_grid_features`."""


class FlexiDualGridVaeDecoder(SparseUnetVaeDecoder):
    """Shape decoder; `dual_grid_heads` turns its raw channels into a dual grid."""

    params: FlexiDualGridVaeDecoderParams

    def forward(
        self,
        z: Tensor,
        coords: Tensor,
        plans: list[ResamplePlan] | None = None,
        *,
        ctx: RunContext = QUIET,
    ) -> ShapeDecoding:
        """Latent z float32 [T, C] on coords int32 [T, 4] -> raw [N, 7], coords and subdivision logits.

        With `plans` (training) the voxels are those of the plans, and logits come for all their levels.
        """
        return self.decode(z, coords, None, plans, ctx=ctx)


def dual_grid_features(dual_vertices: Tensor, intersected: Tensor) -> Tensor:
    """Shape encoder input [N, 6]: vertex inside its voxel (0..1) and edge flags, both centred on zero."""
    return torch.cat([dual_vertices.float() - 0.5, intersected.float() - 0.5], dim=1)


def dual_grid_heads(raw: Tensor, voxel_margin: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Raw shape channels [N, 7] -> (dual vertices [N, 3] in voxel units, intersected bool [N, 3], split weight [N, 1])."""
    vertices = (1 + 2 * voxel_margin) * raw[:, :3].sigmoid() - voxel_margin
    return vertices, raw[:, 3:6] > 0, F.softplus(raw[:, 6:7])
