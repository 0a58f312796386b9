"""Batches of the training stages, made from stored or freshly generated objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data.dataset import DualGridTargets, ShardedObjects
from .vaes import SparseBatch

COARSE = 8
FINE = 4
COLOUR_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2))
"""Permutations of the RGB channels: the same on picture and object, they make a new, equally valid pair."""


@dataclass(frozen=True)
class ViewBatch:
    """Pictures and what their pixels see.

    Attributes:
        pixels: [B, 3, S, S] in 0..1. mask: [B, 1, S, S]. xyz: [B, 3, S, S]. material: [B, 5, S, S].
    """

    pixels: Tensor
    mask: Tensor
    xyz: Tensor
    material: Tensor


@dataclass(frozen=True)
class VoxelQueries:
    """Coarse voxels asked about: numbers int64 [B, Q], occupied bool [B, Q], fine bool [B, Q, 64], material [B, Q, 5]."""

    numbers: Tensor
    occupied: Tensor
    fine: Tensor
    material: Tensor


def _maps(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def views(objects: ShardedObjects, rows: Sequence[int], which: Sequence[int]) -> ViewBatch:
    """View `which[i]` of object `rows[i]`."""

    def pick(name: str) -> np.ndarray:
        return objects.gather(name, rows)[np.arange(len(rows)), which]

    return ViewBatch(
        _maps(pick("rgb")).float() / 255,
        torch.from_numpy(pick("mask"))[:, None].float() / 255,
        _maps(pick("xyz")).float(),
        _maps(pick("material")).float() / 255,
    )


def permute_colours(batch: ViewBatch, orders: Tensor) -> ViewBatch:
    """Reorder the colour channels of picture and material; orders int64 [B, 3]."""
    index = orders[:, :, None, None].expand(-1, -1, *batch.pixels.shape[2:])
    material = torch.cat([batch.material[:, :3].gather(1, index), batch.material[:, 3:]], dim=1)
    return ViewBatch(batch.pixels.gather(1, index), batch.mask, batch.xyz, material)


def sparse_batch(targets: Sequence[DualGridTargets], orders: Sequence[Sequence[int]] | None = None) -> SparseBatch:
    """Objects of one grid, sample by sample; `orders` permutes the colour channels of each."""
    coords = [np.concatenate([np.full((len(t.coords), 1), i), t.coords], axis=1) for i, t in enumerate(targets)]
    attrs = [t.attrs if orders is None else t.attrs[:, [*orders[i], 3, 4, 5]] for i, t in enumerate(targets)]
    return SparseBatch(
        torch.from_numpy(np.concatenate(coords)).int(),
        torch.from_numpy(np.concatenate([t.dual for t in targets])),
        torch.from_numpy(np.concatenate([t.intersected for t in targets])),
        torch.from_numpy(np.concatenate(attrs)),
    )


def occupancy(targets: Sequence[DualGridTargets], grid: int = COARSE) -> Tensor:
    """float32 [B, 1, grid, grid, grid]: 1 where a coarse voxel holds an active fine one."""
    dense = torch.zeros(len(targets), 1, grid, grid, grid)
    for i, t in enumerate(targets):
        x, y, z = torch.from_numpy(t.coords.astype(np.int64) // (t.grid // grid)).unbind(1)
        dense[i, 0, x, y, z] = 1
    return dense


def voxel_queries(targets: Sequence[DualGridTargets], count: int, generator: torch.Generator) -> VoxelQueries:
    """`count` random coarse voxels per object, about half of them occupied; for grids of COARSE * FINE."""
    total = COARSE**3
    fine = torch.zeros(len(targets), total, FINE**3, dtype=torch.bool)
    material = torch.zeros(len(targets), total, 5)
    for i, t in enumerate(targets):
        at = torch.from_numpy(t.coords.astype(np.int64))
        coarse, inner = at // FINE, at % FINE
        number = (coarse[:, 0] * COARSE + coarse[:, 1]) * COARSE + coarse[:, 2]
        fine[i, number, (inner[:, 0] * FINE + inner[:, 1]) * FINE + inner[:, 2]] = True
        material[i].index_add_(0, number, torch.from_numpy(t.attrs[:, :5]))
    on = fine.any(2)
    material /= fine.sum(2, keepdim=True).clamp_min(1)
    chance = torch.where(on, total / on.sum(1, keepdim=True), 1.0)
    numbers = torch.multinomial(chance, count, replacement=False, generator=generator)
    rows = torch.arange(len(targets))[:, None]
    return VoxelQueries(numbers, on[rows, numbers], fine[rows, numbers], material[rows, numbers])


def pick(count: int, total: int, generator: torch.Generator) -> list[int]:
    """`count` random numbers below `total`."""
    return torch.randint(total, (count,), generator=generator).tolist()
