"""A training run: its folders, its data, and what several stages need of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...flow.transformer import initialize
from ..loop import load_averaged
from . import batches
from .cache import ShapeLatents, TextureLatents, cache_file
from .data.dataset import ShardedObjects
from .encoder import ColumnHead
from .networks import TOKEN_WIDTH, make_image_encoder, make_network
from .vaes import SparseBatch

VALIDATION = 128


@dataclass(frozen=True)
class Run:
    """Folders and data of one training run: objects to train on, and for validation."""

    folder: Path
    data: Path
    validation: Path
    warm: Path | None = None
    """A family folder whose networks the stages start from, where they fit."""
    cached: int = 16000
    """Objects whose latents and tokens the flow stages keep and train on, at most."""
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

    def warm_start(self, key: str, network: nn.Module) -> bool:
        """Fill a network with the weights of the family to start from; False if it has none of this shape."""
        if self.warm is None:
            return False
        file = self.warm / ("dinov3/model.safetensors" if key == "dinov3" else f"ckpts/{key}.safetensors")
        state = {name: value.float() for name, value in load_file(file).items()}
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            return False
        network.load_state_dict(state)
        return True

    def load(self, stage: str, **modules: nn.Module) -> None:
        load_averaged(stage, modules, self.folder)


def held_out_batch(run: Run, count: int = 24) -> SparseBatch:
    return batches.sparse_batch([run.held_out.targets(i) for i in range(count)])


def flow_network(key: str) -> nn.Module:
    """A flow network, initialised for training."""
    network = make_network(key)
    initialize(network)
    return network


def held_out_tokens(run: Run) -> Tensor:
    """Image tokens [VALIDATION, L, D] of the validation objects."""
    vit = make_image_encoder()
    run.load("encoder", vit=vit, head=ColumnHead(TOKEN_WIDTH))
    pixels = batches.pictures(run.held_out, range(VALIDATION))
    with torch.no_grad():
        return torch.cat([vit.encode(p) for p in pixels.split(64)])
