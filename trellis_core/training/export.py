"""Write a trained run as a family folder in the published layout: pipeline.json, ckpts/, dinov3/; fp16 throughout.

python -m trellis_core.training.export --run runs/mini --out trellis_core/mini
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files import write_tensors, write_whole
from ..roles import (
    IMAGE_ROLE,
    SAMPLER_KEY,
    SHAPE_DECODER,
    SHAPE_ENCODER,
    STRUCTURE_DECODER,
    STRUCTURE_ENCODER,
    STRUCTURE_FLOW,
    TEXTURE_DECODER,
    TEXTURE_ENCODER,
    flow_role,
)
from .loop import load_averaged
from .mini.cache import ShapeLatents, TextureLatents, cache_file
from .mini.encoder import ColumnHead
from .mini.flows import SHAPE_SAMPLER, STRUCTURE_SAMPLER, TEXTURE_SAMPLER
from .mini.networks import CONFIGS, DINO_CONFIG, IMAGE_SIZE, RESOLUTIONS, TOKEN_WIDTH, make_image_encoder, make_network
from .mini.structure_code import structure_autoencoder

PUBLISHED = ("steps", "guidance_strength", "guidance_rescale", "guidance_interval", "rescale_t")
"""Sampler parameters that pipeline.json knows."""
MODELS = {
    STRUCTURE_ENCODER: "ss_enc",
    STRUCTURE_DECODER: "ss_dec",
    STRUCTURE_FLOW: "ss_flow",
    SHAPE_ENCODER: "shape_enc",
    SHAPE_DECODER: "shape_dec",
    flow_role("shape", 512): "shape_flow",
    flow_role("shape", 1024): "shape_flow",
    TEXTURE_ENCODER: "tex_enc",
    TEXTURE_DECODER: "tex_dec",
    flow_role("texture", 512): "tex_flow",
    flow_role("texture", 1024): "tex_flow",
}


LORA_TRAINING = {"learning_rate": 3e-3, "steps": 200, "views": 4, "azimuth": 45.0}
"""What suits a small network, which has only ever seen fronts."""


def pipeline_config(normalization: dict[str, tuple[Tensor, Tensor]], name: str = "Trellis2ImageTo3DPipeline") -> dict:
    """The contents of pipeline.json (docs/method/networks.md); normalization: shape and tex (mean, std) [C]."""
    samplers = {
        SAMPLER_KEY["structure"]: STRUCTURE_SAMPLER,
        SAMPLER_KEY["shape"]: SHAPE_SAMPLER,
        SAMPLER_KEY["texture"]: TEXTURE_SAMPLER,
    }
    return {
        "name": name,
        "args": {
            "models": {role: f"ckpts/{stem}" for role, stem in MODELS.items()},
            **{
                key: {
                    "name": "FlowEulerGuidanceIntervalSampler",
                    "args": {"sigma_min": 1e-5},
                    "params": {key: getattr(params, key) for key in PUBLISHED},
                }
                for key, params in samplers.items()
            },
            **{
                f"{kind}_slat_normalization": {"mean": mean.tolist(), "std": std.tolist()}
                for kind, (mean, std) in normalization.items()
            },
            IMAGE_ROLE: {"name": "DinoV3FeatureExtractor", "args": {"model_name": "dinov3", "image_size": IMAGE_SIZE}},
            "rembg_model": None,
            "default_pipeline_type": "512",
            "resolutions": RESOLUTIONS,
            "lora_training": LORA_TRAINING,
        },
    }


def load_networks(run: Path) -> tuple[dict[str, nn.Module], dict[str, tuple[Tensor, Tensor]]]:
    """All networks of a run by their key, image encoder as `dinov3`, and the latents' normalisation.

    Decoders are the finetuned ones where those stages have run.
    """
    nets = {key: make_network(key) for key in CONFIGS} | {"dinov3": make_image_encoder()}
    load_averaged("encoder", {"vit": nets["dinov3"], "head": ColumnHead(TOKEN_WIDTH)}, run)
    nets["ss_enc"], nets["ss_dec"] = structure_autoencoder()
    for kind in ("ss", "shape", "tex"):
        if kind != "ss":
            load_averaged(f"{kind}_vae", {"enc": nets[f"{kind}_enc"], "dec": nets[f"{kind}_dec"]}, run)
        if (run / f"{kind}_flow.pt").exists():
            load_averaged(f"{kind}_flow", {"model": nets[f"{kind}_flow"]}, run)
        if (run / f"{kind}_polish.pt").exists():
            load_averaged(f"{kind}_polish", {"dec": nets[f"{kind}_dec"]}, run)
    shape = ShapeLatents.open(cache_file(run, "latents_shape")).statistics()
    return nets, {"shape": shape, "tex": TextureLatents.open(cache_file(run, "latents_texture")).statistics()}


def export(run: Path, out: Path) -> int:
    """Write the family; returns its size in bytes."""
    nets, normalization = load_networks(run)
    (out / "ckpts").mkdir(parents=True, exist_ok=True)
    (out / "dinov3").mkdir(exist_ok=True)
    for key, (name, args) in CONFIGS.items():
        _save_json({"name": name, "args": args}, out / "ckpts" / f"{key}.json")
        _save_half(nets[key], out / "ckpts" / f"{key}.safetensors")
    _save_json(DINO_CONFIG, out / "dinov3" / "config.json")
    _save_half(nets["dinov3"], out / "dinov3" / "model.safetensors")
    _save_json(pipeline_config(normalization), out / "pipeline.json")
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _save_half(network: nn.Module, path: Path) -> None:
    write_tensors(path, {k: v.half().contiguous() for k, v in network.state_dict().items()})


def _save_json(value: Any, path: Path) -> None:
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.export", description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/mini"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "mini")
    args = parser.parse_args(argv)
    print(f"{args.out}: {export(args.run, args.out) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
