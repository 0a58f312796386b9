"""Running a sparse decoder on the meta device, where tensors have sizes and no content.

Its code asks tensors what they hold: which voxels exist, which have neighbours. Here such questions get the answers that
surfaces give on average, so that the very code that will run can be metered beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..context import RunContext
from ..sparse.conv import ROW_BLOCK, TAPS, NeighborMap, TapBlock
from ..sparse.resample import ResamplePlan
from ..vae.sparse_unet import SparseUnetVaeDecoder

if TYPE_CHECKING:
    from ..kernels.tiles import Tiles

NEIGHBOURS = 0.54
"""Share of a voxel's 26 neighbours that exist. Decoded surfaces have 0.53 (docs/method/decoders.md)."""
TILE_TAPS = 0.8
"""Share of the 27 taps that a kernel's tile of rows needs: 0.67 for a sphere."""
RIM = 9
"""Neighbours around a slab of rows, by the square root of their number: slabs of surfaces are patches (measured: 6 to 10)."""
REPEATS = 2
"""Of a loop over blocks or chunks of rows: from the second on they are alike."""


class Answers(TorchFunctionMode):
    """Answers to what only tensors with content could say."""

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.in_order = in_order
        """Whether voxels come in the order of their keys."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__bool__ and args[0].is_meta:
            return self.in_order
        if func is Tensor.nonzero and args[0].is_meta:
            return args[0].new_empty(_some(args[0]), args[0].dim(), dtype=torch.int64)
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            return args[0].new_empty(_some(args[1]), *args[0].shape[args[1].dim() :])
        return func(*args, **(kwargs or {}))


def _some(mask: Tensor) -> int:
    return math.ceil((NEIGHBOURS if mask.dim() == 1 else TILE_TAPS) * mask.numel())


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype == torch.bool


class _Blocks:
    """The blocks of a neighbour map: what they hold for all rows, and one of them to work on at a time."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.rows, self.like = rows, like
        self.held = like.new_empty(2 * self._pairs(rows) + rows, dtype=torch.int32)

    def __getitem__(self, numbers: slice) -> list[TapBlock]:
        starts = range(numbers.start * ROW_BLOCK, min(numbers.stop * ROW_BLOCK, self.rows), ROW_BLOCK)[:REPEATS]
        return [self._block(slice(start, min(start + ROW_BLOCK, self.rows))) for start in starts]

    def _block(self, rows: slice) -> TapBlock:
        bag = self.held[: self._pairs(rows.stop - rows.start)]
        return TapBlock(rows, list(bag.tensor_split(TAPS)), bag, self.held[: rows.stop - rows.start])

    @staticmethod
    def _pairs(rows: int) -> int:
        return math.ceil(rows * (1 + NEIGHBOURS * (TAPS - 1)))


class _Map(NeighborMap):
    """Neighbours of a surface's voxels, with as many chunks of rows as live together: the others are like them."""

    @cached_property
    def blocks(self) -> _Blocks:
        return _Blocks(self.rows, self.table)

    def chunks(self, step: int) -> Iterator[slice]:
        return islice(super().chunks(step), REPEATS)

    def around(self, rows: slice) -> Tensor:
        beside = torch.empty(self.rows + 1, dtype=torch.bool, device=self.table.device)  # noqa: F841 made on the way
        own = rows.stop - rows.start
        count = min(self.rows, own + round(RIM * own**0.5))
        return torch.empty(count, dtype=torch.int64, device=self.table.device)

    def only(self, rows: Tensor) -> NeighborMap:
        return _Map(self.table.index_select(1, rows), inputs=self.rows)

    def tiles(self, rows: slice, height: int) -> Tiles:
        known = (rows.start, rows.stop, height) in self.kept
        tiles = super().tiles(rows, height)
        if rows.start == 0 and not known:  # those of the chunks that are left out
            left = max(0, self.rows - REPEATS * rows.stop) / rows.stop
            self.kept[height, rows.stop] = self.table.new_empty(round(left * (tiles.sources.numel() + tiles.order.numel())))
        return tiles


@dataclass(frozen=True)
class _Plan(ResamplePlan):
    parents: int = 1

    @cached_property
    def neighbors(self) -> NeighborMap:
        with Answers(in_order=False):
            return _Map.build(self.coords)

    def part(self, parents: Tensor, own: slice) -> tuple[ResamplePlan, slice]:
        count = round(len(parents) * len(self.coords) / self.parents)
        coords = torch.empty(count, 4, dtype=torch.int32, device=parents.device)
        parent, child = torch.empty(2, count, dtype=torch.int64, device=parents.device)
        fine = self.children(own)
        return _Plan(coords, parent, child, parents=len(parents)), slice(0, fine.stop - fine.start)

    def children(self, parents: slice) -> slice:
        each = len(self.coords) / self.parents
        return slice(round(parents.start * each), round(parents.stop * each))


def rehearse(model: SparseUnetVaeDecoder, rows: Sequence[int], ctx: RunContext) -> None:
    """Run `model`, on the meta device, led through `rows` voxels on its levels, coarse to fine."""
    meta = torch.device("meta")
    finer = iter(rows[1:])

    def enter(z: Tensor, coords: Tensor) -> tuple[Tensor, NeighborMap, list[Tensor]]:
        with Answers(in_order=True):
            return model.from_latent(z.float()).to(model.dtype), _Map.build(coords), []

    def subdivide(coords: Tensor, logits: Tensor) -> ResamplePlan:
        count = next(finer)
        parent, child = torch.empty(2, count, dtype=torch.int64, device=meta)
        return _Plan(torch.empty(count, 4, dtype=torch.int32, device=meta), parent, child, parents=len(coords))

    model._enter, model._subdivide = enter, subdivide
    coords = torch.empty(rows[0], 4, dtype=torch.int32, device=meta)
    z = torch.empty(rows[0], model.params.latent_channels, device=meta)
    guides = [torch.empty(count, 8, dtype=model.dtype, device=meta) for count in rows[:-1]]
    with Answers(in_order=False):
        model.decode(z, coords, guides, ctx=ctx)
