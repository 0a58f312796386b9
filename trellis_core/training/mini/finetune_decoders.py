"""Last stage of the decoders: learn from the flow models' own mistakes.

A ground-truth latent is taken part of the way to noise and brought back by the trained flow, given the picture: what
comes out errs as a sample errs, and still belongs to a known object.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..loop import Recipe, load_averaged, train_stage
from ..losses import diffuse
from . import batches, vaes
from .cache import Tokens, cache_file
from .networks import make_network
from .run import Run, held_out_batch
from .vaes import SparseBatch

BATCH = 8
FARTHEST = 0.85
"""Latest time that a latent is taken to, 1 being pure noise."""
STEPS = 3


@torch.no_grad()
def there_and_back(
    model: nn.Module, x0: Tensor, coords: Tensor, cond: Tensor, generator: torch.Generator, concat: Tensor | None = None
) -> Tensor:
    """Normalised latents x0 [T, C], noised to a random time per sample and denoised by `STEPS` Euler steps."""
    rows = coords[:, 0].long()
    start = torch.rand(len(cond), generator=generator) * FARTHEST
    x, _ = diffuse(x0, torch.randn(x0.shape, generator=generator), start[rows][:, None])
    for step in range(STEPS):
        t = start * (1 - step / STEPS)
        x = x - (start / STEPS)[rows][:, None] * model(x, coords, t * 1000, cond, concat)
    return x


class _Objects:
    """Random training objects with their image tokens."""

    def __init__(self, run: Run) -> None:
        self.run, self.tokens = run, Tokens.open(cache_file(run.folder, "tokens"))

    def draw(self, generator: torch.Generator) -> tuple[SparseBatch, Tensor]:
        count, views = self.tokens.tokens.shape[:2]
        rows = torch.randint(count, (BATCH,), generator=generator)
        seen = torch.randint(views, (BATCH,), generator=generator)
        batch = batches.sparse_batch([self.run.objects.targets(i, 32) for i in rows.tolist()])
        return batch, self.tokens.gather(rows, seen, torch.zeros(BATCH, dtype=torch.int64))


def _flow(run: Run, key: str) -> nn.Module:
    model = make_network(key)
    load_averaged(key, {"model": model}, run.folder)
    return model


def polish_shape_decoder(run: Run, recipe: Recipe) -> None:
    """Shape decoder on latents that the shape flow has been through."""
    enc, dec, flow = make_network("shape_enc"), make_network("shape_dec"), _flow(run, "shape_flow")
    run.load("shape_vae", enc=enc, dec=dec)
    mean, std = run.shape_latents.statistics()
    objects, held_out = _Objects(run), held_out_batch(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        batch, cond = objects.draw(generator)

        def perturb(z: Tensor, coords: Tensor, generator: torch.Generator) -> Tensor:
            return there_and_back(flow, (z - mean) / std, coords, cond, generator) * std + mean

        return vaes.shape_loss(enc, dec, batch, generator, perturb)

    train_stage("shape_polish", {"dec": dec}, loss, lambda: vaes.shape_report(enc, dec, held_out), run.folder, recipe)


def polish_texture_decoder(run: Run, recipe: Recipe) -> None:
    """Texture decoder on latents that the texture flow has been through."""
    shape_enc, enc, dec, flow = (
        make_network("shape_enc"),
        make_network("tex_enc"),
        make_network("tex_dec"),
        _flow(run, "tex_flow"),
    )
    run.load("shape_vae", enc=shape_enc, dec=make_network("shape_dec"))
    run.load("tex_vae", enc=enc, dec=dec)
    shape_mean, shape_std = run.shape_latents.statistics()
    mean, std = run.texture_latents.statistics()
    objects, held_out = _Objects(run), held_out_batch(run)
    weights = vaes.channel_weights(held_out.attrs)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        batch, cond = objects.draw(generator)

        def perturb(z: Tensor, coords: Tensor, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                shape = shape_enc(vaes.dual_grid_features(batch.vertices, batch.flags), batch.coords).mean
            return (
                there_and_back(flow, (z - mean) / std, coords, cond, generator, (shape - shape_mean) / shape_std) * std + mean
            )

        return vaes.texture_loss(enc, dec, batch, weights, generator, perturb)

    train_stage("tex_polish", {"dec": dec}, loss, lambda: vaes.texture_report(enc, dec, held_out), run.folder, recipe)
