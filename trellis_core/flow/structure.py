"""The flow transformer of the sparse structure: a dense cube of latent voxels (spec A 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Batch
from .transformer import FlowParams, FlowTransformer


@dataclass(frozen=True)
class SparseStructureFlowParams(FlowParams):
    """Shape of the structure flow; `resolution` is the side of the latent cube."""


class SparseStructureFlowModel(FlowTransformer):
    """Velocity of the structure latent."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Velocity of every voxel.

        Args:
            x: float32 [B, Cin, R, R, R], axes x, y, z.
            t: float32 [B], the time times 1000.
            cond: [B, L, Cc].

        Returns:
            float32 [B, Cout, R, R, R].
        """
        count, _, *cube = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        axes = (torch.arange(side, device=x.device) for side in cube)
        positions = torch.cartesian_prod(*axes)
        batch, context = (Batch((length,) * count) for length in (tokens.shape[1], cond.shape[1]))
        v = self.velocity(tokens, positions, t, cond, batch, context)
        return v.transpose(1, 2).unflatten(2, tuple(cube))
