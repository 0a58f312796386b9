"""What a model was made with: report and file name every value as it was used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.tiny_family import picture
from trellis_core import stages
from trellis_core.asset.asset import make_asset, refine_mesh
from trellis_core.asset.report import EXTRAS
from trellis_core.family import Family, load_family
from trellis_core.gltf.container import split_glb
from trellis_core.lora.source import BUNDLED
from trellis_core.lora.stack import Lora, place
from trellis_core.settings import LORA_FIELDS, SOURCE_FIELDS, STAGE_PREFIX, GenerationSettings
from trellis_core.stage_files import load_stage, save_stage

SMALL = {"resolution": 512, "texture_size": 1024, "decimation_target": 5000}


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("mini")


def test_every_setting_is_named_with_the_value_that_was_used(family: Family) -> None:
    """Mini recommends other samplers than the schema's defaults; a value that was given is used, also where it equals one."""
    settings = GenerationSettings(**SMALL, tex_slat_guidance_strength=1.0, ss_sampling_steps=2)
    (asset,) = stages.generate_all(family, picture(), settings, seed=11)
    used = asset.report.made_with
    assert used["seed"] == 11 and used["weights"] == "mini"
    assert used["tex_slat_guidance_strength"] == 1.0 and used["ss_sampling_steps"] == 2
    for stage, prefix in STAGE_PREFIX.items():
        params = family.samplers[stage].params
        assert used[f"{prefix}_rescale_t"] == params["rescale_t"]
        assert [used[f"{prefix}_guidance_interval_{end}"] for end in ("start", "end")] == list(params["guidance_interval"])
    assert used["shape_slat_sampling_steps"] == family.samplers["shape"].params["steps"]
    unused = {"faces", "step_caching", *SOURCE_FIELDS, *LORA_FIELDS}
    assert set(GenerationSettings.model_fields) - unused <= set(used)

    document, _ = split_glb(asset.glb)
    assert document["asset"]["extras"][EXTRAS] == json.loads(asset.report.to_json())["made_with"] == used
    text = asset.report.to_text()
    assert "guidance_strength 1," in text and "sampling_steps 2," in text and "texture_size 1024" in text


def test_values_travel_through_files_and_single_stages(family: Family, tmp_path: Path) -> None:
    settings = GenerationSettings(**SMALL)
    seen = stages.condition(family, picture(), settings)
    structure = stages.sample_structure(family, seen, settings, 5)
    save_stage(structure, tmp_path / "structure.safetensors")
    assert load_stage(tmp_path / "structure.safetensors").made_with == structure.made_with
    shape = stages.sample_shape(family, seen, structure, settings)
    save_stage(shape, tmp_path / "shape.safetensors")
    shape = load_stage(tmp_path / "shape.safetensors")
    texture = stages.sample_texture(family, seen, shape, settings)
    ((mesh, voxels),) = stages.decode(family, shape, texture)
    fewer = GenerationSettings(faces=2000, remesh=False)
    refined = refine_mesh(mesh, fewer, voxels.resolution)
    used = make_asset(refined, voxels, settings, refined=True).report.made_with
    assert used["seed"] == 5 and used["weights"] == "mini" and used["tex_slat_sampling_steps"] == 6
    assert used["faces"] == 2000 and used["remesh"] is False and "decimation_target" not in used


def test_loras_are_named_with_their_strength(family: Family) -> None:
    lora = next(BUNDLED.glob("polished*"))
    changed = place(family, [Lora(lora, 0.5)], family.route(512))[0]
    settings = GenerationSettings(**SMALL)
    seen = stages.condition(changed, picture(), settings)
    structure = stages.sample_structure(changed, seen, settings, 5)
    shape = stages.sample_shape(changed, seen, structure, settings)
    texture = stages.sample_texture(changed, seen, shape, settings)
    assert texture.made_with["texture_loras"] == [f"{lora.name} at 0.5"]
    assert "structure_loras" not in structure.made_with
    assert "shape_loras" not in replace(shape).made_with
