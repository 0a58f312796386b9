"""How much memory a network's forward pass takes beside its weights, from its parameters and its input's size.

The code that will run is run on the meta device, where tensors have sizes and no content, and metered. Of networks with
many layers alike one is run: only one layer's activations live at a time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..context import RunContext
from ..flow.attention import Batch
from ..flow.context import Kept
from ..flow.prepared import prepare
from ..flow.sampler import SamplerParams, flow_schedule, sample
from ..flow.structure import SparseStructureFlowParams
from ..flow.transformer import FlowParams, FlowTransformer
from ..image.dino import DinoV3Encoder, DinoV3Params
from ..kernels import rehearsing
from ..vae.sparse_unet import SparseUnetVaeDecoder, SparseUnetVaeDecoderParams
from ..vae.structure import SparseStructureDecoder, SparseStructureDecoderParams
from ..weights.low_precision import lower
from .meter import PeakMeter
from .rehearsal import rehearse

MOST_CONTEXT = 4101
"""Tokens of the largest picture that a published network looks at."""
GROWTH = 4.2
"""Voxels of a surface per voxel of the next coarser level (measured: 4.0 to 4.3)."""
STEPS = SamplerParams(2, guidance_strength=3.0, guidance_rescale=0.5, step_caching=1)
"""What is run of a sampler: later steps take what the second does."""
TIMES = flow_schedule(12, STEPS.rescale_t)
"""What networks are made ready for; holds the times of STEPS."""
META = torch.device("meta")


@lru_cache(maxsize=256)
@torch.no_grad()
def activation_bytes(
    params: Any,
    rows: int,
    dtype: torch.dtype,
    frugal: bool = False,
    kernels: bool = False,
    *,
    device_type: str = "cuda",
    samples: int = 1,
    context: int = MOST_CONTEXT,
    precision: str | None = None,
    loras: bool = False,
) -> int:
    """Peak bytes of all tensors beside the weights while a network does its part of a run.

    Args:
        params: of a flow transformer, of the image encoder or of a decoder.
        rows: tokens or latent voxels of all samples together; for the image encoder its input pixels.
        dtype: of the torso.
        frugal: see `RunContext`.
        kernels: whether Triton kernels work on the device (see `kernels.works_on`); they need less.
        device_type: CPUs convolve in another way.
        samples: objects at once.
        context: tokens of the picture that each object is made from.
        precision: see `lowbit`; as GPUs without float8 do it.
        loras: whether LoRAs act beside the layers.

    Returns:
        0 for other params.
    """
    ctx = RunContext(META, frugal=frugal)
    with rehearsing(device_type, kernels):
        if isinstance(params, FlowParams):
            model = _one_layer(params, dtype, precision, loras)
            return _flow_bytes(model, rows, ctx, samples, context)
        if isinstance(params, DinoV3Params):
            return _encoder_bytes(params, rows // samples, dtype, samples)
        if isinstance(params, SparseUnetVaeDecoderParams):
            return sparse_decoder_bytes(params, level_rows(params, rows), dtype, frugal, kernels, device_type)
        if isinstance(params, SparseStructureDecoderParams):
            return round(_dense_decoder_bytes(params, dtype) * rows)
    return 0


def level_rows(params: SparseUnetVaeDecoderParams, rows: int) -> list[int]:
    """Expected voxels on every level of a sparse decoder that starts from `rows` latent voxels."""
    return [round(rows * GROWTH**level) for level in range(len(params.model_channels))]


def _one_layer(params: FlowParams, dtype: torch.dtype, precision: str | None, loras: bool) -> FlowTransformer:
    """Of a flow transformer; what depends on the number of layers takes it to have all of them."""
    model = FlowTransformer(replace(params, num_blocks=1), device=META, dtype=dtype)
    if precision:
        lower(model, precision)
    for layer in model.blocks.modules() if loras else ():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(_added_to)
    model.params = params
    return model


def _added_to(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """What a LoRA beside a layer takes."""
    return output + torch.empty_like(output)


def _flow_bytes(model: FlowTransformer, rows: int, ctx: RunContext, samples: int, context: int) -> int:
    """Of guided steps, from the tokens of the picture on, with what is kept from step to step."""
    params = model.params
    each = rows // samples
    cubes = isinstance(params, SparseStructureFlowParams)
    lengths = [each] * samples
    if samples > 1 and not cubes:  # objects differ
        lengths[0], lengths[-1] = each - 1, rows - each * (samples - 1) + 1
    batch = Batch(tuple(lengths))
    known = params.in_channels - params.out_channels
    with PeakMeter() as meter, FusedAttention():
        cond = torch.empty(samples, context, params.cond_channels, device=META)
        voxels = torch.empty(each if cubes else rows, 4, dtype=torch.int32, device=META)
        sample_rows = voxels[:, 0].long()  # noqa: F841 samplers hold it
        positions = voxels[:, 1:] if cubes else batch.fold(voxels[:, 1:])
        beside = torch.empty(rows, known, device=META) if known else None

        def fold(x: Tensor) -> Tensor:
            return batch.fold(x[0] if beside is None else torch.cat((x[0], beside), dim=1))

        ready = prepare(model, model.layout(positions, batch), cond, TIMES, fold, lambda v: v.flatten(0, -2)[None], ctx)
        noise = torch.empty(1, rows, params.out_channels, device=META)
        pair = ready.both
        both = pair and (lambda x, t: pair(x, t.expand(samples)))
        one = lambda x, t, c: ready(x, t.expand(samples), c)  # noqa: E731
        sample(one, noise, STEPS, cond=ready.cond, neg=ready.neg, both=both)
    kept = 2 * samples * context if isinstance(ready.cond, Kept) else 0
    return meter.peak + (params.num_blocks - 1) * (kept + 1) * params.model_channels * model.dtype.itemsize


class FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: nothing is made but the result."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _encoder_bytes(params: DinoV3Params, pixels: int, dtype: torch.dtype, pictures: int) -> int:
    model = DinoV3Encoder(replace(params, num_hidden_layers=1), device=META, dtype=dtype)
    side = isqrt(pixels) // params.patch_size * params.patch_size
    with PeakMeter() as meter, FusedAttention():
        model(torch.empty(pictures, params.num_channels, side, side, device=META)).float()
    return meter.peak


@lru_cache
def _dense_decoder_bytes(params: SparseStructureDecoderParams, dtype: torch.dtype) -> float:
    """Bytes per latent voxel."""
    model, side = SparseStructureDecoder(params, device=META, dtype=dtype), 8
    with PeakMeter() as meter:
        model(torch.empty(1, params.latent_channels, side, side, side, device=META))
    return meter.peak / side**3


def sparse_decoder_bytes(
    params: SparseUnetVaeDecoderParams,
    rows: list[int],
    dtype: torch.dtype,
    frugal: bool = False,
    kernels: bool = False,
    device_type: str = "cuda",
) -> int:
    """As `activation_bytes`, for a sparse decoder with these rows on its levels, coarse to fine.

    One that is led from level to level and one that finds its own way hold the same.
    """
    blocks = tuple(min(1, count) for count in params.num_blocks)
    led = SparseUnetVaeDecoderParams(
        params.model_channels, params.latent_channels, blocks, out_channels=max(7, params.out_channels), pred_subdiv=False,
        up_block_type=params.up_block_type,
    )  # fmt: skip
    return _led_decoder_bytes(led, tuple(rows), dtype, frugal, kernels, device_type)


@lru_cache(maxsize=256)
@torch.no_grad()
def _led_decoder_bytes(
    params: SparseUnetVaeDecoderParams, rows: tuple[int, ...], dtype: torch.dtype, frugal: bool, kernels: bool, device_type: str
) -> int:
    model = SparseUnetVaeDecoder(params, device=META, dtype=dtype)
    with PeakMeter() as meter, rehearsing(device_type, kernels):
        rehearse(model, rows, RunContext(META, frugal=frugal))
    return meter.peak
