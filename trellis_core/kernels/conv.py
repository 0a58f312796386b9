"""Submanifold convolution as one implicit GEMM (spec B 1.2): patches are gathered tile by tile and never stored.

Rows are put into tiles in an order in which rows of a tile have the same neighbours, so a tile skips the taps that none
of its rows has. The sum over taps and channels is one float32 accumulator; bias and rounding come last. The torch twin is
`sparse.conv.submanifold_conv3d_reference`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

TAPS = 27
SEGMENT = 1 << 17
"""Rows that are put into order together: far more than a tile, and still few enough for their features to stay in the
GPU's cache."""


@dataclass(frozen=True)
class Config:
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


@triton.jit
def _implicit_gemm(
    x,  # [N, Ci]
    weight,  # taps x Ci x Co, by strides
    bias,  # [Co]
    out,  # [rows, Co]
    order,  # int32 [tiles * ROWS]
    starts,  # int32 [tiles + 1]
    taps,  # int32 [P]
    sources,  # int32 [P, ROWS]
    first,  # row of x that row 0 of out belongs to
    inputs,  # Ci
    outputs,  # Co
    weight_tap,
    weight_in,
    weight_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    blocks = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0) // blocks  # programs on the same rows run side by side
    columns = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    wanted = columns < outputs
    lanes = tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    steps = tl.cdiv(inputs, DEPTH)
    start = tl.load(starts + tile)
    weight_columns = weight + columns.to(tl.int64) * weight_out
    accumulator = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range((tl.load(starts + tile + 1) - start) * steps):
        place = start + step // steps
        tap = tl.load(taps + place).to(tl.int64)
        source = tl.load(sources + place.to(tl.int64) * ROWS + lanes)
        there = source >= 0
        channel = step % steps * DEPTH + depth
        patch = x + source.to(tl.int64)[:, None] * inputs + channel[None, :]
        matrix = weight_columns[None, :] + (tap * weight_tap + channel.to(tl.int64) * weight_in)[:, None]
        if EVEN_DEPTH:
            a = tl.load(patch, mask=there[:, None], other=0.0)
            b = tl.load(matrix, mask=wanted[None, :], other=0.0)
        else:
            inside = channel < inputs
            a = tl.load(patch, mask=there[:, None] & inside[None, :], other=0.0)
            b = tl.load(matrix, mask=inside[:, None] & wanted[None, :], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
    accumulator += tl.load(bias + columns, mask=wanted, other=0.0).to(tl.float32)[None, :]
    rows = tl.load(order + tile.to(tl.int64) * ROWS + lanes)
    target = out + (rows - first).to(tl.int64)[:, None] * outputs + columns[None, :]
    tl.store(target, accumulator.to(out.dtype.element_ty), mask=(rows >= 0)[:, None] & wanted[None, :])


def convolve(out: Tensor, x: Tensor, taps: Tensor, bias: Tensor, tiles: Tiles, first: int, config: Config) -> None:
    """Write rows of the convolution of x [N, Ci] with taps [27, Ci, Co] and bias [Co] into out [rows, Co].

    All of one dtype, float16, bfloat16 or float32; x, bias and out contiguous. `tiles` are the rows to write, made for
    the height `config.rows`; `first` is the row of x that is row 0 of out.
    """
    inputs, outputs = taps.shape[1:]
    grid = ((len(tiles.starts) - 1) * triton.cdiv(outputs, config.columns),)
    if not grid[0] or x.device.type == "meta":
        return
    with torch.cuda.device_of(x):
        _implicit_gemm[grid](
            x, taps, bias, out, tiles.order, tiles.starts, tiles.taps, tiles.sources, first, inputs, outputs, *taps.stride(),
            ROWS=config.rows, COLUMNS=config.columns, DEPTH=config.depth, EVEN_DEPTH=inputs % config.depth == 0,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            UPCAST=_interpreted() and x.dtype == torch.bfloat16,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


def _interpreted() -> bool:
    """Triton's interpreter runs kernels on the CPU; it cannot multiply bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def shared_memory(index: int) -> int:
    """Bytes of shared memory that a block may have on this GPU."""
    facts = torch.cuda.get_device_properties(index)
    return int(getattr(facts, "shared_memory_per_block_optin", 64 << 10) or 64 << 10)
