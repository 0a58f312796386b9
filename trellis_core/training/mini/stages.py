"""The stages of the mini family's training: what each one needs, learns and leaves behind.

Every stage has its own checkpoint NAME.pt in the run's folder, so stages can run side by side in processes of their own
as soon as what they need is there; a stage waits for nothing but raises if an input is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..loop import Recipe, train_stage
from . import aim, batches, encoder, vaes
from .cache import Tokens, cache_file
from .data.dataset import ShardedObjects
from .finetune_decoders import polish_shape_decoder, polish_texture_decoder
from .flows import sample_structure, structure_flow_loss
from .networks import TOKEN_WIDTH, make_image_encoder, make_network
from .run import VALIDATION, Run, flow_network, held_out_batch, held_out_tokens
from .slat_stages import train_shape_flow, train_texture_flow
from .structure_code import fold_cells, structure_autoencoder

ENCODER_BATCH, STRUCTURE_BATCH, FINE_BATCH = 24, 32, 4
RECIPES = {
    "encoder": Recipe(seconds=1100, lr=2.5e-3, eval_every=120),
    "shape_vae": Recipe(seconds=700, lr=1.2e-3, eval_every=120),
    "tex_vae": Recipe(seconds=500, lr=1.5e-3, eval_every=120),
    "ss_flow": Recipe(seconds=1500, lr=2e-3, decay=0.998, eval_every=150),
    "shape_flow": Recipe(seconds=2100, lr=2e-3, decay=0.998, eval_every=200),
    "tex_flow": Recipe(seconds=1500, lr=2e-3, decay=0.998, eval_every=200),
    "shape_polish": Recipe(seconds=200, lr=8e-4),
    "tex_polish": Recipe(seconds=100, lr=8e-4),
}
"""CPU-seconds and rates of every stage, in the order of a full run."""


def train_encoder(run: Run, recipe: Recipe) -> None:
    """Image encoder with its auxiliary head (see `encoder`), on pictures with random colour orders."""
    vit, head = make_image_encoder(), encoder.ColumnHead(TOKEN_WIDTH)
    encoder.set_out(vit)
    run.warm_start("dinov3", vit)

    def forward(source: ShardedObjects, rows: list[int], orders: list[tuple[int, ...]]) -> dict[str, Tensor]:
        objects = [source.targets(i).recoloured(order) for i, order in zip(rows, orders, strict=True)]
        pixels = batches.pictures(source, rows)
        pixels = torch.stack([p[list(order)] for p, order in zip(pixels, orders, strict=True)])
        tokens = vit.encode(pixels)
        side = objects[0].grid // encoder.CELLS
        terms = encoder.column_losses(head(tokens[:, -(side**2) :]), encoder.column_targets(objects), side)
        loss = 4 * terms["cells"] + terms["cover"] + 4 * terms["depth"] + 4 * terms["colour"] + 2 * terms["back"]
        return {"loss": loss + terms["material"] + terms["place"], **{k: v.detach() for k, v in terms.items()}}

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = batches.pick(ENCODER_BATCH, len(run.objects), generator)
        return forward(run.objects, rows, [batches.COLOUR_ORDERS[i] for i in batches.pick(ENCODER_BATCH, 6, generator)])

    def evaluate() -> dict[str, float]:
        rows = list(range(VALIDATION))
        return {k: v.item() for k, v in forward(run.held_out, rows, [batches.COLOUR_ORDERS[0]] * VALIDATION).items()}

    train_stage("encoder", {"vit": vit, "head": head}, loss, evaluate, run.folder, recipe)


def _random_batch(run: Run, count: int, generator: torch.Generator, colours: bool = False) -> vaes.SparseBatch:
    targets = [run.objects.targets(i) for i in batches.pick(count, len(run.objects), generator)]
    if colours:
        orders = batches.pick(count, 6, generator)
        targets = [t.recoloured(batches.COLOUR_ORDERS[order]) for t, order in zip(targets, orders, strict=True)]
    return batches.sparse_batch(targets)


def train_shape_vae(run: Run, recipe: Recipe) -> None:
    """Shape autoencoder on dual grids."""
    enc, dec = make_network("shape_enc"), make_network("shape_dec")
    run.warm_start("shape_enc", enc)
    run.warm_start("shape_dec", dec)
    held_out = held_out_batch(run)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.shape_loss(enc, dec, _random_batch(run, FINE_BATCH, generator), generator)

    train_stage("shape_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.shape_report(enc, dec, held_out), run.folder, recipe)


def train_texture_vae(run: Run, recipe: Recipe) -> None:
    """Texture autoencoder on PBR attributes, channels balanced by their variance, colour channels shuffled."""
    enc, dec = make_network("tex_enc"), make_network("tex_dec")
    run.warm_start("tex_enc", enc)
    run.warm_start("tex_dec", dec)
    held_out = held_out_batch(run)
    weights = vaes.channel_weights(held_out.attrs)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return vaes.texture_loss(enc, dec, _random_batch(run, FINE_BATCH, generator, colours=True), weights, generator)

    train_stage("tex_vae", {"enc": enc, "dec": dec}, loss, lambda: vaes.texture_report(enc, dec, held_out), run.folder, recipe)


def _repeated(seed: int, loss: Callable[[torch.Generator], Tensor], times: int = 4) -> float:
    """Mean of a random loss over fixed draws: comparable between evaluations."""
    return sum(loss(torch.Generator().manual_seed(seed + i)).item() for i in range(times)) / times


def train_structure_flow(run: Run, recipe: Recipe) -> None:
    """Structure flow, on the cells themselves (see `structure_code`)."""
    model, (_, dec) = flow_network("ss_flow"), structure_autoencoder()
    tokens = Tokens.open(cache_file(run.folder, "tokens"))
    cells = torch.cat([batches.occupancy([run.objects.targets(i)]).bool() for i in range(len(tokens))])
    truth = batches.occupancy([run.held_out.targets(i) for i in range(VALIDATION)])
    held_out, seen = fold_cells(truth), held_out_tokens(run)
    if not run.warm_start("ss_flow", model):
        aim.aim_structure(model, tokens)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(tokens), (STRUCTURE_BATCH,), generator=generator)
        return {"loss": structure_flow_loss(model, fold_cells(cells[rows].float()), tokens.gather(rows), generator)}

    def evaluate() -> dict[str, float]:
        fixed = _repeated(5, lambda g: structure_flow_loss(model, held_out, seen, g, p_uncond=0))
        on = dec(sample_structure(model, seen)) > 0
        outline, wanted = on.any(3), (truth > 0).any(3)
        return {"v_loss": fixed, "iou": vaes.mask_iou(on, truth > 0), "outline": vaes.mask_iou(outline, wanted)}

    train_stage("ss_flow", {"model": model}, loss, evaluate, run.folder, recipe)


STAGES: dict[str, Callable[[Run, Recipe], None]] = {
    "encoder": train_encoder,
    "shape_vae": train_shape_vae,
    "tex_vae": train_texture_vae,
    "ss_flow": train_structure_flow,
    "shape_flow": train_shape_flow,
    "tex_flow": train_texture_flow,
    "shape_polish": polish_shape_decoder,
    "tex_polish": polish_texture_decoder,
}
