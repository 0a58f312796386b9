"""The stages of the mini family's training: what each one needs, learns and leaves behind.

Every stage has its own checkpoint NAME.pt in the run's folder, so stages can run side by side in processes of their own
as soon as what they need is there; a stage waits for nothing but raises if an input is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..loop import Recipe, train_stage
from . import batches, encoder, vaes
from .cache import Tokens, cache_file
from .finetune_decoders import polish_shape_decoder, polish_texture_decoder
from .flows import sample_structure, structure_flow_loss
from .networks import make_image_encoder, make_network
from .run import VALIDATION, Run, auxiliary_heads, flow_network, held_out_batch, held_out_tokens
from .slat_stages import train_shape_flow, train_texture_flow

VIEWS = 2
ENCODER_BATCH = STRUCTURE_BATCH = 32
RECIPES = {
    "encoder": Recipe(seconds=3300, lr=2.5e-3, restarts=(1250,)),
    "ss_vae": Recipe(seconds=80, lr=2e-3, eval_every=20),
    "shape_vae": Recipe(seconds=1200, lr=1.5e-3, restarts=(480,)),
    "tex_vae": Recipe(seconds=1400, lr=2.5e-3, restarts=(900,)),
    "ss_flow": Recipe(seconds=2600, lr=2e-3, decay=0.999, eval_every=500, restarts=(1000, 2000)),
    "shape_flow": Recipe(seconds=4700, lr=2e-3, decay=0.999, eval_every=500, restarts=(1760, 3540)),
    "tex_flow": Recipe(seconds=3600, lr=2e-3, decay=0.999, eval_every=500, restarts=(1500, 2300)),
    "shape_polish": Recipe(seconds=150, lr=1e-3),
    "tex_polish": Recipe(seconds=110, lr=1e-3),
}
"""CPU-seconds and rates of every stage, in the order of a full run."""


def train_encoder(run: Run, recipe: Recipe) -> None:
    """Image encoder with auxiliary heads (see `encoder`), on random views with random colour orders and exposure."""
    vit = make_image_encoder()
    patches = 8
    modules = {"vit": vit, **auxiliary_heads()}

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


def _random_batch(run: Run, count: int, generator: torch.Generator, colours: bool = False) -> vaes.SparseBatch:
    targets = [run.objects.targets(i, 32) for i in batches.pick(count, len(run.objects), generator)]
    orders = [batches.COLOUR_ORDERS[i] for i in batches.pick(count, 6, generator)] if colours else None
    return batches.sparse_batch(targets, orders)


def train_shape_vae(run: Run, recipe: Recipe) -> None:
    """Shape autoencoder on dual grids."""
    enc, dec = make_network("shape_enc"), make_network("shape_dec")
    held_out = held_out_batch(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.shape_loss(enc, dec, _random_batch(run, 8, generator), generator)

    train_stage("shape_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.shape_report(enc, dec, held_out), run.folder, recipe)


def train_texture_vae(run: Run, recipe: Recipe) -> None:
    """Texture autoencoder on PBR attributes, channels balanced by their variance, colour channels shuffled."""
    enc, dec = make_network("tex_enc"), make_network("tex_dec")
    held_out = held_out_batch(run)
    weights = vaes.channel_weights(held_out.attrs)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.texture_loss(enc, dec, _random_batch(run, 8, generator, colours=True), weights, generator)

    train_stage("tex_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.texture_report(enc, dec, held_out), run.folder, recipe)


def _repeated(seed: int, loss: Callable[[torch.Generator], Tensor], times: int = 4) -> float:
    """Mean of a random loss over fixed draws: comparable between evaluations."""
    return sum(loss(torch.Generator().manual_seed(seed + i)).item() for i in range(times)) / times


def train_structure_flow(run: Run, recipe: Recipe) -> None:
    """Structure flow, on latents of unit size (export folds the scale into the autoencoder)."""
    model = flow_network("ss_flow")
    enc, dec = make_network("ss_enc"), make_network("ss_dec")
    run.load("ss_vae", enc=enc, dec=dec)
    latents = load_file(cache_file(run.folder, "latents_structure"))["structure"]
    scale = structure_scale(latents)
    tokens = Tokens.open(cache_file(run.folder, "tokens"))
    count = min(len(latents), len(tokens.tokens))
    truth = batches.occupancy([run.held_out.targets(i, 32) for i in range(VALIDATION)])
    with torch.no_grad():
        held_out = enc(truth)[0] / scale
    seen = held_out_tokens(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(count, (STRUCTURE_BATCH,), generator=generator)
        orders = torch.randint(tokens.tokens.shape[2], (STRUCTURE_BATCH,), generator=generator)
        cond = tokens.gather(rows, torch.randint(VIEWS, (STRUCTURE_BATCH,), generator=generator), orders)
        return {"loss": structure_flow_loss(model, latents[rows] / scale, cond, generator)}

    def evaluate() -> dict[str, float]:
        fixed = _repeated(5, lambda g: structure_flow_loss(model, held_out, seen, g, p_uncond=0))
        z = sample_structure(model, seen)
        on = dec(z * scale) > 0
        return {"v_loss": fixed, "iou": vaes.mask_iou(on, truth > 0), "iou_mismatched": vaes.mask_iou(on.roll(1, 0), truth > 0)}

    train_stage("ss_flow", {"model": model}, loss, evaluate, run.folder, recipe)


def structure_scale(latents: Tensor) -> Tensor:
    """Root mean square [C, 1, 1, 1] per channel of latents [N, C, r, r, r]. No shift: zero padding could not absorb one."""
    return latents.square().mean((0, 2, 3, 4)).sqrt().view(-1, 1, 1, 1)


STAGES: dict[str, Callable[[Run, Recipe], None]] = {
    "encoder": train_encoder,
    "ss_vae": train_structure_vae,
    "shape_vae": train_shape_vae,
    "tex_vae": train_texture_vae,
    "ss_flow": train_structure_flow,
    "shape_flow": train_shape_flow,
    "tex_flow": train_texture_flow,
    "shape_polish": polish_shape_decoder,
    "tex_polish": polish_texture_decoder,
}
