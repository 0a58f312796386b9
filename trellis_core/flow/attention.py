"""Scaled dot-product attention over the tokens of several samples: the only place that calls the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """How many consecutive token rows belong to each sample.

    Samples of one length fold into [B, L, ...] tensors; samples of different lengths stay rows [T, ...], T the sum of
    the lengths. Neither form holds a padding row.
    """

    lengths: tuple[int, ...]

    @cached_property
    def is_even(self) -> bool:
        """Whether all samples have the same number of tokens."""
        return len(set(self.lengths)) <= 1

    def fold(self, rows: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...] if the samples are even, else unchanged."""
        return rows.unflatten(0, (len(self.lengths), self.lengths[0])) if self.is_even else rows

    def spread(self, per_sample: Tensor) -> Tensor:
        """[B, C] -> something that broadcasts against folded tokens: [B, 1, C] if even, else [T, C]."""
        if self.is_even:
            return per_sample[:, None]
        # Concatenated views rather than an index: the gradient is then a plain sum, the same bytes on every run.
        return torch.cat([row.expand(n, -1) for row, n in zip(per_sample.split(1), self.lengths, strict=True)])

    def split(self, folded: Tensor) -> tuple[Tensor, ...]:
        """Folded tokens -> one [L_b, ...] tensor for every sample."""
        return folded.unbind() if self.is_even else folded.split(self.lengths)


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Batch, context: Batch) -> Tensor:
    """softmax(q k^T / sqrt(d)) v inside every sample, without a mask.

    Args:
        q: [..., H, d] folded tokens of `queries`.
        k, v: [..., H, d] folded tokens of `context`.

    Returns:
        [..., H * d], heads concatenated, folded like `q`.
    """
    if queries.is_even and context.is_even:
        return _kernel(q, k, v)
    samples = zip(queries.split(q), context.split(k), context.split(v), strict=True)
    outs = [_kernel(*(x[None] for x in sample))[0] for sample in samples]
    return torch.stack(outs) if queries.is_even else torch.cat(outs)


def _kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, Tq, H, d], k and v [B, Tk, H, d] -> [B, Tq, H * d]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)
