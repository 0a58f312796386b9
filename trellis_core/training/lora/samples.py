"""What a LoRA makes while it is being trained: the first objects of the data set, sampled anew."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...context import RunContext
from ...family import Family
from ...flow.sampler import sample
from ...latent_preview import voxel_picture
from ...mesh.frames import z_up_to_y_up
from ...ovoxel.attributes import sample_attributes
from ...preview import Material, render
from ...roles import STRUCTURE_DECODER
from ...sampling import sampler_params
from ...settings import GenerationSettings
from ...stages import decode
from ...vae.structure import active_voxels
from ...values import Mesh, PbrVoxels, Shape, Texture
from .data import Prepared

SHOWN = 3
SIDE = 256


@torch.no_grad()
def draw_sample(family: Family, stage: str, model: nn.Module, data: Prepared, resolution: int, ctx: RunContext) -> Image.Image:
    """The first `SHOWN` objects beside each other, from the same noise every time.

    The stage is sampled; what it builds on comes from the data set, and what would follow is left out.
    """
    count = min(SHOWN, len(data))
    tokens = (data.tokens if stage == "structure" else data.fine_tokens)[:count, 0].float().to(ctx.device)
    sampler = family.samplers[stage]
    params = sampler_params(GenerationSettings(), stage, sampler.params)
    generator = torch.Generator().manual_seed(0)
    common = {"cond": tokens, "neg": torch.zeros_like(tokens), "sigma_min": sampler.sigma_min, "ctx": ctx.part(1.0, 1.0)}
    if stage == "structure":
        noise = torch.randn(data.structure[:count].shape, generator=generator).to(ctx.device)
        z = sample(model, noise, params, **common)
        with family.network(STRUCTURE_DECODER, ctx) as decoder:
            logits = decoder(z)
        on = active_voxels(logits, logits.shape[-1]).cpu()
        return _row([voxel_picture(on[on[:, 0] == i, 1:], logits.shape[-1], SIDE) for i in range(count)])
    rows, coords = data.rows(range(count))
    coords = coords.to(ctx.device)
    known = data.shape[rows].to(ctx.device) if stage == "texture" else None
    noise = torch.randn(data.shape[rows].shape if stage == "shape" else data.texture[rows].shape, generator=generator)
    z = sample(
        lambda x, t, cond: model(x, coords, t, cond, known), noise.to(ctx.device), params,
        sample_rows=coords[:, 0].long(), **common,
    ).cpu()  # fmt: skip
    made = family.shape_norm.undo(z if stage == "shape" else data.shape[rows])
    shape = Shape(coords.cpu(), made, family.scales[resolution].output, count, generator.get_state())
    texture = Texture(family.texture_norm.undo(z)) if stage == "texture" else None
    return _row([draw_model(mesh, voxels) for mesh, voxels in decode(family, shape, texture, ctx=ctx)])


def above_each_other(before: Image.Image, after: Image.Image) -> Image.Image:
    """One picture, `before` on top."""
    sheet = Image.new("RGB", (before.width, before.height + after.height), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after, (0, before.height))
    return sheet


def change_between(before: Image.Image, after: Image.Image) -> float:
    """Mean difference of two pictures where either shows something, as a share of the range from black to white."""
    a, b = (np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in (before, after))
    background = a[0, 0]
    shown = (np.abs(a - background).max(-1) > 0.02) | (np.abs(b - background).max(-1) > 0.02)
    return float(np.abs(a - b)[shown].mean()) if shown.any() else 0.0


def draw_model(mesh: Mesh, voxels: PbrVoxels | None, side: int = SIDE) -> Image.Image:
    """A decoded model with the colours of its voxels, as metallic and rough as they are on the whole; without them, clay."""
    vertices = z_up_to_y_up(mesh.vertices).numpy()
    if voxels is None:
        return Image.fromarray(render(vertices, mesh.faces.numpy(), size=side))
    attrs = sample_attributes(voxels, mesh.vertices).clamp(0, 1)
    material = Material(metallic=attrs[:, 3].mean().item(), roughness=attrs[:, 4].mean().item())
    colours = attrs[:, :3].numpy()
    return Image.fromarray(render(vertices, mesh.faces.numpy(), vertex_colors=colours, material=material, size=side))


def _row(pictures: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (SIDE * len(pictures), SIDE), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (SIDE * number, 0))
    return sheet
