"""The stages of the mini family's training: what each one needs, learns and leaves behind.

Every stage has its own checkpoint NAME.pt in the run's folder, so stages can run side by side in processes of their own
as soon as what they need is there; a stage waits for nothing but raises if an input is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..flow.transformer import initialize
from ..vae.sparse_unet import dual_grid_features
from . import batches, encoder, vaes
from .cache import ShapeLatents, Tokens
from .dataset import ShardedObjects
from .flows import (
    SHAPE_SAMPLER,
    SHAPE_TIMES,
    TEXTURE_SAMPLER,
    TEXTURE_TIMES,
    sample_slat,
    sample_structure,
    slat_flow_loss,
    structure_flow_loss,
)
from .loop import Recipe, load_averaged, train_stage
from .losses import TimeSchedule
from .networks import TOKEN_WIDTH, make_image_encoder, make_network

VALIDATION = 128
VIEWS = 2
ENCODER_BATCH = 32
UNIFORM = TimeSchedule("uniform")
RECIPES = {
    "encoder": Recipe(seconds=1200, lr=2.5e-3),
    "ss_vae": Recipe(seconds=80, lr=2e-3, eval_every=20),
    "shape_vae": Recipe(seconds=900, lr=1.5e-3),
    "tex_vae": Recipe(seconds=900, lr=1.5e-3),
    "shape_dec": Recipe(seconds=500, lr=1e-3),
    "tex_dec": Recipe(seconds=400, lr=1e-3),
    "ss_flow": Recipe(seconds=1500, lr=1.5e-3, decay=0.999),
    "shape_flow": Recipe(seconds=2400, lr=1.5e-3, decay=0.999),
    "tex_flow": Recipe(seconds=1800, lr=1.5e-3, decay=0.999),
}
"""CPU-seconds and rates of every stage, in the order of a full run."""


@dataclass(frozen=True)
class Run:
    """Folders and data of one training run."""

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
        return ShapeLatents.open(self.folder / "latents_shape.safetensors")

    def load(self, stage: str, **modules: nn.Module) -> None:
        load_averaged(stage, modules, self.folder)


def train_encoder(run: Run, recipe: Recipe) -> None:
    """Image encoder with auxiliary heads (see `encoder`), on random views with random colour orders and exposure."""
    vit = make_image_encoder()
    width, patches = TOKEN_WIDTH, 8
    modules = {"vit": vit, "patch": encoder.PatchHead(width, patches), "voxel": encoder.VoxelHead(width, 4)}

    def forward(rows, which, source, generator, augment: bool) -> dict[str, Tensor]:
        view = batches.views(source, rows, which)
        targets = [source.targets(i, 32) for i in rows]
        queries = batches.voxel_queries(targets, 128, generator)
        material = queries.material
        pixels = view.pixels
        if augment:
            orders = torch.tensor(batches.COLOUR_ORDERS)[torch.randint(6, (len(rows),), generator=generator)]
            view = batches.permute_colours(view, orders)
            index = orders[:, None].expand(-1, material.shape[1], -1)
            material = torch.cat([material[..., :3].gather(2, index), material[..., 3:]], dim=2)
            pixels = encoder.photometric(view.pixels, generator)
        tokens = vit.encode(pixels)
        terms = encoder.patch_losses(modules["patch"](tokens[:, -(patches**2) :]), view.xyz, view.material, view.mask)
        answers = modules["voxel"](tokens, queries.numbers)
        terms |= encoder.voxel_losses(answers, queries.occupied, queries.fine, material)
        loss = 4 * terms["xyz"] + 2 * terms["material"] + 0.5 * terms["mask"]
        loss = loss + terms["occupancy"] + 0.5 * terms["fine"] + 1.5 * terms["voxel_material"]
        return {"loss": loss, **{k: v.detach() for k, v in terms.items()}}

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = batches.pick(ENCODER_BATCH, len(run.objects), generator)
        which = torch.randint(VIEWS, (ENCODER_BATCH,), generator=generator).numpy()
        return forward(rows, which, run.objects, generator, True)

    def evaluate() -> dict[str, float]:
        rows = list(range(VALIDATION))
        terms = forward(rows, [0] * VALIDATION, run.held_out, torch.Generator().manual_seed(1), False)
        tokens = vit.encode(batches.views(run.held_out, rows, [0] * VALIDATION).pixels)
        on = torch.cat([modules["voxel"](t, torch.arange(512).expand(len(t), -1))[..., 0] for t in tokens.split(32)]) > 0
        truth = batches.occupancy([run.held_out.targets(i, 32) for i in rows]).flatten(1) > 0
        return {k: v.item() for k, v in terms.items()} | {"iou": vaes.mask_iou(on, truth)}

    train_stage("encoder", modules, loss, evaluate, run.folder, recipe)


def train_structure_vae(run: Run, recipe: Recipe) -> None:
    """Structure autoencoder on 8^3 occupancy."""
    enc, dec = make_network("ss_enc"), make_network("ss_dec")
    nn.init.constant_(enc.out_layer[2].bias[enc.params.latent_channels :], -4.0)
    truth = batches.occupancy([run.held_out.targets(i, 32) for i in range(VALIDATION)])

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = batches.pick(48, len(run.objects), generator)
        return vaes.structure_loss(enc, dec, batches.occupancy([run.objects.targets(i, 32) for i in rows]), generator)

    train_stage("ss_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.structure_report(enc, dec, truth), run.folder, recipe)


def _held_out_batch(run: Run, count: int = 48, grid: int = 32) -> vaes.SparseBatch:
    return batches.sparse_batch([run.held_out.targets(i, grid) for i in range(count)])


def _random_batch(run: Run, count: int, generator: torch.Generator, colours: bool = False) -> vaes.SparseBatch:
    targets = [run.objects.targets(i, 32) for i in batches.pick(count, len(run.objects), generator)]
    orders = [batches.COLOUR_ORDERS[i] for i in batches.pick(count, 6, generator)] if colours else None
    return batches.sparse_batch(targets, orders)


def train_shape_vae(run: Run, recipe: Recipe) -> None:
    """Shape autoencoder on dual grids."""
    enc, dec = make_network("shape_enc"), make_network("shape_dec")
    held_out = _held_out_batch(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.shape_loss(enc, dec, _random_batch(run, 8, generator), generator)

    train_stage("shape_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.shape_report(enc, dec, held_out), run.folder, recipe)


def train_texture_vae(run: Run, recipe: Recipe) -> None:
    """Texture autoencoder on PBR attributes, channels balanced by their variance, colour channels shuffled."""
    enc, dec = make_network("tex_enc"), make_network("tex_dec")
    held_out = _held_out_batch(run)
    weights = vaes.channel_weights(held_out.attrs)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.texture_loss(enc, dec, _random_batch(run, 8, generator, colours=True), weights, generator)

    train_stage("tex_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.texture_report(enc, dec, held_out), run.folder, recipe)


def finetune_shape_decoder(run: Run, recipe: Recipe) -> None:
    """Shape decoder alone, on latents with the kind of error a flow model makes."""
    enc, dec = make_network("shape_enc"), make_network("shape_dec")
    run.load("shape_vae", enc=enc, dec=dec)
    _, spread = run.shape_latents.statistics()
    held_out = _held_out_batch(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.shape_loss(enc, dec, _random_batch(run, 8, generator), generator, spread=spread, strength=0.6)

    train_stage("shape_dec", {"dec": dec}, loss, lambda: vaes.shape_report(enc, dec, held_out), run.folder, recipe)


def finetune_texture_decoder(run: Run, recipe: Recipe) -> None:
    """Texture decoder alone, on perturbed latents."""
    enc, dec = make_network("tex_enc"), make_network("tex_dec")
    run.load("tex_vae", enc=enc, dec=dec)
    spread = load_file(run.folder / "latents_texture.safetensors")["texture"][0].std(0)
    held_out = _held_out_batch(run)
    weights = vaes.channel_weights(held_out.attrs)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        batch = _random_batch(run, 8, generator, colours=True)
        return vaes.texture_loss(enc, dec, batch, weights, generator, spread=spread, strength=0.6)

    train_stage("tex_dec", {"dec": dec}, loss, lambda: vaes.texture_report(enc, dec, held_out), run.folder, recipe)


def _flow(key: str) -> nn.Module:
    network = make_network(key)
    initialize(network)
    return network


def _held_out_tokens(run: Run) -> Tensor:
    vit = make_image_encoder()
    run.load("encoder", vit=vit, **_auxiliary_heads())
    pixels = batches.views(run.held_out, range(VALIDATION), [0] * VALIDATION).pixels
    with torch.no_grad():
        return torch.cat([vit.encode(p) for p in pixels.split(64)])


def _auxiliary_heads() -> dict[str, nn.Module]:
    return {"patch": encoder.PatchHead(TOKEN_WIDTH, 8), "voxel": encoder.VoxelHead(TOKEN_WIDTH, 4)}


def _repeated(seed: int, loss: Callable[[torch.Generator], Tensor], times: int = 4) -> float:
    """Mean of a random loss over fixed draws: comparable between evaluations."""
    return sum(loss(torch.Generator().manual_seed(seed + i)).item() for i in range(times)) / times


def train_structure_flow(run: Run, recipe: Recipe) -> None:
    """Structure flow, on latents scaled to zero mean and unit variance (export folds the scale into the autoencoder)."""
    model = _flow("ss_flow")
    enc, dec = make_network("ss_enc"), make_network("ss_dec")
    run.load("ss_vae", enc=enc, dec=dec)
    latents = load_file(run.folder / "latents_structure.safetensors")["structure"]
    mean, std = structure_statistics(latents)
    tokens = Tokens.open(run.folder / "tokens.safetensors")
    truth = batches.occupancy([run.held_out.targets(i, 32) for i in range(VALIDATION)])
    with torch.no_grad():
        held_out = (enc(truth)[0] - mean) / std
    held_out_tokens = _held_out_tokens(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (48,), generator=generator)
        orders = torch.randint(tokens.tokens.shape[2], (48,), generator=generator)
        cond = tokens.gather(rows, torch.randint(VIEWS, (48,), generator=generator), orders)
        return {"loss": structure_flow_loss(model, (latents[rows] - mean) / std, cond, generator)}

    def evaluate() -> dict[str, float]:
        fixed = _repeated(5, lambda g: structure_flow_loss(model, held_out, held_out_tokens, g, p_uncond=0))
        z = sample_structure(model, held_out_tokens)
        on = dec(z * std + mean) > 0
        return {"v_loss": fixed, "iou": vaes.mask_iou(on, truth > 0), "iou_mismatched": vaes.mask_iou(on.roll(1, 0), truth > 0)}

    train_stage("ss_flow", {"model": model}, loss, evaluate, run.folder, recipe)


def structure_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C, 1, 1, 1] per channel."""
    return latents.mean((0, 2, 3, 4)).view(-1, 1, 1, 1), latents.std((0, 2, 3, 4)).view(-1, 1, 1, 1)


@torch.no_grad()
def _encode_held_out(encoder_net: nn.Module, batch: vaes.SparseBatch, shape: bool) -> tuple[Tensor, Tensor]:
    feats = dual_grid_features(batch.vertices, batch.flags) if shape else batch.attrs * 2 - 1
    latent = encoder_net(feats, batch.coords)
    return latent.mean, latent.coords


def train_shape_flow(run: Run, recipe: Recipe) -> None:
    """Shape flow on normalised shape latents."""
    model, enc = _flow("shape_flow"), make_network("shape_enc")
    run.load("shape_vae", enc=enc, dec=make_network("shape_dec"))
    latents = run.shape_latents
    mean, std = latents.statistics()
    tokens = Tokens.open(run.folder / "tokens.safetensors")
    held_out, held_out_coords = _encode_held_out(enc, _held_out_batch(run, 64), True)
    held_out_tokens = _held_out_tokens(run)[:64]

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (16,), generator=generator)
        orders = torch.randint(tokens.tokens.shape[2], (16,), generator=generator)
        cond = tokens.gather(rows, torch.randint(VIEWS, (16,), generator=generator), orders)
        index, coords = latents.rows(rows.tolist())
        return {"loss": slat_flow_loss(model, (latents.shape[index] - mean) / std, coords, cond, generator, SHAPE_TIMES)}

    def evaluate() -> dict[str, float]:
        x0 = (held_out - mean) / std
        fixed = _repeated(5, lambda g: slat_flow_loss(model, x0, held_out_coords, held_out_tokens, g, UNIFORM, p_uncond=0))
        z = sample_slat(model, held_out_coords, held_out_tokens, SHAPE_SAMPLER)
        return {"v_loss": fixed, "latent_error": (z - x0).square().mean().item()}

    train_stage("shape_flow", {"model": model}, loss, evaluate, run.folder, recipe)


def train_texture_flow(run: Run, recipe: Recipe) -> None:
    """Texture flow on normalised texture latents, given the shape latent."""
    model = _flow("tex_flow")
    shape_enc, tex_enc = make_network("shape_enc"), make_network("tex_enc")
    run.load("shape_vae", enc=shape_enc, dec=make_network("shape_dec"))
    run.load("tex_vae", enc=tex_enc, dec=make_network("tex_dec"))
    latents = run.shape_latents
    texture = load_file(run.folder / "latents_texture.safetensors")["texture"]
    (shape_mean, shape_std), (mean, std) = latents.statistics(), (texture[0].mean(0), texture[0].std(0))
    tokens = Tokens.open(run.folder / "tokens.safetensors")
    held_out_batch = _held_out_batch(run, 64)
    held_out_shape, coords = _encode_held_out(shape_enc, held_out_batch, True)
    held_out, _ = _encode_held_out(tex_enc, held_out_batch, False)
    held_out_tokens = _held_out_tokens(run)[:64]

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (16,), generator=generator)
        orders = torch.randint(len(texture), (16,), generator=generator)
        cond = tokens.gather(rows, torch.randint(VIEWS, (16,), generator=generator), orders)
        index, batch_coords = latents.rows(rows.tolist())
        x0 = (texture[orders[batch_coords[:, 0].long()], index] - mean) / std
        shape = (latents.shape[index] - shape_mean) / shape_std
        return {"loss": slat_flow_loss(model, x0, batch_coords, cond, generator, TEXTURE_TIMES, concat=shape)}

    def evaluate() -> dict[str, float]:
        x0, shape = (held_out - mean) / std, (held_out_shape - shape_mean) / shape_std
        fixed = _repeated(5, lambda g: slat_flow_loss(model, x0, coords, held_out_tokens, g, UNIFORM, concat=shape, p_uncond=0))
        z = sample_slat(model, coords, held_out_tokens, TEXTURE_SAMPLER, concat=shape)
        return {"v_loss": fixed, "latent_error": (z - x0).square().mean().item()}

    train_stage("tex_flow", {"model": model}, loss, evaluate, run.folder, recipe)


STAGES: dict[str, Callable[[Run, Recipe], None]] = {
    "encoder": train_encoder,
    "ss_vae": train_structure_vae,
    "shape_vae": train_shape_vae,
    "tex_vae": train_texture_vae,
    "shape_dec": finetune_shape_decoder,
    "tex_dec": finetune_texture_decoder,
    "ss_flow": train_structure_flow,
    "shape_flow": train_shape_flow,
    "tex_flow": train_texture_flow,
}
