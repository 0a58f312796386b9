"""Submanifold 3x3x3 convolution: only active voxels are computed, only active neighbours count (docs/method/decoders.md).

Taps are numbered v = 9 i + 3 j + k with i, j, k in 0..2 for the offsets -1, 0, +1 along x, y, z; the centre is 13 and
the opposite of v is 26 - v. A neighbour relation holds both ways, so the map stores the 13 taps above the centre only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import acts_as, usable
from .libraries import chosen
from .tensor import AXIS_BITS, pack_keys

if TYPE_CHECKING:
    from ..kernels.tiles import Tiles

TAPS, CENTRE = 27, 13
ROW_BLOCK = 2048
"""Rows worked on at a time on the CPU, so that the products of a block stay in cache."""
COLUMN_BLOCK = 128
"""Output channels worked on at a time on the CPU, for the same reason."""
PATCH_BYTES = 256 << 20
"""Largest patch matrix on other devices."""


@dataclass(frozen=True)
class TapBlock:
    """The neighbour pairs of a run of rows, ordered by tap and compact.

    Attributes:
        rows: slice of the output rows.
        sources: per tap, int32 rows of the neighbours that exist.
        bag: int32 [pairs] positions of a row's pairs in the concatenated `sources`, row after row.
        offsets: int32 [rows] where each row's share of `bag` begins.
    """

    rows: slice
    sources: Sequence[Tensor]
    bag: Tensor
    offsets: Tensor

    @cached_property
    def lengths(self) -> list[int]:
        """Pairs per tap."""
        return [len(source) for source in self.sources]

    @cached_property
    def targets(self) -> Sequence[Tensor]:
        """Per tap, int64 output rows of the pairs, counted from the block's first row."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.bag)])])
        row = torch.arange(len(ends)).repeat_interleave(ends - self.offsets)
        return torch.empty_like(row).index_copy_(0, self.bag.long(), row).split(self.lengths)


@dataclass(frozen=True)
class NeighborMap:
    """Which rows are neighbours of which; built once per level and shared by all its convolutions.

    Attributes:
        table: int32 [27, N], row of every tap's neighbour, -1 where there is none.
        coords: int32 [N, 4] of the rows, for libraries that find neighbours by themselves.
        inputs: rows of the features that the table counts, where they are not the map's own N.
        kept: what backends make of it and use again.
    """

    table: Tensor
    coords: Tensor | None = None
    inputs: int | None = None
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def build(cls, coords: Tensor) -> NeighborMap:
        """Map of coords int32 [N, 4], distinct rows in any order; samples never mix.

        Neighbours along z are adjacent in key order, so one search finds three taps, and four searches find the 13
        taps above the centre. The 13 below are the same pairs seen from the other side.
        """
        keys, order = pack_keys(coords), None
        if not bool((keys[1:] > keys[:-1]).all()):
            keys, order = keys.sort()
        rows = keys.shape[0]
        table = torch.full((TAPS, rows), -1, dtype=torch.int32, device=coords.device)
        if rows:
            ids = torch.arange(rows, dtype=torch.int32, device=coords.device)
            table[CENTRE] = ids
            _link(table, CENTRE + 1, keys[1:] == keys[:-1] + 1, ids[1:].long())
            for column, (dx, dy) in enumerate([(0, 1), (1, -1), (1, 0), (1, 1)]):
                wanted = keys + (((dx << AXIS_BITS) + dy << AXIS_BITS) - 1)
                at = torch.searchsorted(keys, wanted).clamp_(max=rows - 1)
                for step in range(3):
                    found = keys.index_select(0, at) == wanted
                    _link(table, CENTRE + 2 + 3 * column + step, found, at)
                    at = (at + found).clamp_(max=rows - 1)
                    wanted += 1
        return cls(table if order is None else _reorder(table, order), coords)

    @property
    def rows(self) -> int:
        return self.table.shape[1]

    @cached_property
    def blocks(self) -> list[TapBlock]:
        """The pairs in blocks of ROW_BLOCK rows, as gather-GEMM-scatter on the CPU reads them."""
        return [_block(self.table, start) for start in range(0, self.rows, ROW_BLOCK)]

    @cached_property
    def patches(self) -> Tensor:
        """int32 [N, 27]: the table by rows, with the number of inputs where there is no neighbour."""
        absent = self.rows if self.inputs is None else self.inputs
        return torch.where(self.table < 0, absent, self.table).t().contiguous()

    def chunks(self, step: int) -> Iterator[slice]:
        """All rows, `step` at a time."""
        yield from (slice(start, min(start + step, self.rows)) for start in range(0, self.rows, step))

    def around(self, rows: slice) -> Tensor:
        """int64, ascending: these rows and all their neighbours."""
        seen = torch.zeros(self.rows + 1, dtype=torch.bool, device=self.table.device)
        seen[self.table[:, rows].flatten().long()] = True  # -1 is the last
        return seen[:-1].nonzero().squeeze(1)

    def only(self, rows: Tensor) -> NeighborMap:
        """The map of these rows [M] alone, which convolves the features of all."""
        return NeighborMap(self.table.index_select(1, rows), inputs=self.rows)

    def tiles(self, rows: slice, height: int) -> Tiles:
        """These rows in tiles of so many, as the GPU's kernel reads them; made once."""
        from ..kernels.tiles import Tiles

        key = rows.start, rows.stop, height
        if key not in self.kept:
            self.kept[key] = Tiles.of(self.table, rows, height)
        return self.kept[key]


def _link(table: Tensor, tap: int, found: Tensor, at: Tensor) -> None:
    """Enter the pairs (n, at[n]) where found[n] bool holds at `tap` and, seen from the neighbour, at its opposite."""
    row = found.nonzero().squeeze(1)
    neighbour = at.index_select(0, row)
    table[tap].index_copy_(0, row, neighbour.int())
    table[TAPS - 1 - tap].index_copy_(0, neighbour, row.int())


def _reorder(table: Tensor, order: Tensor) -> Tensor:
    """The table of rows in key order, for the rows as they stand: row order[k] is the k-th in key order."""
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    named = torch.cat([order.int(), order.new_tensor([-1], dtype=torch.int32)])  # -1 indexes the last entry: itself
    renamed = torch.empty_like(table)
    for row, target in zip(table, renamed, strict=True):  # by rows: int64 is large
        target.copy_(named[row.index_select(0, rank).long()])
    return renamed


def _block(table: Tensor, start: int) -> TapBlock:
    part = table[:, start : start + ROW_BLOCK]
    rows = part.shape[1]
    mask = part >= 0
    pairs = mask.flatten().nonzero().squeeze(1)  # by tap, then by row
    sources = part.flatten().index_select(0, pairs).split(mask.sum(1).tolist())
    place = mask.t().flatten().cumsum(0, dtype=torch.int32).view(rows, TAPS)  # 1 + rank by row, then by tap
    rank = place.t().flatten().index_select(0, pairs) - 1
    bag = torch.empty_like(rank).index_copy_(0, rank.long(), torch.arange(len(rank), dtype=torch.int32))
    offsets = place[:, -1] - mask.sum(0, dtype=torch.int32)
    return TapBlock(slice(start, start + rows), sources, bag, offsets)


def submanifold_conv3d(feats: Tensor, weight: Tensor, bias: Tensor, nmap: NeighborMap) -> Tensor:
    """y[n] = bias + sum over taps of W[:, i, j, k, :] x[neighbour(n, i, j, k)]; absent neighbours contribute nothing.

    feats [N, Ci], weight [Co, 3, 3, 3, Ci], bias [Co] -> [N, Co] in the dtype of feats. Half precision is multiplied
    and summed in float32 (bias too) and rounded once. Differentiable in feats, weight and bias (once).
    """
    return _Conv.apply(feats, weight, bias, nmap)


def submanifold_conv3d_reference(feats: Tensor, weight: Tensor, bias: Tensor, nmap: NeighborMap) -> Tensor:
    """`submanifold_conv3d` as it reads on paper: every tap gathers its neighbours, zeros where there is none."""
    wide = torch.promote_types(feats.dtype, torch.float32)
    padded = F.pad(feats.to(wide), (0, 0, 0, 1))
    patches = padded[nmap.patches.long()]  # [N, 27, Ci]
    return (torch.einsum("nvi,ovi->no", patches, weight.to(wide).flatten(1, 3)) + bias.to(wide)).to(feats.dtype)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, bias: Tensor, nmap: NeighborMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.nmap, ctx.bias_dtype = nmap, bias.dtype
        dtype = _compute_dtype(feats)
        return _convolve(feats.to(dtype), _taps(weight, dtype), bias.to(dtype), nmap).to(feats.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """The adjoint in feats is the same convolution of the gradient, taps mirrored and channels swapped."""
        feats, weight = ctx.saved_tensors
        need_feats, need_weight, need_bias, _ = ctx.needs_input_grad
        dtype = _compute_dtype(feats)
        x, g = feats.to(dtype), grad.to(dtype).contiguous()
        shape = (TAPS, weight.shape[0], weight.shape[4])
        total = x.new_zeros(shape, dtype=torch.promote_types(dtype, torch.float32)) if need_weight else None
        mirrored = weight.to(dtype).flatten(1, 3).flip(1).transpose(0, 1)  # [27, Co, Ci]
        grad_feats = _convolve(g, mirrored, x.new_zeros(x.shape[1]), ctx.nmap, x, total)
        return (
            grad_feats.to(feats.dtype) if need_feats else None,
            None if total is None else total.transpose(0, 1).reshape(weight.shape).to(weight.dtype),
            g.sum(0).to(ctx.bias_dtype) if need_bias else None,
            None,
        )


def _compute_dtype(feats: Tensor) -> torch.dtype:
    """CPUs are slow in half precision and round every partial sum; GPUs accumulate in float32 by themselves."""
    return torch.promote_types(feats.dtype, torch.float32) if acts_as(feats) == "cpu" else feats.dtype


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [Co, 3, 3, 3, Ci] -> [27, Ci, Co]."""
    return weight.to(dtype).flatten(1, 3).permute(1, 2, 0)


def _convolve(
    x: Tensor, taps: Tensor, bias: Tensor, nmap: NeighborMap, own: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """x [N, Ci], taps [27, Ci, Co], bias [Co] -> [N, Co].

    Where x is the gradient that flows back to `own` [N, Co], `total` [27, Ci, Co] collects the gradient of the weight:
    its pairs are the same, seen from the other side.
    """
    out = x.new_empty(nmap.rows, taps.shape[2])
    fill, x = _way(x, total)
    fill(out, slice(0, nmap.rows), x, taps, bias, nmap, own, total)
    return out


def _by_pairs(x: Tensor) -> bool:
    """CPUs sum over the pairs that exist, out of cache; other devices multiply patches."""
    return acts_as(x) == "cpu"


def _way(x: Tensor, total: Tensor | None = None) -> tuple[Callable[..., None], Tensor]:
    """How to convolve x [N, C], a function that writes rows of the result into `out`; and x as that reads it.

    Its rows start at a multiple of ROW_BLOCK; see `_convolve` for the other arguments.
    """
    if _by_pairs(x):
        return _sum_pairs, x
    if total is None and usable(x):
        return _run_kernel, x.contiguous()
    return _multiply_patches, F.pad(x, (0, 0, 0, 1))  # the row of zeros stands for absent neighbours


def _sum_pairs(out: Tensor, rows: slice, x, taps, bias, nmap: NeighborMap, own, total) -> None:
    """One GEMM a tap over the pairs that exist, one pass of sums."""
    for block in nmap.blocks[rows.start // ROW_BLOCK : -(-rows.stop // ROW_BLOCK)]:
        here = slice(block.rows.start - rows.start, block.rows.stop - rows.start)
        for start in range(0, taps.shape[2], COLUMN_BLOCK):
            columns = slice(start, start + COLUMN_BLOCK)
            width = len(bias[columns])
            products = x.new_empty(len(block.bag), width)
            parts = products.split(block.lengths)
            for tap, (source, part) in enumerate(zip(block.sources, parts, strict=True)):
                gathered = x.index_select(0, source)
                torch.mm(gathered, taps[tap, :, columns], out=part)
                if total is not None:
                    mine = own[block.rows, columns].index_select(0, block.targets[tap])
                    total[TAPS - 1 - tap, :, columns].addmm_(gathered.t(), mine)
            sums = F.embedding_bag(block.bag, products, block.offsets, mode="sum")
            torch.add(sums, bias[columns], out=out[here, columns])


def _multiply_patches(out: Tensor, rows: slice, x, taps, bias, nmap: NeighborMap, own, total) -> None:
    """As `_sum_pairs`, with one GEMM over patches [rows, 27 Ci] that hold zeros for absent neighbours: the fewest
    kernel launches, and partial sums that never leave the GEMM's float32 accumulator."""
    matrix = taps.flatten(0, 1)
    step = max(256, PATCH_BYTES // (TAPS * x.shape[1] * x.element_size()))
    for start in range(rows.start, rows.stop, step):
        part = slice(start, min(start + step, rows.stop))
        patches = x.index_select(0, nmap.patches[part].flatten()).view(part.stop - start, -1)
        torch.addmm(bias, patches, matrix, out=out[start - rows.start : part.stop - rows.start])
        if total is not None:
            total += (patches.t() @ own[part]).view_as(total).flip(0)


def _run_kernel(out: Tensor, rows: slice, x, taps, bias, nmap: NeighborMap, _own, _total) -> None:
    """As `_multiply_patches`, without patches; forward only."""
    from ..kernels.conv import convolve
    from ..kernels.tuning import choose

    config = choose(x, *taps.shape[1:])
    convolve(out, x, taps, bias.contiguous(), nmap.tiles(rows, config.rows), rows.start, config)


class SubmanifoldConv3d(nn.Module):
    """Submanifold 3x3x3 convolution layer: weight [Co, 3, 3, 3, Ci], bias [Co]."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(TAPS * in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, 3, 3, 3, in_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, feats: Tensor, nmap: NeighborMap) -> Tensor:
        """feats [N, Ci] -> [N, Co] on the voxels that `nmap` was built for."""
        if (library := chosen(feats)) and nmap.coords is not None:
            return library(feats, self.weight, self.bias, nmap.coords, nmap.kept)
        return submanifold_conv3d(feats, self.weight, self.bias, nmap)

    def chunks(self, feats: Tensor, nmap: NeighborMap, step: int) -> Iterator[tuple[slice, Tensor]]:
        """The rows of `forward`, `step` at a time (a multiple of ROW_BLOCK), each with the slice that it is: [rows, Co].

        Without gradient. Every chunk is the caller's own.
        """
        if (library := chosen(feats)) and nmap.coords is not None:
            whole = library(feats, self.weight, self.bias, nmap.coords, nmap.kept)
            yield from zip(nmap.chunks(step), whole.split(step), strict=True)
            return
        dtype = _compute_dtype(feats)
        fill, x = _way(feats.to(dtype))
        taps, bias = _taps(self.weight, dtype), self.bias.to(dtype)
        for rows in nmap.chunks(step):
            out = x.new_empty(rows.stop - rows.start, taps.shape[2])
            fill(out, rows, x, taps, bias, nmap, None, None)
            yield rows, out.to(feats.dtype)
