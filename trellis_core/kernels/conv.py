"""Submanifold convolution as one implicit GEMM (docs/method/decoders.md): patches are gathered tile by tile and never stored.

Rows are put into tiles in an order in which rows of a tile have the same neighbours, so a tile skips the taps that none
of its rows has. The sum over taps and channels is one float32 accumulator; bias and rounding come last. The torch twin is
`sparse.conv.submanifold_conv3d_reference`.
"""

# pyright: reportIndexIssue=false
# Triton's kernels are launched as kernel[grid](...), which type checkers only know where Triton is installed.
from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tiles, Tiling


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


def convolve(out: Tensor, x: Tensor, taps: Tensor, bias: Tensor, tiles: Tiles, first: int, config: Tiling) -> None:
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
            num_warps=config.warps, num_stages=config.stages,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip


def _interpreted() -> bool:
    """Triton's interpreter runs kernels on the CPU; it cannot multiply bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1"
