"""What a convolution's kernel reads, and how it may cut its work. Needs no Triton: it is planned on machines without."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 27
SEGMENT = 1 << 17
"""Rows that are put into order together: far more than a tile, and still few enough for their features to stay in the
GPU's cache."""


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work: rows, output channels and input channels of a step; warps; stages of its pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def shared_bytes(self, itemsize: int) -> int:
        """What operands take of a multiprocessor's shared memory: a row number is fetched a stage before its features."""
        return (self.rows + self.columns) * self.depth * itemsize * ((self.stages + 1) // 2) + 2048


@dataclass(frozen=True)
class Tiles:
    """Rows of a slice in the order of work, `height` to a tile.

    Attributes:
        order: int32 [tiles * height] row numbers; -1 fills the last tile up.
        starts: int32 [tiles + 1], where each tile's share of the following begins.
        taps: int32 [P], the taps that any row of a tile has, ascending, tile after tile.
        sources: int32 [P, height], for each of them the rows' neighbours; -1 where there is none.
    """

    order: Tensor
    starts: Tensor
    taps: Tensor
    sources: Tensor

    @classmethod
    def of(cls, table: Tensor, rows: slice, height: int) -> Tiles:
        """Tiles of these rows of a neighbour table int32 [27, N]."""
        part = table[:, rows]
        code = torch.zeros(part.shape[1], dtype=torch.int64, device=table.device)
        for tap, neighbours in enumerate(part):
            code |= (neighbours >= 0).long() << tap
        for shift in (16, 8, 4, 2, 1):  # from Gray code: sorted so, neighbours in order differ in few taps
            code ^= code >> shift
        code |= torch.arange(len(code), device=code.device) // SEGMENT << TAPS
        order = code.argsort(stable=True)
        tiles = -(-len(order) // height)
        empty = tiles * height - len(order)
        sources = part.index_select(1, F.pad(order, (0, empty)))
        sources[:, len(order) :] = -1
        sources = sources.view(TAPS, tiles, height).transpose(0, 1)
        present = (sources >= 0).any(2)
        starts = F.pad(present.sum(1).cumsum(0), (1, 0)).int()
        order = F.pad((order + rows.start).int(), (0, empty), value=-1)
        return cls(order, starts, present.nonzero()[:, 1].int(), sources[present])


@cache
def shared_memory(index: int) -> int:
    """Bytes of shared memory that a block may have on this GPU."""
    facts = torch.cuda.get_device_properties(index)
    return int(getattr(facts, "shared_memory_per_block_optin", 64 << 10) or 64 << 10)
