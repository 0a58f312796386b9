"""A training run: its folders, its data, and what several stages need of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ...flow.transformer import initialize
from ..loop import load_averaged
from . import batches, encoder
from .cache import ShapeLatents, TextureLatents, cache_file
from .data.dataset import ShardedObjects
from .networks import TOKEN_WIDTH, make_image_encoder, make_network
from .vaes import SparseBatch

VALIDATION = 128


@dataclass(frozen=True)
class Run:
    """Folders and data of one training run: objects to train on, and for validation."""

    folder: Path
    data: Path
    validation: Path
    _opened: tuple[float, ShardedObjects] | None = None

    @property
    def objects(self) -> ShardedObjects:
        """All shards that are there by now; looked for again once a minute, so training may start before they all are."""
        now = time.monotonic()
        if self._opened is None or now - self._opened[0] > 60:
            object.__setattr__(self, "_opened", (now, ShardedObjects(self.data)))
        return self._opened[1]

    @cached_property
    def held_out(self) -> ShardedObjects:
        return ShardedObjects(self.validation)

    @cached_property
    def shape_latents(self) -> ShapeLatents:
        return ShapeLatents.open(cache_file(self.folder, "latents_shape"))

    @cached_property
    def texture_latents(self) -> TextureLatents:
        return TextureLatents.open(cache_file(self.folder, "latents_texture"))

    def load(self, stage: str, **modules: nn.Module) -> None:
        load_averaged(stage, modules, self.folder)


def held_out_batch(run: Run, count: int = 48, grid: int = 32) -> SparseBatch:
    return batches.sparse_batch([run.held_out.targets(i, grid) for i in range(count)])


def flow_network(key: str) -> nn.Module:
    """A flow network, initialised for training."""
    network = make_network(key)
    initialize(network)
    return network


def held_out_tokens(run: Run) -> Tensor:
    """Image tokens [VALIDATION, L, D] of the validation objects' first views."""
    vit = make_image_encoder()
    run.load("encoder", vit=vit, **auxiliary_heads())
    pixels = batches.views(run.held_out, range(VALIDATION), [0] * VALIDATION).pixels
    with torch.no_grad():
        return torch.cat([vit.encode(p) for p in pixels.split(64)])


def auxiliary_heads() -> dict[str, nn.Module]:
    """The heads that teach the image encoder."""
    return {"patch": encoder.PatchHead(TOKEN_WIDTH, 8), "voxel": encoder.VoxelHead(TOKEN_WIDTH, 4)}
