"""Golden runners: picture preparation and the picture encoder (golden cases A)."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.reference.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.image.dino import MEAN, STD, DinoV3Encoder, DinoV3Params, image_to_pixels, patch_phases
from trellis_core.image.matting import matte_by_network
from trellis_core.image.preprocess import preprocess


@kind(r"dinov3.*")
@torch.no_grad()
def dinov3(case: Case) -> None:
    folder = next(path for path in case.path.iterdir() if path.is_dir())
    encoder = DinoV3Encoder(DinoV3Params.from_args(json.loads((folder / "config.json").read_text()))).eval()
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    pictures = [Image.open(path) for path in sorted(case.path.glob("image*.png"))]
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
    sizes = [int(name.split("_")[1]) for name in case.outputs if name.startswith("features_")]
    for size in sizes:
        pixels = torch.stack([image_to_pixels(picture, size) for picture in pictures])
        if f"pixels_{size}" in case.outputs:
            assert_close((pixels - mean) / std, case.outputs[f"pixels_{size}"], 2e-6, f"pixels_{size}")
        assert_close(encoder.encode(pixels), case.outputs[f"features_{size}"], 2e-5, f"features_{size}")
        if f"rope_cos_{size}" in case.outputs:
            p = encoder.params
            head_width = p.hidden_size // p.num_attention_heads
            phases = patch_phases(size // p.patch_size, head_width, p.rope_theta, pixels.device)
            for phase, name in zip(phases, ("cos", "sin"), strict=True):
                assert_close(phase, case.outputs[f"rope_{name}_{size}"], 2e-6, f"rope_{name}_{size}")


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy())


@kind(r"preprocess.*")
def cut_out_pictures(case: Case) -> None:
    for name, expected in case.outputs.items():
        assert_equal(as_tensor(preprocess(Image.open(case.path / f"{name}_in.png"))), expected, name)


@kind(r"rembg_wrapper.*")
def matting(case: Case) -> None:
    def stub(x: torch.Tensor) -> list[torch.Tensor]:
        return [2 * x.mean(dim=1, keepdim=True) - 0.3]

    def matte(picture: Image.Image) -> Image.Image:
        return matte_by_network(picture, stub)

    picture = Image.open(case.path / "image_in.png")
    assert_equal(as_tensor(matte(picture)), case.outputs["rgba"], "rgba")
    assert_equal(as_tensor(preprocess(picture, matte)), case.outputs["preprocessed"], "preprocessed")
