"""What `gpu` measures: networks with random weights, analytic structures, and the ways to run them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trellis_core.flow.prepared import prepare_slat, prepare_structure
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.flow.structure import SparseStructureFlowModel, SparseStructureFlowParams
from trellis_core.flow.transformer import FlowParams, FlowTransformer
from trellis_core.sparse.libraries import LIBRARIES
from trellis_core.sparse.resample import merge_plan, split_plan
from trellis_core.sparse.tensor import pack_keys
from trellis_core.vae.sparse_unet import SparseUnetVaeDecoder, SparseUnetVaeDecoderParams

SHAPE = SLatFlowParams(
    resolution=64, in_channels=32, out_channels=32, model_channels=1536, cond_channels=1024, num_blocks=30, num_heads=12,
    mlp_ratio=5.3334, pe_mode="rope", share_mod=True, qk_rms_norm=True, qk_rms_norm_cross=True, dtype="bfloat16",
)  # fmt: skip
THICKNESS = 1.4
"""Of surfaces, in voxels to each side: as of decoded objects, with 14.7 of 27 neighbours (docs/method/decoders.md)."""
DECODER = SparseUnetVaeDecoderParams((1024, 512, 256, 128, 64), 32, (4, 16, 8, 4, 0), True, out_channels=6, pred_subdiv=False)


@dataclass(frozen=True)
class Sizes:
    """Networks and inputs: those of the published family, or small ones to try the benchmark itself."""

    flow: SLatFlowParams
    decoder: SparseUnetVaeDecoderParams
    structure_side: int
    tokens: tuple[int, ...]
    contexts: tuple[int, int]
    grids: tuple[int, ...]
    square: int

    @property
    def decoded(self) -> int:
        """Decoded voxels per latent voxel and axis."""
        return 2 ** (len(self.decoder.num_blocks) - 1)

    @property
    def structure(self) -> SparseStructureFlowParams:
        facts = {**vars(self.flow), "resolution": self.structure_side, "in_channels": 8, "out_channels": 8}
        return SparseStructureFlowParams(**facts)


FULL = Sizes(SHAPE, DECODER, 16, (2200, 9600, 22000, 49152), (1029, 4101), (32, 64, 96), 8192)
TINY = Sizes(
    replace(SHAPE, model_channels=64, cond_channels=32, num_blocks=2, num_heads=2, dtype="float32"),
    replace(DECODER, model_channels=(64, 32, 16), latent_channels=8, num_blocks=(1, 1, 0), use_fp16=False),
    4, (64, 200), (9, 17), (8,), 256,
)  # fmt: skip


@torch.no_grad()
def fill(model: torch.nn.Module, device: torch.device, seed: int = 0) -> Any:
    """A network made on the meta device, on `device` with random weights that keep numbers near 1."""
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) / math.sqrt(3 * fan))
    return model


def flow(sizes: Sizes, device: torch.device) -> SLatFlowModel:
    return fill(SLatFlowModel(sizes.flow, device="meta"), device)


def structure_flow(sizes: Sizes, device: torch.device) -> SparseStructureFlowModel:
    return fill(SparseStructureFlowModel(sizes.structure, device="meta"), device)


def decoder(sizes: Sizes, device: torch.device) -> SparseUnetVaeDecoder:
    return fill(SparseUnetVaeDecoder(sizes.decoder, device="meta"), device)


def surface(side: int, rows: int | None = None) -> Tensor:
    """Voxels int32 [N, 4] that a blend of a torus and a bumpy ball passes through on a grid of side^3, in key order.

    With `rows`, the nearest so many to the surface: latents of real objects have such counts.
    """
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    ball = (x**2 + y**2 + z**2).sqrt() - 0.62 - 0.05 * (9 * x).sin() * (9 * y).sin() * (9 * z).sin()
    ring = (((x**2 + y**2).sqrt() - 0.72) ** 2 + z**2).sqrt() - 0.16
    distance = torch.minimum(ball, ring).abs()
    near = distance < THICKNESS / side
    if rows is not None:
        near = distance <= distance.flatten().kthvalue(min(rows, distance.numel())).values
    return torch.nn.functional.pad(near.nonzero(), (1, 0)).int()


def guides(sizes: Sizes, grid: int) -> tuple[Tensor, list[Tensor]]:
    """Latent voxels on grid^3 and, for each up-stage, logits [N, 8] that lead to `surface` at the full resolution."""
    levels = len(sizes.decoder.num_blocks) - 1
    coords = surface_of_decoded(grid * 2**levels)
    kept = [coords]
    for _ in range(levels):
        coords = merge_plan(coords)[1]
        kept.append(coords)
    start = coords
    logits = []
    for fine in kept[-2::-1]:
        everything = split_plan(coords, torch.ones(len(coords), 8, dtype=torch.bool))
        wanted = torch.isin(pack_keys(everything.coords), pack_keys(fine)).view(-1, 8)
        logits.append(wanted.float() - 0.5)
        coords = split_plan(coords, wanted).coords
    return start, logits


def surface_of_decoded(side: int) -> Tensor:
    """`surface` of a fine grid, found in slabs: the dense cube would not fit."""
    if side <= 256:
        return surface(side)
    coarse = surface(side // 4)[:, 1:].long()
    around = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    cells = torch.unique((coarse[:, None] + around).view(-1, 3).clamp(0, side // 4 - 1), dim=0)
    inner = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    parts = []
    for some in cells.split(1 << 16):
        points = (some[:, None] * 4 + inner).view(-1, 3)
        x, y, z = ((points.float() + 0.5) / side * 2 - 1).unbind(1)
        ball = (x**2 + y**2 + z**2).sqrt() - 0.62 - 0.05 * (9 * x).sin() * (9 * y).sin() * (9 * z).sin()
        ring = (((x**2 + y**2).sqrt() - 0.72) ** 2 + z**2).sqrt() - 0.16
        parts.append(points[torch.minimum(ball, ring).abs() < THICKNESS / side])
    return torch.nn.functional.pad(torch.cat(parts), (1, 0)).int()


def flow_flops(params: FlowParams, tokens: int, context: int, project: bool = True, look: bool = True) -> float:
    """Multiplications and additions of one evaluation (docs/method/decoders.md).

    Args:
        project: whether keys and values of the context are made anew.
        look: whether there is cross-attention at all.
    """
    width, hidden = params.model_channels, int(params.model_channels * params.mlp_ratio)
    linear = tokens * (4 * width**2 + 2 * width * hidden + (2 * width**2 if look else 0))
    attention = 2 * tokens * width * (tokens + (context if look else 0))
    projection = 2 * context * params.cond_channels * width if project and look else 0
    return 2.0 * params.num_blocks * (linear + attention + projection)


@dataclass(frozen=True)
class Evaluations:
    """Ways to evaluate a flow transformer on one input: with the condition, without it, and both."""

    cond: Callable[[], Tensor]
    neg: Callable[[], Tensor]
    both: Callable[[], Any]


def evaluations(model: FlowTransformer, tokens: int, context: int, device: torch.device, prepared: bool) -> Evaluations:
    """`prepared`: with all that stays between steps done once; else as the reference does it, everything at every call."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
    cond = draw(1, context, model.params.cond_channels)
    t = torch.tensor([700.0])
    if isinstance(model, SparseStructureFlowModel):
        side = model.params.resolution
        x = draw(1, model.params.in_channels, side, side, side)
        call = lambda c: model(x, t, c)  # noqa: E731
        ready = prepare_structure(model, cond, [0.7]) if prepared else None
    else:
        coords = surface(math.ceil(math.sqrt(tokens / 2.4)), tokens)[:tokens].to(device)  # as many as surfaces have
        x = draw(len(coords), model.params.in_channels)
        call = lambda c: model(x, coords, t, c)  # noqa: E731
        ready = prepare_slat(model, coords, cond, [0.7]) if prepared else None
    if ready is None:
        nothing = torch.zeros_like(cond)
        return Evaluations(lambda: call(cond), lambda: call(nothing), lambda: (call(cond), call(nothing)))
    one = lambda c: ready(x, t, c)  # noqa: E731
    both = (lambda: ready.both(x, t)) if ready.both else (lambda: (one(ready.cond), one(ready.neg)))
    return Evaluations(lambda: one(ready.cond), lambda: one(ready.neg), both)


def conv_layers(sizes: Sizes) -> list[tuple[int, int, int]]:
    """(level, input channels, output channels) of every kind of convolution in the decoder."""
    width = sizes.decoder.model_channels
    layers = [(level, c, c) for level, c in enumerate(width)]
    return layers[:-1] + [(level, c, 8 * width[level + 1]) for level, c in enumerate(width[:-1])] + layers[-1:]


def peer_conv(name: str, coords: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Any]:
    """The same convolution by a library; raises whatever the library raises if it is not there."""
    module, make = LIBRARIES[name]
    convolve, kept = make(importlib.import_module(module)), {}
    convolve(x, weight, bias, coords, kept)  # finds the neighbours, which are kept
    return lambda: convolve(x, weight, bias, coords, kept)
