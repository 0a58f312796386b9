"""Golden runners: picture preparation and the picture encoder (golden cases A)."""

from __future__ import annotations

import torch
from PIL import Image
from safetensors.torch import load_file

from tests.golden_harness import Case, assert_close, kind
from trellis_core.image.dino import MEAN, STD, DinoV3Encoder, DinoV3Params, image_to_pixels, patch_phases


@kind(r"dinov3.*")
@torch.no_grad()
def dinov3(case: Case) -> None:
    import json

    folder = next(path for path in case.path.iterdir() if path.is_dir())
    encoder = DinoV3Encoder(DinoV3Params.from_args(json.loads((folder / "config.json").read_text()))).eval()
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    pictures = [Image.open(path) for path in sorted(case.path.glob("image*.png"))]
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
    sizes = [int(name.split("_")[1]) for name in case.outputs if name.startswith("features_")]
    for size in sizes:
        pixels = torch.stack([image_to_pixels(picture, size) for picture in pictures])
        assert_close((pixels - mean) / std, case.outputs[f"pixels_{size}"], 2e-6, f"pixels_{size}")
        assert_close(encoder.encode(pixels), case.outputs[f"features_{size}"], 2e-5, f"features_{size}")
        if f"rope_cos_{size}" in case.outputs:
            p = encoder.params
            phases = patch_phases(size // p.patch_size, p.hidden_size // p.num_attention_heads, p.rope_theta, pixels.device)
            for phase, name in zip(phases, ("cos", "sin"), strict=True):
                assert_close(phase, case.outputs[f"rope_{name}_{size}"], 2e-6, f"rope_{name}_{size}")
