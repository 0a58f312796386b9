"""What cross-attention looks at, in four forms that give the same numbers for different work (docs/method/networks.md).

`Tokens` is the plain form. The other three are exact shortcuts for sampling, where the context stays while the tokens
change: `Kept` projects it once for all steps, `Nothing` is the answer to a context of zeros in closed form, `Both` puts the
guided branch and the unguided one into one batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .attention import Batch
from .block import ModulatedTransformerCrossBlock


class Context(Protocol):
    """Something that a layer's cross-attention can look at."""

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        """What cross-attention of the layer with this index adds to its folded tokens h; broadcasts against h."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Folded context rows [..., Cc] in the torso dtype; every layer projects them whenever it is asked."""

    batch: Batch
    rows: Tensor

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        return layer.look(h, queries, layer.cross_attn.keys_values(self.rows), self.batch)


@dataclass(frozen=True)
class Kept:
    """Keys and values [..., H, d] of every layer, projected once."""

    batch: Batch
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, blocks: Iterable[ModulatedTransformerCrossBlock], tokens: Tokens) -> Kept:
        pairs = (block.cross_attn.keys_values(tokens.rows) for block in blocks)
        return cls(tokens.batch, tuple((k.contiguous(), v.contiguous()) for k, v in pairs))  # a view would hold both twice

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        return layer.look(h, queries, self.layers[index], self.batch)


@dataclass(frozen=True)
class Nothing:
    """A context of zeros. All its keys are equal, so attention returns its one value whatever the query: per layer one
    vector [C]."""

    layers: tuple[Tensor, ...]

    @classmethod
    def of(cls, blocks: Iterable[ModulatedTransformerCrossBlock], zero: Tensor) -> Nothing:
        """`zero` is one row [1, Cc] of the context, in the torso dtype."""
        return cls(tuple(block.cross_attn.answer(zero) for block in blocks))

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        return self.layers[index]


@dataclass(frozen=True)
class Both:
    """One context for the first half of the samples, another for the second half."""

    first: Context
    second: Context

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        half = Batch(queries.lengths[: len(queries.lengths) // 2])
        parts = [c.seen(layer, index, x, half).expand_as(x) for c, x in zip((self.first, self.second), h.chunk(2), strict=True)]
        return torch.cat(parts)
