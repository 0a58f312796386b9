"""Scaled dot-product attention over the tokens of several samples: the only place that calls a kernel.

PyTorch's own choice is used (flash, memory-efficient or cuDNN on GPUs) unless `use_attention` names another.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [B, Tq, H, d], k and v [B, Tk, H, d] -> [B, Tq, H, d]."""


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
    choice = _chosen.get()
    if queries.is_even and context.is_even:
        return choice.kernel(q, k, v).flatten(-2)
    if choice.ragged is not None:
        q, k, v = (x.flatten(0, 1) if batch.is_even else x for x, batch in ((q, queries), (k, context), (v, context)))
        return queries.fold(choice.ragged(q, k, v, queries, context).flatten(-2))
    samples = zip(queries.split(q), context.split(k), context.split(v), strict=True)
    outs = [choice.kernel(*(x[None] for x in sample))[0].flatten(-2) for sample in samples]
    return torch.stack(outs) if queries.is_even else torch.cat(outs)


@dataclass(frozen=True)
class _Choice:
    """How to attend: samples of one length; and, where a library can, rows of samples of different lengths at once."""

    kernel: Kernel
    ragged: Callable[[Tensor, Tensor, Tensor, Batch, Batch], Tensor] | None = None


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _flash(library: Any) -> _Choice:
    def ragged(q: Tensor, k: Tensor, v: Tensor, queries: Batch, context: Batch) -> Tensor:
        ends = [torch.tensor([0, *accumulate(b.lengths)], dtype=torch.int32, device=q.device) for b in (queries, context)]
        return library.flash_attn_varlen_func(q, k, v, *ends, max(queries.lengths), max(context.lengths))

    return _Choice(library.flash_attn_func, ragged)


def _sage(library: Any) -> _Choice:
    return _Choice(lambda q, k, v: library.sageattn(q, k, v, tensor_layout="NHD"))


LIBRARIES = {"flash": ("flash_attn", _flash), "flash3": ("flash_attn_interface", _flash), "sage": ("sageattention", _sage)}
"""Names for `use_attention`: the package that must be installed, and how to call it."""
_TORCH = _Choice(_sdpa)
_chosen: ContextVar[_Choice] = ContextVar("attention", default=_TORCH)


@contextmanager
def use_attention(name_or_kernel: str | Kernel) -> Iterator[None]:
    """Attend in another way for as long as the `with` lasts: a name of LIBRARIES, "torch", or a host's own kernel.

    Raises:
        InputError: the name is unknown, or its package is not installed or broken.
    """
    token = _chosen.set(_choose(name_or_kernel))
    try:
        yield
    finally:
        _chosen.reset(token)


def _choose(wanted: str | Kernel) -> _Choice:
    if callable(wanted):
        return _Choice(wanted)
    if wanted == "torch":
        return _TORCH
    if wanted not in LIBRARIES:
        raise InputError(f'There is no attention "{wanted}". Choose one of: torch, {", ".join(LIBRARIES)}.')
    package, make = LIBRARIES[wanted]
    try:
        return make(importlib.import_module(package))
    except Exception as error:  # half-installed CUDA packages raise anything at all on import
        raise InputError(f'Attention "{wanted}" needs the package {package}, which cannot be used: {error}.') from error
