"""A complete family with random weights, small enough to run every stage in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from trellis_core.weights.network_file import IMAGE_ENCODER, NetworkFile

LATENT, CONDITION = 4, 16
FLOW = {
    "model_channels": 24, "cond_channels": CONDITION, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2.0,
    "pe_mode": "rope", "share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True,
}  # fmt: skip
SPARSE = {"latent_channels": LATENT, "model_channels": [16, 8, 8], "num_blocks": [1, 0, 0], "use_fp16": True}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparse_structure_flow_model": (
        "SparseStructureFlowModel", {**FLOW, "resolution": 4, "in_channels": LATENT, "out_channels": LATENT},
    ),
    "sparse_structure_decoder": (
        "SparseStructureDecoder",
        {"out_channels": 1, "latent_channels": LATENT, "num_res_blocks": 1, "num_res_blocks_middle": 1, "channels": [8, 4]},
    ),
    "shape_slat_decoder": ("FlexiDualGridVaeDecoder", {**SPARSE, "out_channels": 7, "pred_subdiv": True}),
    "tex_slat_decoder": ("SparseUnetVaeDecoder", {**SPARSE, "out_channels": 6, "pred_subdiv": False}),
    **{
        f"shape_slat_flow_model_{key}": (
            "ElasticSLatFlowModel", {**FLOW, "resolution": 4, "in_channels": LATENT, "out_channels": LATENT},
        )
        for key in (512, 1024)
    },
    **{
        f"tex_slat_flow_model_{key}": (
            "SLatFlowModel", {**FLOW, "resolution": 4, "in_channels": 2 * LATENT, "out_channels": LATENT},
        )
        for key in (512, 1024)
    },
}  # fmt: skip
ENCODER = {
    "hidden_size": CONDITION, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8,
}  # fmt: skip
RESOLUTIONS = {
    "512": {"image_size": 32, "structure_grid": 4, "output": 16},
    "1024": {"image_size": 32, "structure_grid": 8, "output": 32},
    "1536": {"image_size": 32, "structure_grid": 12, "output": 48},
}


def random_tensors(name: str, args: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random fp16 weights for a class with these args, no parameter left at its starting value."""
    generator = torch.Generator().manual_seed(seed)
    blanks = NetworkFile("SLatFlowModel" if name.startswith("Elastic") else name, args, Path("x")).build().state_dict()
    return {k: (torch.randn(v.shape, generator=generator) * 0.3).half() for k, v in blanks.items()}


def make_family(root: Path, **config_changes: dict[str, Any]) -> Path:
    """Write a family in the published layout; keyword arguments change the args of the role they name."""
    (root / "ckpts").mkdir(parents=True)
    models = {}
    for seed, (role, (name, args)) in enumerate(CONFIGS.items()):
        args = {**args, **config_changes.get(role, {})}
        models[role] = f"ckpts/{role}"
        (root / "ckpts" / f"{role}.json").write_text(json.dumps({"name": name, "args": args}))
        save_file(random_tensors(name, args, seed), root / "ckpts" / f"{role}.safetensors")
    (root / "dino").mkdir()
    (root / "dino" / "config.json").write_text(json.dumps(ENCODER))
    save_file(random_tensors(IMAGE_ENCODER, ENCODER, 99), root / "dino" / "model.safetensors")
    norm = {"mean": [0.1, -0.2, 0.3, 0.0], "std": [1.5, 0.5, 2.0, 1.0]}
    args = {
        "models": models,
        "image_cond_model": {"name": "DinoV3FeatureExtractor", "args": {"model_name": "dino"}},
        "shape_slat_normalization": norm,
        "tex_slat_normalization": norm,
        "resolutions": RESOLUTIONS,
        "shape_slat_sampler": {"args": {"sigma_min": 1e-5}, "params": {"steps": 3}},
    }
    (root / "pipeline.json").write_text(json.dumps({"name": "Trellis2ImageTo3DPipeline", "args": args}))
    return root


def picture() -> Image.Image:
    """A cut-out disc."""
    image = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=(200, 90, 40, 255))
    return image
