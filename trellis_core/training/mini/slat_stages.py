"""Stages of the two structured-latent flows: shape, and texture given the shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...flow.sampler import SamplerParams
from ...vae.sparse_unet import dual_grid_features
from ..loop import Recipe, train_stage
from ..losses import TimeSchedule
from . import aim
from .cache import ShapeLatents, TextureLatents, Tokens, cache_file
from .flows import SHAPE_SAMPLER, SHAPE_TIMES, TEXTURE_SAMPLER, TEXTURE_TIMES, sample_slat, slat_flow_loss
from .networks import make_network
from .run import Run, flow_network, held_out_batch, held_out_tokens

UNIFORM = TimeSchedule("uniform")
HELD_OUT = 24
BATCH = 8


@dataclass(frozen=True)
class Draw:
    """A batch: coords int32 [T, 4], cond [B, L, D], shape latent [T, C] and, for the texture, its latent [T, C]."""

    coords: Tensor
    cond: Tensor
    shape: Tensor
    texture: Tensor | None


@dataclass(frozen=True)
class Source:
    """Cached tokens and latents of the training objects."""

    tokens: Tokens
    latents: ShapeLatents
    texture: TextureLatents | None

    @classmethod
    def open(cls, folder: Path, with_texture: bool) -> Source:
        texture = TextureLatents.open(cache_file(folder, "latents_texture")) if with_texture else None
        return cls(Tokens.open(cache_file(folder, "tokens")), ShapeLatents.open(cache_file(folder, "latents_shape")), texture)

    def draw(self, generator: torch.Generator) -> Draw:
        rows = torch.randint(min(len(self.tokens), len(self.latents)), (BATCH,), generator=generator)
        index, coords = self.latents.rows(rows.tolist())
        texture = None if self.texture is None else self.texture.texture[index]
        return Draw(coords, self.tokens.gather(rows), self.latents.shape[index], texture)


def _report(
    model: nn.Module, draw: Draw, x0: Tensor, shape: Tensor | None, params: SamplerParams, seed: int = 5
) -> dict[str, float]:
    """Held-out velocity loss over fixed draws, and squared error of sampled latents."""
    losses = [
        slat_flow_loss(
            model, x0, draw.coords, draw.cond, torch.Generator().manual_seed(seed + i), UNIFORM, concat=shape, p_uncond=0
        )
        for i in range(4)
    ]
    z = sample_slat(model, draw.coords, draw.cond, params, concat=shape)
    return {"v_loss": sum(loss.item() for loss in losses) / len(losses), "latent_error": (z - x0).square().mean().item()}


@torch.no_grad()
def _held_out(run: Run, with_texture: bool) -> Draw:
    batch, tokens = held_out_batch(run, HELD_OUT), held_out_tokens(run)[:HELD_OUT]
    enc = make_network("shape_enc")
    run.load("shape_vae", enc=enc, dec=make_network("shape_dec"))
    latent = enc(dual_grid_features(batch.vertices, batch.flags), batch.coords)
    texture = None
    if with_texture:
        enc = make_network("tex_enc")
        run.load("tex_vae", enc=enc, dec=make_network("tex_dec"))
        texture = enc(batch.attrs * 2 - 1, batch.coords).mean
    return Draw(latent.coords, tokens, latent.mean, texture)


def train_shape_flow(run: Run, recipe: Recipe) -> None:
    """Shape flow on normalised shape latents."""
    model, source, held_out = flow_network("shape_flow"), Source.open(run.folder, False), _held_out(run, False)
    if not run.warm_start("shape_flow", model):
        aim.aim_latent(model, source.tokens)
    mean, std = source.latents.statistics()

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        draw = source.draw(generator)
        return {"loss": slat_flow_loss(model, (draw.shape - mean) / std, draw.coords, draw.cond, generator, SHAPE_TIMES)}

    def evaluate() -> dict[str, float]:
        return _report(model, held_out, (held_out.shape - mean) / std, None, SHAPE_SAMPLER)

    train_stage("shape_flow", {"model": model}, loss, evaluate, run.folder, recipe)


def train_texture_flow(run: Run, recipe: Recipe) -> None:
    """Texture flow on normalised texture latents, given the normalised shape latent."""
    model, source, held_out = flow_network("tex_flow"), Source.open(run.folder, True), _held_out(run, True)
    if not run.warm_start("tex_flow", model):
        aim.aim_latent(model, source.tokens)
    shape_mean, shape_std = source.latents.statistics()
    mean, std = run.texture_latents.statistics()

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        draw = source.draw(generator)
        shape = (draw.shape - shape_mean) / shape_std
        x0 = (draw.texture - mean) / std
        return {"loss": slat_flow_loss(model, x0, draw.coords, draw.cond, generator, TEXTURE_TIMES, concat=shape)}

    def evaluate() -> dict[str, float]:
        shape = (held_out.shape - shape_mean) / shape_std
        return _report(model, held_out, (held_out.texture - mean) / std, shape, TEXTURE_SAMPLER)

    train_stage("tex_flow", {"model": model}, loss, evaluate, run.folder, recipe)
