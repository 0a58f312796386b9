"""The flow transformer of the structured latent: tokens on active voxels (docs/method/networks.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Batch
from .transformer import FlowParams, FlowTransformer, Layout


@dataclass(frozen=True)
class SLatFlowParams(FlowParams):
    """Shape of a structured latent flow; `resolution` only informs, any voxel index is accepted."""


class SLatFlowModel(FlowTransformer):
    """Velocity of the shape latent, or of the texture latent given the shape latent."""

    def forward(
        self,
        feats: Tensor,
        coords: Tensor,
        t: Tensor,
        cond: Tensor | Sequence[Tensor],
        concat_cond: Tensor | None = None,
    ) -> Tensor:
        """Velocity of every token.

        Args:
            feats: float32 [T, Cin], or [T, Cin - Cs] with `concat_cond`.
            coords: int32 [T, 4] rows (sample, x, y, z); the rows of a sample contiguous, samples in order 0..B-1.
            t: float32 [B], the time times 1000.
            cond: [B, L, Cc], or one [L_b, Cc] for every sample.
            concat_cond: float32 [T, Cs] known latent, row for row on `coords`, appended to the channels of `feats`.

        Returns:
            float32 [T, Cout].
        """
        if concat_cond is not None:
            feats = torch.cat((feats, concat_cond), dim=1)
        layout = self.layout_of(coords, t.shape[0])
        return self.velocity(layout.batch.fold(feats), layout, self.modulation(t), self.tokens(cond)).flatten(0, -2)

    def layout_of(self, coords: Tensor, samples: int) -> Layout:
        """Layout of the rows coords int32 [T, 4]."""
        batch = Batch(tuple(torch.bincount(coords[:, 0], minlength=samples).tolist()))
        return self.layout(batch.fold(coords[:, 1:]), batch)
