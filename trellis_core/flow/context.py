"""What cross-attention looks at, in four forms that give the same numbers for different work (spec A 3.2).

`Tokens` is the plain form. The other three are exact shortcuts for sampling, where the context stays while the tokens
change: `Kept` projects it once for all steps, `Nothing` is the answer to a context of zeros in closed form, `Both` puts the
guided branch and the unguided one into one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .attention import Batch

if TYPE_CHECKING:
    from .block import ModulatedTransformerCrossBlock
    from .transformer import FlowTransformer


class Context(Protocol):
    """Something that a layer's cross-attention can look at."""

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        """What cross-attention of the layer with this index adds to its folded tokens h; broadcasts against h."""


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
    def of(cls, model: FlowTransformer, tokens: Tokens) -> Kept:
        pairs = (block.cross_attn.keys_values(tokens.rows) for block in model.blocks)
        return cls(tokens.batch, tuple((k.contiguous(), v.contiguous()) for k, v in pairs))  # a view would hold both twice

    @staticmethod
    def bytes(model: FlowTransformer, rows: int) -> int:
        """What `of` would hold for this many context rows of all samples together."""
        return 2 * rows * model.params.model_channels * model.params.num_blocks * model.dtype.itemsize

    def seen(self, layer: ModulatedTransformerCrossBlock, index: int, h: Tensor, queries: Batch) -> Tensor:
        return layer.look(h, queries, self.layers[index], self.batch)


@dataclass(frozen=True)
class Nothing:
    """A context of zeros. All its keys are equal, so attention returns its one value whatever the query: per layer one
    vector [C]."""

    layers: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: FlowTransformer) -> Nothing:
        first = model.blocks[0].cross_attn.to_kv.weight
        zero = torch.zeros(1, model.params.cond_channels, device=first.device, dtype=model.dtype)
        return cls(tuple(block.cross_attn.answer(zero) for block in model.blocks))

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
