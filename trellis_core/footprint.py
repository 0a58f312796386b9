"""How much memory a network's forward pass takes beside its weights, judged from its parameters and its input's size."""

from __future__ import annotations

from typing import Any

from .flow.transformer import FlowParams
from .image.dino import DinoV3Params
from .vae.sparse_unet import SparseUnetVaeDecoderParams
from .vae.structure import SparseStructureDecoderParams

TRANSFORMER = 16
"""Copies of the stream that live at once in a block: its input, q, k, v, the four-fold hidden layer, float32 norms."""
SPARSE_UNET = 12
"""The same for a ConvNeXt block: its input, the float32 norm, the four-fold hidden layer."""
DENSE_UNET = 6
"""The same for a dense residual block."""


def activation_bytes(params: Any, rows: int, itemsize: int) -> int:
    """Peak bytes of activations.

    Args:
        params: of a flow transformer, of the image encoder or of a decoder.
        rows: tokens or latent voxels of all samples together; for the image encoder its input pixels.
        itemsize: bytes per number of the torso.

    Returns:
        An estimate on the safe side; 0 for other params.
    """
    if isinstance(params, FlowParams):
        return rows * params.model_channels * itemsize * TRANSFORMER
    if isinstance(params, DinoV3Params):
        return rows // params.patch_size**2 * params.hidden_size * itemsize * TRANSFORMER
    if isinstance(params, SparseUnetVaeDecoderParams):
        # A surface: each doubling of the grid makes about four voxels of one.
        widest = max(channels * 4**level for level, channels in enumerate(params.model_channels))
        return rows * widest * itemsize * SPARSE_UNET
    if isinstance(params, SparseStructureDecoderParams):
        widest = max(channels * 8**level for level, channels in enumerate(params.channels))
        return rows * widest * itemsize * DENSE_UNET
    return 0
