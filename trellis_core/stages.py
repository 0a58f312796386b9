"""The six calls from a picture to an asset, each from values to values (docs/method/sampling.md).

    condition -> sample_structure -> sample_shape -> sample_texture -> decode -> make_asset

Noise is float32, drawn on the CPU from one stream for each object (see `noise`); its state travels with the values, so a
stage's result depends on its inputs alone. Objects of a batch go through a network one after another: each comes out as it
would alone, to the bit, and takes no more memory. Every stage reads one network at a time and lets go of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .context import QUIET, RunContext
from .errors import EmptyResultError, InputError
from .family import Family, Route
from .flow.attention import use_attention
from .flow.prepared import prepare_structure
from .flow.sampler import flow_schedule
from .image.dino import image_to_pixels
from .image.preprocess import Matte, preprocess, subject_of
from .memory.plan import recovering
from .noise import item_seed, state_of, streams, streams_at
from .ovoxel.dual_grid import dual_grid_to_mesh
from .preflight import check_run
from .roles import IMAGE_ROLE, SHAPE_DECODER, STRUCTURE_DECODER, STRUCTURE_FLOW, TEXTURE_DECODER
from .sampling import LOADED, Estimate, LatentSampling, Watch, denoise, made_with, numbered, rows_of, sampler_params, tokens_of
from .settings import LORA_FIELDS, GenerationSettings, resolve_seed
from .sparse.libraries import use_convolution
from .sparse.resample import quantize_coords
from .vae.sparse_unet import dual_grid_heads
from .vae.structure import active_voxels
from .values import Condition, Mesh, PbrVoxels, Shape, Structure, Texture

if TYPE_CHECKING:
    from .asset.asset import Asset
    from .projection.project import View

STRUCTURE_SCALE = 512
"""The structure is always sampled with the tokens of this scale."""


@torch.no_grad()
def condition(
    family: Family,
    pictures: Image.Image | Sequence[Image.Image],
    settings: GenerationSettings | None = None,
    *,
    matte: Matte | None = None,
    cropped: bool = False,
    ctx: RunContext = QUIET,
) -> Condition:
    """Look at the pictures: crop each to its subject, and make the tokens that guide all sampling.

    Args:
        settings: make only the tokens that its resolution needs; None for all that the family knows.
        matte: finds the subject of pictures that are not cut out (see `image.matting`).
        cropped: the pictures are square on black already, as `image.preprocess` makes them.

    Raises:
        InputError: a picture shows no subject, or the family cannot make the resolution.
    """
    pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not pictures:
        raise InputError("No picture was given.")
    squares = [p.convert("RGB") if cropped else preprocess(p, matte) for p in pictures]
    scales = [key for key in family.scales if key <= 1024]
    if settings is not None:
        route = family.route(settings.resolution, settings.cascade)
        scales = sorted({STRUCTURE_SCALE, route.start, route.model})
    by_size: dict[int, Tensor] = {}
    pixels_seen = max(family.scales[key].image_size for key in scales) ** 2
    with family.network(IMAGE_ROLE, ctx.part(0.0, 0.5), pixels_seen) as encoder:
        for key in scales:
            size = family.scales[key].image_size
            if size not in by_size:
                ctx.report(0.5 + 0.25 * len(by_size))
                by_size[size] = torch.cat([_encoded(encoder, image_to_pixels(square, size), ctx) for square in squares])
    ctx.report(1.0)
    tokens = {key: by_size[family.scales[key].image_size] for key in scales}
    return Condition(tokens, tuple(torch.from_numpy(np.array(square)) for square in squares))


def _encoded(encoder: torch.nn.Module, pixels: Tensor, ctx: RunContext) -> Tensor:
    """Tokens [1, L, C] of one picture [3, S, S]."""
    return recovering(ctx, lambda c: encoder(pixels[None].to(c.device)).float().cpu())


@torch.no_grad()
def sample_structure(
    family: Family,
    condition: Condition,
    settings: GenerationSettings,
    seed: int | None = None,
    *,
    samples: int = 1,
    watch: Watch | None = None,
    ctx: RunContext = QUIET,
) -> Structure:
    """Find the rough form: which voxels of the latent grid the object fills.

    Args:
        seed: None takes the settings' seed, or a random one if they have none.
        samples: objects to make of one picture. With several pictures one object is made of each.
        watch: is shown how the structure comes about.

    Raises:
        EmptyResultError: an object has no voxel.
    """
    route = family.route(settings.resolution, settings.cascade)
    tokens = tokens_of(condition, STRUCTURE_SCALE)
    samples = len(tokens) if len(tokens) > 1 else samples
    seed = resolve_seed(settings.seed if seed is None else seed)
    noise = streams(seed, samples)
    sampler = family.samplers["structure"]
    params = sampler_params(settings, "structure", sampler.params)
    side = family.networks[STRUCTURE_FLOW].args["resolution"]
    on_step = watch and (lambda i, x, x0: watch(Estimate("structure", i + 1, params.steps, x0)))
    with family.network(STRUCTURE_FLOW, ctx.part(0.0, LOADED), side**3) as flow, use_attention(ctx.attention):

        def walk(ctx: RunContext, index: int) -> Tensor:
            cond = tokens[index % len(tokens)][None].to(ctx.device)
            start = torch.randn(1, flow.params.in_channels, side, side, side, generator=noise[index])
            times = flow_schedule(params.steps, params.rescale_t)
            return recovering(
                ctx, lambda c: denoise(prepare_structure(flow, cond, times, c), start, params, sampler.sigma_min, c, on_step)
            )

        latents = [walk(part, index) for index, part in enumerate(ctx.part(LOADED, 0.9).split(samples))]
    grid = family.scales[route.start].structure_grid
    with family.network(STRUCTURE_DECODER, ctx.part(0.9, 0.95), side**3) as decoder:
        found = [recovering(ctx, lambda _: active_voxels(decoder(z), grid)).cpu() for z in latents]  # noqa: B023
    coords = numbered(found)
    _refuse_empty(coords, samples, "The structure")
    ctx.report(1.0)
    return Structure(coords, grid, samples, state_of(noise), made_with(family, settings, "structure") | {"seed": seed})


@torch.no_grad()
def sample_shape(
    family: Family,
    condition: Condition,
    structure: Structure,
    settings: GenerationSettings,
    *,
    watch: Watch | None = None,
    ctx: RunContext = QUIET,
) -> Shape:
    """Form the surface on the structure; for a cascade coarsely first, then again on the finer voxels that this found.

    Raises:
        InputError: structure or condition were made for another resolution.
    """
    route = family.route(settings.resolution, settings.cascade)
    expected = family.scales[route.start].structure_grid
    if structure.grid != expected:
        raise InputError(
            f"The structure was sampled on a grid of {structure.grid}, resolution {settings.resolution} starts from one "
            f"of {expected}: sample the structure again with these settings."
        )
    noise = streams_at(structure.rng, structure.samples)
    coords, resolution, start = structure.coords, family.scales[route.target].output, 0.0
    seen = LatentSampling(family, condition, settings, "shape", noise, watch)
    if route.low:
        start = 0.3
        low = seen.sample(route.low, coords, expected, ctx.part(0, 0.2))
        fine = _upsample(family, family.shape_norm.undo(low), coords, ctx.part(0.2, start))
        coords, resolution = refine_coords(fine, family, route.low, route.model, resolution, settings.max_num_tokens)
        _refuse_empty(coords, structure.samples, "The shape")
    feats = seen.sample(route.model, coords, resolution // family.upscale, ctx.part(start, 1.0))
    feats = family.shape_norm.undo(feats)
    used = {**structure.made_with, **made_with(family, settings, "shape", route.model)}
    used |= {name: getattr(settings, name) for name in ("resolution", "cascade", "max_num_tokens")}
    return Shape(coords, feats, resolution, structure.samples, state_of(noise), used)


def refine_coords(
    fine: Tensor, family: Family, low: int, model: int, resolution: int, max_num_tokens: int
) -> tuple[Tensor, int]:
    """Latent voxels of the refined shape, and the resolution they decode to (docs/method/sampling.md, step 4).

    Args:
        fine: int32 [M, 4] voxels of the decoded `low` scale.
        resolution: wanted output; lowered step by step, never below that of the scale `model`, until every object has fewer
            than `max_num_tokens` latent voxels.

    Returns:
        int32 [N, 4] lexicographic, and the resolution, which all objects of a batch share.
    """
    grid = family.scales[low].output
    floor, step = family.scales[model].output, grid // 4
    while True:
        coords = quantize_coords(fine, grid, resolution // family.upscale)
        if int(coords[:, 0].bincount().max()) < max_num_tokens or resolution <= floor:
            return coords, resolution
        resolution = max(resolution - step, floor)


@torch.no_grad()
def sample_texture(
    family: Family,
    condition: Condition,
    shape: Shape,
    settings: GenerationSettings,
    *,
    watch: Watch | None = None,
    ctx: RunContext = QUIET,
) -> Texture:
    """Paint the shape: a latent of colour and material on the shape's voxels."""
    scale = texture_route(family, shape).model
    noise = streams_at(shape.rng, shape.samples)
    known = family.shape_norm.apply(shape.feats)
    seen = LatentSampling(family, condition, settings, "texture", noise, watch)
    feats = seen.sample(scale, shape.coords, shape.resolution // family.upscale, ctx, known)
    return Texture(family.texture_norm.undo(feats), made_with(family, settings, "texture", scale))


def texture_route(family: Family, shape: Shape) -> Route:
    """How the texture of a shape is made: with the network of the scale that the shape was made at."""
    scale = 512 if shape.resolution <= family.scales[512].output else 1024
    return Route(None, scale, scale)


@overload
def decode(family: Family, shape: Shape, texture: Texture, *, ctx: RunContext = ...) -> list[tuple[Mesh, PbrVoxels]]: ...
@overload
def decode(family: Family, shape: Shape, texture: None, *, ctx: RunContext = ...) -> list[tuple[Mesh, None]]: ...
@torch.no_grad()
def decode(
    family: Family, shape: Shape, texture: Texture | None, *, ctx: RunContext = QUIET
) -> list[tuple[Mesh, PbrVoxels]] | list[tuple[Mesh, None]]:
    """Turn latents into triangles and a sparse volume of PBR attributes, one pair per sample.

    Without a texture there are triangles only.

    Raises:
        EmptyResultError: a sample has no surface.
    """
    items = [rows_of(shape.coords, index) for index in range(shape.samples)]
    most = max(len(coords) for coords, _ in items)
    surfaces, guides, attrs = [], [], []
    with use_convolution(ctx.convolution), family.network(SHAPE_DECODER, ctx.part(0.0, 0.1), most) as decoder:
        for (coords, rows), part in zip(items, ctx.part(0.1, 0.45).split(shape.samples), strict=True):
            latent = shape.feats[rows].to(ctx.device), coords.to(ctx.device)
            decoding = recovering(part, lambda c: decoder(*latent, ctx=c))  # noqa: B023
            found = decoding.coords[:, 1:].contiguous(), *dual_grid_heads(decoding.raw, decoder.params.voxel_margin)
            surfaces.append([tensor.cpu() for tensor in found])
            guides.append(decoding.subdivisions)
            del decoding  # on the device the rest of it would lie beside the painting
    if texture is not None:
        with use_convolution(ctx.convolution), family.network(TEXTURE_DECODER, ctx.part(0.45, 0.55), most) as decoder:
            parts = ctx.part(0.55, 0.9).split(shape.samples)
            for (coords, rows), guide, part in zip(items, guides, parts, strict=True):
                latent = texture.feats[rows].to(ctx.device), coords.to(ctx.device), guide
                raw, _ = recovering(part, lambda c: decoder(*latent, ctx=c))  # noqa: B023
                attrs.append(0.5 * raw.float().cpu() + 0.5)
    pairs = []
    for index, (voxels, vertices, intersected, weights) in enumerate(surfaces):
        ctx.report(0.9 + 0.1 * index / shape.samples)
        used = _of_item(shape.made_with, index)
        mesh = dual_grid_to_mesh(voxels, vertices, intersected, weights, shape.resolution)
        mesh = replace(mesh, made_with=used)
        if not len(mesh.faces):
            raise EmptyResultError(f"{_which(index, shape.samples, 'The shape')} has no surface. Try another seed.")
        painted = texture and PbrVoxels(voxels, attrs[index], shape.resolution, {**used, **texture.made_with})
        pairs.append((mesh, painted))
    ctx.report(1.0)
    return pairs


def _of_item(used: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What object `index` of a batch was made with: the seed is the one that makes it alone."""
    return {**used, "seed": item_seed(used["seed"], index)} if "seed" in used else dict(used)


def make_asset(
    family: Family,
    shape: Shape,
    texture: Texture,
    settings: GenerationSettings,
    *,
    index: int = 0,
    ctx: RunContext = QUIET,
) -> Asset:
    """Decode sample `index` and make it a finished, textured asset."""
    from .asset.asset import make_asset as finish

    if not 0 <= index < shape.samples:
        raise InputError(f"There are {shape.samples} samples, numbered from 0; there is no sample {index}.")
    coords, rows = rows_of(shape.coords, index)
    alone = Shape(coords, shape.feats[rows], shape.resolution, 1, shape.rng, _of_item(shape.made_with, index))
    painted = Texture(texture.feats[rows], texture.made_with)
    ((mesh, voxels),) = decode(family, alone, painted, ctx=ctx.part(0.0, 0.4, "decode"))
    return finish(mesh, voxels, settings, ctx=ctx.part(0.4, 1.0))


def generate(
    family: Family,
    picture: Image.Image,
    settings: GenerationSettings,
    *,
    matte: Matte | None = None,
    cropped: bool = False,
    watch: Watch | None = None,
    ctx: RunContext = QUIET,
) -> Asset:
    """`generate_all` for one model of one picture."""
    return generate_all(family, picture, settings, matte=matte, cropped=cropped, watch=watch, ctx=ctx)[0]


@torch.no_grad()
def generate_all(
    family: Family,
    pictures: Image.Image | Sequence[Image.Image],
    settings: GenerationSettings,
    seed: int | None = None,
    *,
    samples: int = 1,
    matte: Matte | None = None,
    cropped: bool = False,
    on_condition: Callable[[Condition], None] | None = None,
    on_voxels: Callable[[PbrVoxels], None] | None = None,
    watch: Watch | None = None,
    ctx: RunContext = QUIET,
) -> list[Asset]:
    """All stages: pictures to finished assets. Command line, graph and service run this, and nothing beside it.

    What can be known beforehand is checked before a picture is looked at or a network read (see `preflight.check_run`).
    LoRAs that the settings name are put on the family, unless it has LoRAs already (see `lora.stack.place`).

    Args:
        seed: as for `sample_structure`.
        samples: likewise.
        matte: as for `condition`.
        cropped: likewise.
        on_condition: is shown what the networks see, as soon as it is known.
        on_voxels: is shown each object's colours before they are baked.
        watch: is shown how structure and shape come about.

    Returns:
        One asset for each picture, or `samples` assets of a single one.
    """
    pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    settings, ctx = check_run(family, settings, ctx)
    if not family.loras and any(getattr(settings, name) for name in LORA_FIELDS):
        from .lora.source import loras_of
        from .lora.stack import place

        route = family.route(settings.resolution, settings.cascade)
        family, _ = place(family, loras_of(settings, ctx=ctx.part(0.0, 0.0)), route)
    seen = condition(family, pictures, settings, matte=matte, cropped=cropped, ctx=ctx.part(0.0, 0.08, "condition"))
    if on_condition is not None:
        on_condition(seen)
    structure_ctx, shape_ctx = ctx.part(0.08, 0.25, "structure"), ctx.part(0.25, 0.5, "shape")
    structure = sample_structure(family, seen, settings, seed, samples=samples, watch=watch, ctx=structure_ctx)
    shape = sample_shape(family, seen, structure, settings, watch=watch, ctx=shape_ctx)
    texture = sample_texture(family, seen, shape, settings, watch=watch, ctx=ctx.part(0.5, 0.6, "texture"))
    pairs = decode(family, shape, texture, ctx=ctx.part(0.6, 0.75, "decode"))
    views = [_view(p, matte) for p in pictures] if settings.picture_detail and not cropped else []
    return _finished(pairs, views, settings, on_voxels, ctx.part(0.75, 1.0))


def _view(picture: Image.Image, matte: Matte | None) -> View:
    """A picture as it is projected."""
    from .projection.project import View

    return View(np.asarray(subject_of(picture, matte), np.float32) / 255)


def _finished(
    pairs: Sequence[tuple[Mesh, PbrVoxels]],
    views: Sequence[View],
    settings: GenerationSettings,
    on_voxels: Callable[[PbrVoxels], None] | None,
    ctx: RunContext,
) -> list[Asset]:
    """One asset for each pair; `views` are their pictures, one for all or one for each."""
    from .asset.asset import make_asset as finish

    assets = []
    for index, ((mesh, voxels), part) in enumerate(zip(pairs, ctx.split(len(pairs)), strict=True)):
        if on_voxels is not None:
            on_voxels(voxels)
        shown = views[index % len(views) :][:1] if views else ()
        assets.append(finish(mesh, voxels, settings, pictures=shown, ctx=part))
    return assets


def _upsample(family: Family, feats: Tensor, coords: Tensor, ctx: RunContext) -> Tensor:
    items = [rows_of(coords, index) for index in range(int(coords[-1, 0]) + 1)]
    most = max(len(one) for one, _ in items)
    fine = []
    with use_convolution(ctx.convolution), family.network(SHAPE_DECODER, ctx.part(0.0, 0.3), most) as decoder:
        levels = len(decoder.params.num_blocks) - 1
        for (one, rows), part in zip(items, ctx.part(0.3, 1.0).split(len(items)), strict=True):
            latent = feats[rows].to(ctx.device), one.to(ctx.device)
            fine.append(recovering(part, lambda c: decoder.upsample(*latent, levels, ctx=c)).cpu())  # noqa: B023
    return numbered(fine)


def _refuse_empty(coords: Tensor, samples: int, what: str) -> None:
    counts = torch.bincount(coords[:, 0].long(), minlength=samples)
    for index in (counts == 0).nonzero().flatten().tolist():
        raise EmptyResultError(
            f"{_which(index, samples, what)} came out empty: not one voxel is filled. Try another seed, or a picture in "
            "which the subject is larger and clearer."
        )


def _which(index: int, samples: int, what: str) -> str:
    return what if samples == 1 else f"{what} of object {index + 1} of {samples}"
