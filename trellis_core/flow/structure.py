"""The flow transformer of the sparse structure: a dense cube of latent voxels (docs/method/networks.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from .attention import Batch
from .transformer import FlowParams, FlowTransformer, Layout


@dataclass(frozen=True)
class SparseStructureFlowParams(FlowParams):
    """Shape of the structure flow; `resolution` is the side of the latent cube."""

    resolution: Annotated[int, Field(ge=1, le=64)]


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
        layout = self.layout_of(x.shape[0], x.device)
        v = self.velocity(self.fold(x), layout, self.modulation(t), self.tokens(cond))
        return self.unfold(v)

    def layout_of(self, samples: int, device: torch.device) -> Layout:
        """Layout of `samples` cubes."""
        axis = torch.arange(self.params.resolution, device=device)
        return self.layout(torch.cartesian_prod(axis, axis, axis), Batch((len(axis) ** 3,) * samples))

    def fold(self, cubes: Tensor) -> Tensor:
        """[B, C, R, R, R] -> tokens [B, R^3, C]."""
        return cubes.flatten(2).transpose(1, 2)

    def unfold(self, tokens: Tensor) -> Tensor:
        """Undoes `fold`."""
        return tokens.transpose(1, 2).unflatten(2, (self.params.resolution,) * 3)
