"""The elementwise work of a flow transformer's layer in one pass each (docs/method/networks.md). Twins: `flow.elementwise`.

Every intermediate that the twin rounds to the tensors' dtype is rounded here too.
"""

# pyright: reportIndexIssue=false
# Triton's kernels are launched as kernel[grid](...), which type checkers only know where Triton is installed.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_rows(
    h,  # [T, C] tokens
    branch,  # [T, C] or [C], what is added to them first
    gate,  # [B, C] by gate_stride, what the branch is multiplied with
    total,  # [T, C], tokens with the branch added
    y,  # [T, C], normalised
    weight,  # [C] float32
    bias,  # [C] float32
    scale,  # [B, C] by scale_stride
    shift,  # [B, C] by scale_stride
    tokens_each,  # rows of every sample
    gate_stride,
    scale_stride,
    branch_stride,  # C, or 0
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    GATE: tl.constexpr,
    NORM: tl.constexpr,
    AFFINE: tl.constexpr,
    MODULATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens_each
    column = tl.arange(0, BLOCK)
    inside = column < CHANNELS
    kind = h.dtype.element_ty
    x = tl.load(h + row * CHANNELS + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(branch + row * branch_stride + column, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            g = tl.load(gate + sample * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
            added = (added * g).to(kind).to(tl.float32)
        rounded = (x + added).to(kind)
        tl.store(total + row * CHANNELS + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if NORM:
        mean = tl.sum(x, axis=0) / CHANNELS
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / CHANNELS
        n = centred * (1.0 / tl.sqrt(variance + eps))
        if AFFINE:
            w = tl.load(weight + column, mask=inside, other=0.0)
            n = n * w + tl.load(bias + column, mask=inside, other=0.0)
        n = n.to(kind).to(tl.float32)
        if MODULATE:
            factor = (1.0 + tl.load(scale + sample * scale_stride + column, mask=inside, other=0.0).to(tl.float32)).to(kind)
            n = (n * factor.to(tl.float32)).to(kind).to(tl.float32)
            n += tl.load(shift + sample * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * CHANNELS + column, n.to(kind), mask=inside)


def norm(
    h: Tensor,
    eps: float,
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    branch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `flow.elementwise.normed` and `flow.elementwise.added_and_modulated`; returns the tokens and their norm."""
    return _run(h, eps, branch, None, affine, modulation, normalise=True)


def gated(h: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """See `flow.elementwise.gated`."""
    return _run(h, 0.0, branch, gate, None, None, normalise=False)[0]


def _run(h, eps, branch, gate, affine, modulation, normalise: bool) -> tuple[Tensor, Tensor]:
    """h [..., C] contiguous; gate, scale and shift [B, 1, C] for even samples, else [T, C]; branch like h, or [C]."""
    h = h.contiguous()
    channels = h.shape[-1]
    rows = h.numel() // channels
    total = h if branch is None else torch.empty_like(h)
    y = torch.empty_like(h) if normalise else h
    if h.device.type == "meta" or not rows:
        return total, y
    scale, shift = (t.flatten(0, -2) for t in modulation) if modulation else (h, h)
    gates = h if gate is None else gate.flatten(0, -2)
    samples = len(scale) if modulation else len(gates) if gate is not None else 1
    added = h if branch is None else branch.contiguous()
    weight, bias = affine or (h, h)
    with torch.cuda.device_of(h):
        _norm_rows[(rows,)](
            h, added, gates, total, y, weight, bias, scale, shift,
            rows // samples, gates.stride(0), scale.stride(0), channels if added.dim() > 1 else 0, eps,
            CHANNELS=channels, BLOCK=triton.next_power_of_2(channels), ADD=branch is not None, GATE=gate is not None,
            NORM=normalise, AFFINE=affine is not None, MODULATE=modulation is not None,
            num_warps=4 if channels <= 2048 else 8,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return total, y


@triton.jit
def _norm_and_turn(
    x,  # heads [T, H, D], tokens token_stride apart
    y,  # [T, H, D]
    gain,  # [H, D] float32
    cos,  # [P, D / 2] float32, token t has row t modulo P
    sin,
    rows,  # T * H
    phase_rows,  # P
    token_stride,
    root,  # square root of D
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    TURN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // HEADS, row % HEADS
    column = tl.arange(0, BLOCK)
    alive = (row < rows)[:, None] & (column < WIDTH)[None, :]
    source = x + (token * token_stride + head * WIDTH)[:, None] + column[None, :]
    kind = x.dtype.element_ty
    v = tl.load(source, mask=alive, other=0.0).to(tl.float32)
    if NORM:
        length = tl.sqrt(tl.sum(v * v, axis=1))
        factor = tl.load(gain + (head * WIDTH)[:, None] + column[None, :], mask=alive, other=0.0) * root
        v = (v / tl.maximum(length, 1e-12)[:, None] * factor).to(kind).to(tl.float32)
    if TURN:
        pair = tl.arange(0, BLOCK // 2)
        place = (token % phase_rows * (WIDTH // 2))[:, None] + pair[None, :]
        known = (row < rows)[:, None] & (pair < WIDTH // 2)[None, :]
        c = tl.load(cos + place, mask=known, other=0.0)
        s = tl.load(sin + place, mask=known, other=0.0)
        a, b = tl.split(tl.reshape(v, (ROWS, BLOCK // 2, 2)))
        v = tl.reshape(tl.join(a * c - b * s, a * s + b * c), (ROWS, BLOCK))
    tl.store(y + (row * WIDTH)[:, None] + column[None, :], v.to(kind), mask=alive)


def norm_and_turn(x: Tensor, gain: Tensor | None, phases: tuple[Tensor, Tensor] | None) -> Tensor:
    """See `flow.elementwise.heads`: x [..., H, D] -> contiguous, the same shape."""
    *_, heads, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.numel() // width if width else 0
    if x.device.type == "meta" or not rows:
        return y
    tokens = x.flatten(0, -3)
    if tokens.stride(-1) != 1 or tokens.stride(-2) != width:
        tokens = tokens.contiguous()
    cos, sin = (p.flatten(0, -2).contiguous() for p in phases) if phases else (y, y)
    block = 16
    with torch.cuda.device_of(x):
        _norm_and_turn[(triton.cdiv(rows, block),)](
            tokens, y, y if gain is None else gain, cos, sin, rows, len(cos) if phases else 1, tokens.stride(0), width**0.5,
            HEADS=heads, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=block,
            NORM=gain is not None, TURN=phases is not None,
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return y
