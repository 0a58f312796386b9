"""Submanifold 3x3x3 convolution: only active voxels are computed, and only active neighbours contribute (spec B 1.2).

Taps are numbered v = 9 i + 3 j + k with i, j, k in 0..2 for the offsets -1, 0, +1 along x, y, z; the centre is 13 and
the opposite of v is 26 - v. A neighbour relation holds both ways, so the map stores the 13 taps above the centre only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tensor import AXIS_BITS, pack_keys

TAPS, CENTRE = 27, 13
ROW_BLOCK = 16384
"""Rows that gather-GEMM-scatter works on at a time, so that what it gathers and scatters stays in cache."""
COLUMN_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Largest patch matrix of the im2col path."""


@dataclass(frozen=True)
class NeighborMap:
    """Which rows are neighbours of which; built once per level and shared by all its convolutions.

    Attributes:
        forward: int32 [13, N]. For tap 14 + t, the row of the neighbour of the n-th voxel in key order, or -1.
        order: int32 [N] rows in key order, or None if the rows are in key order already.
    """

    forward: Tensor
    order: Tensor | None

    @classmethod
    def build(cls, coords: Tensor) -> NeighborMap:
        """Map of coords int32 [N, 4], distinct rows in any order; samples never mix.

        Neighbours along z are adjacent in key order, so one search finds three taps: four searches find all.
        """
        keys, order = pack_keys(coords), None
        if not bool((keys[1:] > keys[:-1]).all()):
            keys, order = keys.sort()
        rows = keys.shape[0]
        forward = torch.full((TAPS - CENTRE - 1, rows), -1, dtype=torch.int32, device=coords.device)
        if rows:
            ids = torch.arange(rows, dtype=torch.int32, device=coords.device) if order is None else order.int()
            forward[0, :-1] = torch.where(keys[1:] == keys[:-1] + 1, ids[1:], -1)
            for column, (dx, dy) in enumerate([(0, 1), (1, -1), (1, 0), (1, 1)]):
                wanted = keys + (((dx << AXIS_BITS) + dy << AXIS_BITS) - 1)
                at = torch.searchsorted(keys, wanted)
                for step in range(3):
                    at.clamp_(max=rows - 1)
                    found = keys[at] == wanted
                    forward[1 + 3 * column + step] = torch.where(found, ids[at], -1)
                    at += found
                    wanted += 1
        return cls(forward, None if order is None else order.int())

    @property
    def rows(self) -> int:
        return self.forward.shape[1]

    @cached_property
    def segments(self) -> list[tuple[int, Tensor, Tensor]]:
        """(tap, rows, neighbours) int32 index pairs of the taps above the centre, in blocks of ROW_BLOCK rows."""
        found = []
        for start in range(0, self.rows, ROW_BLOCK):
            block = self.forward[:, start : start + ROW_BLOCK]
            tap, at = (block >= 0).nonzero(as_tuple=True)
            neighbours = block[tap, at]
            at += start
            rows = at.int() if self.order is None else self.order[at]
            lengths = torch.bincount(tap, minlength=CENTRE).tolist()
            for t, r, n in zip(range(CENTRE), rows.split(lengths), neighbours.split(lengths), strict=True):
                if r.numel():
                    found.append((CENTRE + 1 + t, r, n))
        return found

    @cached_property
    def table(self) -> Tensor:
        """int32 [N, 27]: row of every tap's neighbour, N where there is none."""
        table = torch.full((self.rows, TAPS), self.rows, dtype=torch.int32, device=self.forward.device)
        table[:, CENTRE] = torch.arange(self.rows, dtype=torch.int32, device=table.device)
        for tap, rows, neighbours in self.segments:
            table[rows, tap] = neighbours
            table[neighbours, TAPS - 1 - tap] = rows
        return table


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
    patches = padded[nmap.table.long()]  # [N, 27, Ci]
    return (torch.einsum("nvi,ovi->no", patches, weight.to(wide).flatten(1, 3)) + bias.to(wide)).to(feats.dtype)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, bias: Tensor, nmap: NeighborMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.nmap = nmap
        ctx.bias_dtype = bias.dtype
        return _convolve(feats, weight, bias, nmap)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        need_feats, need_weight, need_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_feats = grad_weight = None
        if need_feats:  # the adjoint is the same convolution with taps mirrored and channels swapped
            mirrored = weight.flatten(1, 3).flip(1).permute(2, 1, 0).reshape(weight.shape[4], 3, 3, 3, weight.shape[0])
            grad_feats = _convolve(grad, mirrored, None, ctx.nmap)
        if need_weight:
            grad_weight = _weight_gradient(feats, grad, ctx.nmap).view_as(weight).to(weight.dtype)
        return grad_feats, grad_weight, grad.sum(0, dtype=ctx.bias_dtype) if need_bias else None, None


def _use_columns(feats: Tensor, channels: int) -> bool:
    """Whether one GEMM over zero-padded patches beats a GEMM per tap over the neighbours that exist."""
    return feats.device.type != "cpu" or channels <= 32


def _compute_dtype(feats: Tensor) -> torch.dtype:
    """CPUs are slow in half precision and round every partial sum; GPUs accumulate in float32 by themselves."""
    return torch.promote_types(feats.dtype, torch.float32) if feats.device.type == "cpu" else feats.dtype


def _columns(feats: Tensor, nmap: NeighborMap):
    """Yield (row slice, patch matrix [rows, 27 C]) small enough to stay in cache."""
    rows, channels = feats.shape
    padded = F.pad(feats, (0, 0, 0, 1))
    step = max(256, COLUMN_BYTES.get(feats.device.type, 64 << 20) // (TAPS * channels * feats.element_size()))
    for start in range(0, rows, step):
        index = nmap.table[start : start + step]
        yield slice(start, start + index.shape[0]), padded.index_select(0, index.view(-1)).view(-1, TAPS * channels)


def _convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, nmap: NeighborMap) -> Tensor:
    dtype = _compute_dtype(feats)
    x, w = feats.to(dtype), weight.to(dtype)
    b = x.new_zeros(w.shape[0]) if bias is None else bias.to(dtype)
    if _use_columns(x, x.shape[1]):
        out = x.new_empty(x.shape[0], w.shape[0])
        matrix = w.flatten(1).t()
        for rows, patches in _columns(x, nmap):
            torch.addmm(b, patches, matrix, out=out[rows])
        return out.to(feats.dtype)
    taps = w.flatten(1, 3).permute(1, 2, 0)  # [27, Ci, Co]
    out = torch.addmm(b, x, taps[CENTRE])
    for tap, rows, neighbours in nmap.segments:
        out.index_add_(0, rows, x.index_select(0, neighbours) @ taps[tap])
        out.index_add_(0, neighbours, x.index_select(0, rows) @ taps[TAPS - 1 - tap])
    return out.to(feats.dtype)


def _weight_gradient(feats: Tensor, grad: Tensor, nmap: NeighborMap) -> Tensor:
    """[Co, 27 Ci] gradient of the weight."""
    dtype = _compute_dtype(feats)
    x, g = feats.to(dtype), grad.to(dtype)
    if _use_columns(x, x.shape[1]):
        total = x.new_zeros(g.shape[1], TAPS * x.shape[1])
        for rows, patches in _columns(x, nmap):
            total.addmm_(g[rows].t(), patches)
        return total
    total = x.new_zeros(TAPS, g.shape[1], x.shape[1])
    total[CENTRE] = g.t() @ x
    for tap, rows, neighbours in nmap.segments:
        total[tap].addmm_(g.index_select(0, rows).t(), x.index_select(0, neighbours))
        total[TAPS - 1 - tap].addmm_(g.index_select(0, neighbours).t(), x.index_select(0, rows))
    return total.transpose(0, 1).reshape(g.shape[1], -1)


class SubmanifoldConv3d(nn.Module):
    """Submanifold 3x3x3 convolution layer: weight [Co, 3, 3, 3, Ci], bias [Co]."""

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
        return submanifold_conv3d(feats, self.weight, self.bias, nmap)
