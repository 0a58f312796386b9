"""Networks without a pipeline.json: which are in a file, and what role they have.

ComfyUI's repackaging has several networks in one file and no configs (docs/method/networks.md): these are read off the
tensor shapes.
GGUF packs may have one network a file, with its config inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError
from ..roles import IMAGE_ROLE, SHAPE_DECODER, STRUCTURE_DECODER, STRUCTURE_FLOW, TEXTURE_DECODER, flow_role
from . import official as published
from .encoder_names import is_timm
from .header import DTYPES, Stored, read_header
from .network_file import NetworkFile, encoder_of_shapes, gguf_network
from .quantised import CODES, COMPANION

Header = Mapping[str, Stored]

STRUCTURE_LATENT_SIDE = 16
"""Side of the structure flow's latent cube: the one number of a config that no tensor's shape tells."""


def find_networks(file: Path) -> dict[str, NetworkFile]:
    """The networks of a file by their role in a pipeline; empty if it holds none.

    Raises:
        WeightsError: it is the Pixal3D derivative, quantised in a way that is not known, or damaged.
    """
    header = read_header(file)
    if any(".cross_attn.proj_linear." in key for key in header):
        raise WeightsError(
            f"{file} is Pixal3D, a model derived from TRELLIS.2 with other layers. This program runs TRELLIS.2 itself: "
            "use the TRELLIS.2 weights."
        )
    if file.suffix == ".gguf" and (network := gguf_network(file)):
        role = role_of(network)
        return {role: network} if role else {}
    found = {}
    for role, (prefixes, name, signature, read_args) in LAYOUT.items():
        for prefix in prefixes:
            if prefix + signature in header:
                part = {k.removeprefix(prefix): v for k, v in header.items() if k.startswith(prefix)}
                found[role] = NetworkFile(name, _read(read_args, part, file), file, prefix)
    if "embeddings.patch_embeddings.weight" in header or is_timm(header):
        found[IMAGE_ROLE] = encoder_of_shapes(file)
    return found


def role_of(network: NetworkFile) -> str | None:
    """The role that a network's config tells; None for those that no pipeline has."""
    params: Any = network.build().params
    if network.name == "SLatFlowModel":
        scale = next((key for key, scale in published.SCALES.items() if scale.structure_grid == params.resolution), None)
        stage = "shape" if params.in_channels == params.out_channels else "texture"
        return flow_role(stage, int(scale)) if scale else None
    return {
        "SparseStructureFlowModel": STRUCTURE_FLOW, "SparseStructureDecoder": STRUCTURE_DECODER,
        "FlexiDualGridVaeDecoder": SHAPE_DECODER, "SparseUnetVaeDecoder": TEXTURE_DECODER,
    }.get(network.name)  # fmt: skip


def _read(read_args: Callable[[Header], dict[str, Any]], part: Header, file: Path) -> dict[str, Any]:
    if odd := sorted({tensor.dtype for key, tensor in part.items() if not COMPANION.fullmatch(key)} - {*DTYPES, *CODES}):
        raise WeightsError(f"{file} is quantised ({', '.join(odd)}), which this program does not read: use the bf16 file.")
    try:
        return read_args(part)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"{file} lacks a tensor that says how large its networks are: {error}.") from error


def _flow_args(part: Header) -> dict[str, Any]:
    width, in_channels = part["input_layer.weight"].shape
    hidden = part["blocks.0.mlp.mlp.0.weight"]
    gamma = part.get("blocks.0.self_attn.q_rms_norm.gamma")
    return {
        "resolution": STRUCTURE_LATENT_SIDE,
        "in_channels": in_channels,
        "out_channels": part["out_layer.weight"].shape[0],
        "model_channels": width,
        "cond_channels": part["blocks.0.cross_attn.to_kv.weight"].shape[1],
        "num_blocks": len(_numbers(part, r"blocks\.(\d+)\.norm2\.weight")),
        "num_heads": gamma.shape[0] if gamma else None,
        "pe_mode": "rope",
        "mlp_ratio": (hidden.shape[0] + 0.5) / width,  # truncated on use; the half keeps rounding from losing one
        "share_mod": "blocks.0.modulation" in part,
        "qk_rms_norm": gamma is not None,
        "qk_rms_norm_cross": "blocks.0.cross_attn.q_rms_norm.gamma" in part,
        "dtype": str(DTYPES.get(hidden.dtype, torch.bfloat16)).removeprefix("torch."),
    }


def _sparse_decoder_args(part: Header) -> dict[str, Any]:
    first, latent = part["from_latent.weight"].shape
    ups = _numbers(part, r"blocks\.(\d+)\.(\d+)\.conv2\.weight")
    convs = _numbers(part, r"blocks\.(\d+)\.(\d+)\.conv\.weight")
    return {
        "latent_channels": latent,
        "out_channels": part["output_layer.weight"].shape[0],
        "model_channels": [first, *(part[f"blocks.{level}.{k}.conv2.weight"].shape[0] for level, k in ups)],
        "num_blocks": [sum(1 for at, _ in convs if at == level) for level in range(len(ups) + 1)],
        "up_block_type": ["SparseResBlockC2S3d"] * len(ups),
        "pred_subdiv": any(".to_subdiv." in key for key in part),
        "use_fp16": part["from_latent.weight"].dtype != "F32",
    }


def _structure_decoder_args(part: Header) -> dict[str, Any]:
    first, latent = part["input_layer.weight"].shape[:2]
    ups = _numbers(part, r"blocks\.(\d+)\.conv\.weight")
    residuals = _numbers(part, r"blocks\.(\d+)\.conv1\.weight")
    return {
        "latent_channels": latent,
        "out_channels": part["out_layer.2.weight"].shape[0],
        "channels": [first, *(part[f"blocks.{up}.conv.weight"].shape[0] // 8 for (up,) in ups)],
        "num_res_blocks": len(residuals) // (len(ups) + 1),
        "num_res_blocks_middle": len(_numbers(part, r"middle_block\.(\d+)\.conv1\.weight")),
        "use_fp16": part["middle_block.0.conv1.weight"].dtype != "F32",
    }


def _numbers(part: Header, pattern: str) -> list[tuple[int, ...]]:
    """The numbers in every key that matches, sorted."""
    matches = (re.fullmatch(pattern, key) for key in part)
    return sorted(tuple(map(int, match.groups())) for match in matches if match)


_FLOW = "t_embedder.mlp.0.weight"

LAYOUT: dict[str, tuple[tuple[str, ...], str, str, Callable[[Header], dict[str, Any]]]] = {
    STRUCTURE_FLOW: (
        ("model.structure_model.", "structure_model."), "SparseStructureFlowModel", _FLOW, _flow_args,
    ),
    flow_role("shape", 512): (("model.img2shape_512.", "img2shape_512."), "SLatFlowModel", _FLOW, _flow_args),
    flow_role("shape", 1024): (("model.img2shape.", "img2shape."), "SLatFlowModel", _FLOW, _flow_args),
    flow_role("texture", 1024): (("model.shape2txt.", "shape2txt."), "SLatFlowModel", _FLOW, _flow_args),
    STRUCTURE_DECODER: (
        ("struct_dec.",), "SparseStructureDecoder", "middle_block.0.conv1.weight", _structure_decoder_args,
    ),
    SHAPE_DECODER: (
        ("shape_dec.",), "FlexiDualGridVaeDecoder", "from_latent.weight", _sparse_decoder_args,
    ),
    TEXTURE_DECODER: (("txt_dec.",), "SparseUnetVaeDecoder", "from_latent.weight", _sparse_decoder_args),
}  # fmt: skip
"""Role in a pipeline -> (prefixes it may have, class, a key that tells it, how its config is read off the shapes)."""
