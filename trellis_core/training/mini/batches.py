"""Batches of the training stages, made from stored objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .data.dataset import DualGridTargets, ShardedObjects
from .vaes import SparseBatch

COARSE = 16
"""Cells a side of the structure."""
COLOUR_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2))
"""Permutations of the RGB channels: the same on picture and object, they make a new, equally valid pair."""


def pictures(objects: ShardedObjects, rows: Sequence[int]) -> Tensor:
    """float32 [B, 3, S, S] in 0..1."""
    return torch.from_numpy(objects.gather("rgb", rows)).permute(0, 3, 1, 2).float() / 255


def sparse_batch(targets: Sequence[DualGridTargets]) -> SparseBatch:
    """Objects of one grid, sample by sample."""
    coords = [np.concatenate([np.full((len(t.coords), 1), i), t.coords], axis=1) for i, t in enumerate(targets)]
    return SparseBatch(
        torch.from_numpy(np.concatenate(coords)).int(),
        torch.from_numpy(np.concatenate([t.dual for t in targets])),
        torch.from_numpy(np.concatenate([t.intersected for t in targets])),
        torch.from_numpy(np.concatenate([t.attrs for t in targets])),
    )


def occupancy(targets: Sequence[DualGridTargets], grid: int = COARSE) -> Tensor:
    """float32 [B, 1, grid, grid, grid]: 1 where a coarse voxel holds an active fine one."""
    dense = torch.zeros(len(targets), 1, grid, grid, grid)
    for i, t in enumerate(targets):
        x, y, z = torch.from_numpy(t.coords.astype(np.int64) // (t.grid // grid)).unbind(1)
        dense[i, 0, x, y, z] = 1
    return dense


def pick(count: int, total: int, generator: torch.Generator) -> list[int]:
    """`count` random numbers below `total`."""
    return torch.randint(total, (count,), generator=generator).tolist()
