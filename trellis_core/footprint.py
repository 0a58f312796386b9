"""How much memory a network's forward pass takes beside its weights, from its parameters and its input's size.

Transformers and dense decoders are run on the meta device, where tensors have sizes and no content, and metered; what a
sparse decoder takes follows from the rows of its levels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .flow.attention import Batch
from .flow.context import Both, Kept, Nothing, Tokens
from .flow.prepared import KEPT_BYTES, PAIR_ROWS
from .flow.transformer import FlowParams, FlowTransformer
from .image.dino import DinoV3Params
from .kernels import planning
from .peak import PeakMeter
from .sparse.conv import PATCH_BYTES
from .vae.blocks import CHUNK_BYTES
from .vae.sparse_unet import SparseUnetVaeDecoderParams
from .vae.structure import SparseStructureDecoder, SparseStructureDecoderParams

MOST_CONTEXT = 4101
"""Tokens of the largest picture that a published network looks at."""
IMAGE_COPIES = 16
"""Copies of the stream that live at once in a block of the image encoder: q, k, v, the four-fold hidden layer, float32."""
GROWTH = 4.2
"""Voxels of a surface per voxel of the next coarser level (measured: 4.0 to 4.3)."""
MAP_ROW = 27 * 4 * 3 + 16 + 40
"""Bytes a row of a level: neighbour table, its second form and that one's making, coordinates, the plan that made it."""
ORDER_ROW = 48
"""Bytes a row more where kernels run: putting rows in order."""


def activation_bytes(params: Any, rows: int, dtype: torch.dtype, frugal: bool = False, kernels: bool = False) -> int:
    """Peak bytes of activations.

    Args:
        params: of a flow transformer, of the image encoder or of a decoder.
        rows: tokens or latent voxels of all samples together; for the image encoder its input pixels.
        dtype: of the torso.
        frugal: see `RunContext`.
        kernels: whether Triton kernels work on the device (see `kernels.works_on`); they need less.

    Returns:
        An estimate on the safe side; 0 for other params.
    """
    if isinstance(params, FlowParams):
        return _flow_bytes(params, rows, dtype, frugal, kernels)
    if isinstance(params, DinoV3Params):
        return rows // params.patch_size**2 * params.hidden_size * dtype.itemsize * IMAGE_COPIES
    if isinstance(params, SparseUnetVaeDecoderParams):
        return sparse_decoder_bytes(params, level_rows(params, rows), dtype, frugal, kernels)
    if isinstance(params, SparseStructureDecoderParams):
        return _dense_decoder_bytes(params, dtype) * rows
    return 0


def level_rows(params: SparseUnetVaeDecoderParams, rows: int) -> list[int]:
    """Expected voxels on every level of a sparse decoder that starts from `rows` latent voxels."""
    return [round(rows * GROWTH**level) for level in range(len(params.model_channels))]


def _flow_bytes(params: FlowParams, rows: int, dtype: torch.dtype, frugal: bool, kernels: bool) -> int:
    kept = 2 * MOST_CONTEXT * params.model_channels * dtype.itemsize  # by one layer
    keep = not frugal and kept * params.num_blocks <= KEPT_BYTES
    layer = _layer_bytes(params, rows, dtype, not frugal and rows <= PAIR_ROWS, keep, kernels)
    return layer + (params.num_blocks - 1) * kept if keep else layer


@lru_cache(maxsize=256)
@torch.no_grad()
def _layer_bytes(params: FlowParams, rows: int, dtype: torch.dtype, pair: bool, keep: bool, kernels: bool) -> int:
    """Peak of one layer between the network's two ends; a forward pass holds one layer's activations at a time.

    `pair` is for both guided branches in one batch, `keep` for a context that is projected beforehand.
    """
    model = FlowTransformer(replace(params, num_blocks=1), device="meta", dtype=dtype)
    batch = Batch((rows, rows) if pair else (rows,))
    samples = len(batch.lengths)
    with PeakMeter() as meter, FusedAttention(), planning(kernels):
        context = Tokens(Batch((MOST_CONTEXT,)), torch.zeros(1, MOST_CONTEXT, params.cond_channels, dtype=dtype, device="meta"))
        context = Kept.of(model, context) if keep else context
        context = Both(context, Nothing.of(model)) if pair else context
        layout = model.layout(torch.zeros(rows, 3, dtype=torch.int32, device="meta"), batch)
        mod = model.modulation(torch.zeros(samples, device="meta"))
        model.velocity(torch.zeros(samples, rows, params.in_channels, device="meta"), layout, mod, context)
    return meter.peak


class FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: nothing is made but the result."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@lru_cache
@torch.no_grad()
def _dense_decoder_bytes(params: SparseStructureDecoderParams, dtype: torch.dtype) -> float:
    """Bytes per latent voxel."""
    model, side = SparseStructureDecoder(params, device="meta", dtype=dtype), 8
    with PeakMeter() as meter:
        model(torch.zeros(1, params.latent_channels, side, side, side, device="meta"))
    return meter.peak / side**3


def sparse_decoder_bytes(
    params: SparseUnetVaeDecoderParams, rows: list[int], dtype: torch.dtype, frugal: bool = False, kernels: bool = False
) -> int:
    """Peak of a sparse decoder with these rows on its levels, coarse to fine, working in chunks (see `vae.blocks`).

    Kernels read features as they are; without them a padded copy and matrices of patches are made.
    """
    size, chunk = dtype.itemsize, CHUNK_BYTES[frugal]
    copies = 2 if kernels else 3  # of the level's features: input, output, a padded copy
    map_row = MAP_ROW + (ORDER_ROW if kernels else 0)
    peaks = []
    for level, (count, channels) in enumerate(zip(rows, params.model_channels, strict=True)):
        stream = count * channels * size
        wide = min(chunk, count * channels * 16)
        work = 3 * wide if kernels else 2 * wide + min(PATCH_BYTES, 27 * stream)
        maps = count * map_row
        peaks.append(copies * stream + work + maps)
        if level + 1 < len(rows):
            fine = rows[level + 1] * params.model_channels[level + 1] * size
            maps += rows[level + 1] * map_row
            peaks.append(max(copies * stream + fine, stream + copies * fine) + work + maps)
    return max(peaks)
