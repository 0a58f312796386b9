"""Presets keep what they promise."""

from __future__ import annotations

import pytest

from tests.helpers.tiny_family import picture
from trellis_core import stages
from trellis_core.errors import InputError
from trellis_core.family import load_family
from trellis_core.presets import PRESETS, RECOMMENDED, preset
from trellis_core.settings import GenerationSettings

QUICK = GenerationSettings(ss_sampling_steps=2, shape_slat_sampling_steps=2, tex_slat_sampling_steps=1, texture_size=1024)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_valid_and_names_only_what_it_sets(name: str) -> None:
    assert preset(name).model_fields_set == set(PRESETS[name])
    assert bool(PRESETS[name]) == (name != RECOMMENDED)


def test_a_preset_takes_the_largest_resolution_that_the_weights_make() -> None:
    assert preset("fine", [512, 1024]).resolution == 1024
    assert preset("fine").resolution == 1536
    assert preset("draft", [1024]).resolution == 1024
    with pytest.raises(InputError, match="no preset.*draft"):
        preset("best")


def test_single_values_of_a_preset_can_be_changed() -> None:
    changed = GenerationSettings(texture_size=1024).over(preset("balanced"))
    assert (changed.texture_size, changed.resolution) == (1024, 1024)
    assert changed.model_fields_set == set(PRESETS["balanced"])


@pytest.mark.parametrize("name", ["draft", "game, low poly", "3D print", "web, up to 5 MB"])
def test_models_are_as_the_preset_says(name: str) -> None:
    family = load_family("mini")
    quick = QUICK.over(GenerationSettings(occlusion_map=False)) if "occlusion_map" in PRESETS[name] else QUICK  # takes seconds
    (asset,) = stages.generate_all(family, picture(), quick.over(preset(name, [512])), seed=3)
    wanted = PRESETS[name]
    assert asset.report.vertices <= wanted.get("decimation_target", 2_000_000)
    if "faces" in wanted:
        assert asset.report.faces <= wanted["faces"] * 1.02
    if "max_file_mb" in wanted:
        assert len(asset.glb) <= wanted["max_file_mb"] * 1e6
    assert (asset.normal_map is not None) == wanted.get("normal_map", False)
    if name == "3D print":
        assert asset.report.watertight and asset.report.made_with["size_meters"] == 0.1
