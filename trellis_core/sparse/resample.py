"""Halving and doubling the resolution of sparse voxels: space-to-channel, channel-to-space (docs/method/decoders.md).

The eight children of a parent voxel are numbered s = (x mod 2) + 2 (y mod 2) + 4 (z mod 2): x is the fastest bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .conv import NeighborMap
from .tensor import pack_keys, unique_coords, unpack_keys


@dataclass(frozen=True)
class ResamplePlan:
    """Which fine voxels belong to which coarse voxel.

    Attributes:
        coords: int32 [F, 4] fine voxels; an up-stage puts its rows in this order.
        parent_row: int64 [F] row of each fine voxel's parent among the coarse voxels.
        child: int64 [F] child number 0..7 of each fine voxel.
        known_neighbors: neighbour map of the fine voxels where it exists already.
    """

    coords: Tensor
    parent_row: Tensor
    child: Tensor
    known_neighbors: NeighborMap | None = None

    @cached_property
    def slot(self) -> Tensor:
        """int64 [F]: 8 * parent_row + child, the row of a fine voxel in the coarse features seen as [8 N, C / 8]."""
        return self.parent_row * 8 + self.child

    @cached_property
    def neighbors(self) -> NeighborMap:
        """Neighbour map of the fine voxels, shared by all that follow this plan; built on first use."""
        return self.known_neighbors or NeighborMap.build(self.coords)

    def children(self, parents: slice) -> slice:
        """Fine rows of these coarse rows, where fine rows follow their parents' order."""
        ends = self.parent_row.new_tensor([parents.start, parents.stop])
        return slice(*torch.searchsorted(self.parent_row, ends).tolist())

    def part(self, parents: Tensor, own: slice) -> tuple[ResamplePlan, slice]:
        """The plan of these coarse rows alone, int64 [P] ascending, `own` among them; and where in it lie own's fine rows."""
        first, last = torch.searchsorted(self.parent_row, torch.stack([parents, parents + 1]))
        counts = last - first
        parent = torch.arange(len(parents), device=parents.device).repeat_interleave(counts)
        rows = (first - counts.cumsum(0) + counts).index_select(0, parent) + torch.arange(len(parent), device=parents.device)
        fine = self.children(own)
        start = int(torch.searchsorted(rows, fine.start))
        plan = ResamplePlan(self.coords.index_select(0, rows), parent, self.child.index_select(0, rows))
        return plan, slice(start, start + fine.stop - fine.start)

    def occupancy(self, parents: int) -> Tensor:
        """bool [parents, 8]: which children exist; the target of the subdivision logits in training."""
        mask = torch.zeros(parents * 8, dtype=torch.bool, device=self.coords.device)
        mask[self.slot] = True
        return mask.view(parents, 8)


def merge_plan(coords: Tensor, neighbors: NeighborMap | None = None) -> tuple[ResamplePlan, Tensor]:
    """Plan of a down-stage over fine coords int32 [F, 4], and its parents int32 [N, 4] in lexicographic order."""
    fine = coords.long()
    halved = torch.cat([fine[:, :1], fine[:, 1:] >> 1], dim=1)
    keys, parent_row = torch.unique(pack_keys(halved), return_inverse=True)
    x, y, z = (fine[:, 1:] & 1).unbind(1)
    return ResamplePlan(coords, parent_row, x + 2 * y + 4 * z, neighbors), unpack_keys(keys)


def split_plan(coords: Tensor, mask: Tensor) -> ResamplePlan:
    """Plan of an up-stage: the children where `mask` bool [N, 8] is set of the parents `coords` int32 [N, 4].

    Fine rows follow their parents' order, children ascending.
    """
    parent_row, child = mask.nonzero(as_tuple=True)
    offset = torch.stack([torch.zeros_like(child), child & 1, child >> 1 & 1, child >> 2 & 1], dim=1).int()
    scale = torch.tensor([1, 2, 2, 2], dtype=torch.int32, device=coords.device)
    return ResamplePlan(coords.index_select(0, parent_row) * scale + offset, parent_row, child)


def channel_to_space(x: Tensor, plan: ResamplePlan) -> Tensor:
    """Coarse [N, 8 K] -> fine [F, K]: child s of a parent gets the parent's channels s K .. (s + 1) K - 1."""
    return x.reshape(x.shape[0] * 8, x.shape[1] // 8).index_select(0, plan.slot)


def space_to_channel(x: Tensor, plan: ResamplePlan, parents: int) -> Tensor:
    """Fine [F, K] -> coarse [parents, 8 K], the inverse of `channel_to_space`; zeros for absent children."""
    coarse = x.new_zeros(parents * 8, x.shape[1]).index_copy(0, plan.slot, x)
    return coarse.view(parents, 8 * x.shape[1])


def upsample_nearest(x: Tensor, plan: ResamplePlan) -> Tensor:
    """Coarse [N, C] -> fine [F, C]: every child copies its parent."""
    return x.index_select(0, plan.parent_row)


def downsample_mean(x: Tensor, plan: ResamplePlan, parents: int) -> Tensor:
    """Fine [F, C] -> coarse [parents, C]: mean over the children that exist."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros(parents, x.shape[1], dtype=wide).index_add(0, plan.parent_row, x.to(wide))
    count = torch.bincount(plan.parent_row, minlength=parents).to(wide)
    return (total / count[:, None]).to(x.dtype)


def quantize_coords(coords: Tensor, from_resolution: int, to_grid: int) -> Tensor:
    """Voxels of a decoded grid as active voxels of another latent grid: the hand-over of the cascade (docs/method/decoders.md).

    coords int32 [N, 4] on from_resolution^3 -> int32 [M, 4] on to_grid^3, distinct, lexicographic. Float32 arithmetic.
    """
    cell = ((coords[:, 1:].float() + 0.5) / from_resolution * to_grid).int()
    return unique_coords(torch.cat([coords[:, :1].int(), cell], dim=1))
