"""The whole latent pipeline of a small family, all four types (docs/method/sampling.md)."""

from __future__ import annotations

from unittest import mock

import torch
from PIL import Image

from tests.reference.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core import sampling, stages
from trellis_core.family import load_family
from trellis_core.settings import GenerationSettings

TYPES = {"512": (512, True), "1024": (1024, False), "1024_cascade": (1024, True), "1536_cascade": (1536, True)}
ATOL = 5e-5


@kind(r"pipeline_tiny.*")
def pipeline_tiny(case: Case) -> None:
    meta, expected = case.json("meta"), case.outputs
    family = load_family(case.path)
    picture = Image.open(case.path / "image.png")
    ran = 0
    for name, (resolution, cascade) in TYPES.items():
        outputs = {key.removeprefix(f"{name}/"): t for key, t in expected.items() if key.startswith(f"{name}/")}
        if not outputs:
            continue
        limit = {"max_num_tokens": meta["max_num_tokens_1536"]} if resolution == 1536 and "max_num_tokens_1536" in meta else {}
        settings = GenerationSettings(resolution=resolution, cascade=cascade, **limit)
        _run(name, family, picture, settings, meta["seed"], outputs, expected)
        ran += 1
    assert ran, "no pipeline type in the outputs"


def _run(name, family, picture, settings, seed, outputs, shared) -> None:
    noises, sampled, upsampled = [], [], []

    def sample(model_fn, noise, *args, **kwargs):
        noises.append(noise)
        sampled.append(original_sample(model_fn, noise, *args, **kwargs))
        return sampled[-1]

    def upsample(*args):
        upsampled.append(original_upsample(*args))
        return upsampled[-1]

    original_sample, original_upsample = sampling.sample, stages._upsample
    with mock.patch.object(sampling, "sample", sample), mock.patch.object(stages, "_upsample", upsample):
        condition = stages.condition(family, picture, settings)
        structure = stages.sample_structure(family, condition, settings, seed)
        shape = stages.sample_shape(family, condition, structure, settings)
        texture = stages.sample_texture(family, condition, shape, settings)

    assert_close(condition.tokens[512], shared["cond_512"], ATOL, f"{name}: cond_512")
    if 1024 in condition.tokens:
        assert_close(condition.tokens[1024][:, :64], shared["cond_1024_first64"], ATOL, f"{name}: cond_1024")
    assert len([k for k in outputs if k.startswith("noise.")]) == len(noises)
    for index, (noise, latent) in enumerate(zip(noises, sampled, strict=True)):
        assert_close(noise, outputs[f"noise.{index}"], 0.0, f"{name}: noise.{index}")
        key = f"sampled.{index}.feats" if index else "z_s"
        assert_close(latent, outputs[key], ATOL, f"{name}: {key}")
    assert_equal(structure.coords, outputs["sampled.1.coords"], f"{name}: structure coords")
    if upsampled:
        order = outputs["hr_coords_512grid"]
        assert_equal(upsampled[0], order, f"{name}: hr_coords_512grid")
    for value, key in ((shape.feats, "shape_slat"), (texture.feats, "tex_slat")):
        assert_equal(shape.coords, outputs[f"{key}.coords"], f"{name}: {key}.coords")
        assert_close(value, outputs[f"{key}.feats"], ATOL, f"{name}: {key}.feats")
    assert_equal(torch.tensor([shape.resolution]), outputs["res"], f"{name}: res")
