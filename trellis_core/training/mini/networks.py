"""The mini family's networks: their sizes, and how to make them (16 MB of fp16 in all, encoders included)."""

from __future__ import annotations

import torch
from torch import nn

from ...flow.slat import SLatFlowModel, SLatFlowParams
from ...flow.structure import SparseStructureFlowModel, SparseStructureFlowParams
from ...image.dino import DinoV3Encoder, DinoV3Params
from ...vae.sparse_unet import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeDecoderParams,
    FlexiDualGridVaeEncoder,
    FlexiDualGridVaeEncoderParams,
    SparseUnetVaeDecoder,
    SparseUnetVaeDecoderParams,
    SparseUnetVaeEncoder,
    SparseUnetVaeEncoderParams,
)
from ...vae.structure import (
    SparseStructureDecoder,
    SparseStructureDecoderParams,
    SparseStructureEncoder,
    SparseStructureEncoderParams,
)

LATENT = 16
"""Channels of the shape and of the texture latent."""
STRUCTURE_LATENT = 64
TOKEN_WIDTH = 160
IMAGE_SIZE = 128
RESOLUTIONS = {
    "512": {"image_size": IMAGE_SIZE, "structure_grid": 16, "output": 64},
    "1024": {"image_size": IMAGE_SIZE, "structure_grid": 32, "output": 128},
}

DINO_CONFIG = {
    "architectures": ["DINOv3ViTModel"],
    "model_type": "dinov3_vit",
    "hidden_size": TOKEN_WIDTH,
    "intermediate_size": 3 * TOKEN_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "patch_size": 8,
    "image_size": IMAGE_SIZE,
    "num_channels": 3,
    "num_register_tokens": 8,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "hidden_act": "gelu",
    "layerscale_value": 1.0,
}


def _flow(resolution: int, in_channels: int, out_channels: int, width: int, blocks: int) -> dict:
    return {
        "resolution": resolution, "in_channels": in_channels, "out_channels": out_channels,
        "model_channels": width, "cond_channels": TOKEN_WIDTH, "num_blocks": blocks, "num_heads": width // 32, "mlp_ratio": 3,
        "pe_mode": "ape", "share_mod": True, "initialization": "scaled", "qk_rms_norm": True, "qk_rms_norm_cross": True,
    }  # fmt: skip


def _unet(channels: list[int], *, encoder: bool, **more) -> dict:
    levels = len(channels)
    stage = (
        {"down_block_type": ["SparseResBlockS2C3d"] * (levels - 1)}
        if encoder
        else {"up_block_type": ["SparseResBlockC2S3d"] * (levels - 1)}
    )
    return {
        "model_channels": channels, "latent_channels": LATENT, "num_blocks": [1] * levels,
        "block_type": ["SparseConvNeXtBlock3d"] * levels, **stage, "block_args": [{}] * levels, "use_fp16": False, **more,
    }  # fmt: skip


_STRUCTURE = {"latent_channels": STRUCTURE_LATENT, "num_res_blocks": 0, "num_res_blocks_middle": 0, "use_fp16": False}

CONFIGS = {
    "ss_enc": ("SparseStructureEncoder", {"in_channels": 1, "channels": [8, 32, 128], **_STRUCTURE}),
    "ss_dec": ("SparseStructureDecoder", {"out_channels": 1, "channels": [64, 32, 8], **_STRUCTURE}),
    "ss_flow": ("SparseStructureFlowModel", _flow(4, STRUCTURE_LATENT, STRUCTURE_LATENT, 192, 5)),
    "shape_enc": ("FlexiDualGridVaeEncoder", _unet([32, 32, 64], encoder=True)),
    "shape_dec": ("FlexiDualGridVaeDecoder", _unet([64, 32, 32], encoder=False, resolution=64, voxel_margin=0.5)),
    "shape_flow": ("SLatFlowModel", _flow(16, LATENT, LATENT, 128, 4)),
    "tex_enc": ("SparseUnetVaeEncoder", _unet([32, 32, 32], encoder=True, in_channels=6)),
    "tex_dec": ("SparseUnetVaeDecoder", _unet([64, 32, 32], encoder=False, out_channels=6, pred_subdiv=False)),
    "tex_flow": ("SLatFlowModel", _flow(16, 2 * LATENT, LATENT, 128, 4)),
}
"""Class name and arguments of every network, as its JSON file will say."""

_CLASSES = {
    "SparseStructureEncoder": (SparseStructureEncoder, SparseStructureEncoderParams),
    "SparseStructureDecoder": (SparseStructureDecoder, SparseStructureDecoderParams),
    "SparseStructureFlowModel": (SparseStructureFlowModel, SparseStructureFlowParams),
    "FlexiDualGridVaeEncoder": (FlexiDualGridVaeEncoder, FlexiDualGridVaeEncoderParams),
    "FlexiDualGridVaeDecoder": (FlexiDualGridVaeDecoder, FlexiDualGridVaeDecoderParams),
    "SparseUnetVaeEncoder": (SparseUnetVaeEncoder, SparseUnetVaeEncoderParams),
    "SparseUnetVaeDecoder": (SparseUnetVaeDecoder, SparseUnetVaeDecoderParams),
    "SLatFlowModel": (SLatFlowModel, SLatFlowParams),
}


def make_network(key: str, seed: int = 0) -> nn.Module:
    """A freshly initialised network of CONFIGS."""
    torch.manual_seed(seed)
    name, args = CONFIGS[key]
    network, params = _CLASSES[name]
    return network(params.from_args(args))


def make_image_encoder(seed: int = 0) -> DinoV3Encoder:
    """A freshly initialised image encoder."""
    torch.manual_seed(seed)
    return DinoV3Encoder(DinoV3Params.from_args(DINO_CONFIG))
