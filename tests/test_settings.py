from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from trellis_core.fal.endpoints import ENDPOINTS
from trellis_core.fal.errors import validation_errors
from trellis_core.sampling import sampler_params
from trellis_core.settings import LOCAL_FIELDS, GenerationSettings, resolve_seed

RANGES = {
    "guidance_strength": (0, 10), "guidance_rescale": (0, 1), "guidance_interval_start": (0, 1),
    "guidance_interval_end": (0, 1), "sampling_steps": (1, 50), "rescale_t": (1, 6),
}  # fmt: skip
PREFIXES = ("ss", "shape_slat", "tex_slat")


def errors(**values: object) -> list[dict]:
    with pytest.raises(ValidationError) as caught:
        GenerationSettings(**values)
    return validation_errors(caught.value)


def test_defaults_of_the_published_schemas() -> None:
    s = GenerationSettings()
    rows = {p: tuple(getattr(s, f"{p}_{n}") for n in RANGES) for p in PREFIXES}
    assert rows == {
        "ss": (7.5, 0.7, 0.6, 1.0, 12, 5.0),
        "shape_slat": (7.5, 0.5, 0.6, 1.0, 12, 3.0),
        "tex_slat": (1.0, 0.0, 0.6, 0.9, 12, 3.0),
    }
    assert (s.resolution, s.texture_size, s.decimation_target, s.seed) == (1024, 2048, 500_000, None)
    assert (s.remesh, s.remesh_band, s.remesh_project) == (True, 1.0, 0.0)
    assert (s.uv_unwrap_angle_threshold_deg, s.uv_unwrap_refine_iterations) == (90.0, 0)
    assert (s.uv_unwrap_global_iterations, s.uv_unwrap_smooth_strength) == (1, 1.0)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", RANGES)
def test_ranges_include_their_ends_and_nothing_beyond(prefix: str, name: str) -> None:
    low, high = RANGES[name]
    field = f"{prefix}_{name}"
    open_interval = {f"{prefix}_guidance_interval_start": 0.0} if name.endswith("_end") else {}
    open_interval |= {f"{prefix}_guidance_interval_end": 1.0} if name.endswith("_start") else {}
    for good in (low, high):
        assert getattr(GenerationSettings(**{**open_interval, field: good}), field) == good
    below, above = (errors(**{**open_interval, field: v})[0] for v in (low - 1, high + 1))
    assert below["loc"] == above["loc"] == ["body", field]
    assert (below["type"], below["ctx"]) == ("greater_than_equal", {"ge": low})
    assert (above["type"], above["ctx"]) == ("less_than_equal", {"le": high})


@pytest.mark.parametrize(("field", "value"), [
    ("decimation_target", 4999), ("decimation_target", 2_000_001), ("remesh_band", 4.5), ("remesh_project", -0.1),
    ("uv_unwrap_angle_threshold_deg", 181), ("uv_unwrap_refine_iterations", 11), ("uv_unwrap_global_iterations", 0),
    ("uv_unwrap_smooth_strength", 10.5), ("seed", -1), ("seed", 2**64), ("texture_size", 512), ("resolution", 256),
    ("ss_guidance_strength", float("nan")), ("ss_rescale_t", float("inf")), ("ss_sampling_steps", 1.5),
    ("resolution", "big"), ("remesh", "perhaps"), ("no_such_setting", 1),
])  # fmt: skip
def test_bad_values_name_their_field(field: str, value: object) -> None:
    (error,) = errors(**{field: value})
    assert error["loc"] == ["body", field] and error["msg"] and error["type"]


def test_enums_take_numbers_and_numeric_text() -> None:
    s = GenerationSettings(resolution="512", texture_size="4096")
    assert (s.resolution, s.texture_size) == (512, 4096)
    assert errors(resolution="513")[0]["type"] == "literal_error"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_interval_must_be_in_order(prefix: str) -> None:
    (error,) = errors(**{f"{prefix}_guidance_interval_start": 0.8, f"{prefix}_guidance_interval_end": 0.5})
    assert error["loc"] == ["body", f"{prefix}_guidance_interval_end"]
    assert error["type"] == "greater_than_equal" and error["ctx"] == {"ge": 0.8}


def test_errors_travel_as_json() -> None:
    (first, second) = errors(ss_sampling_steps=0, texture_size=3000)
    assert json.loads(json.dumps([first, second]))[1]["input"] == 3000


def test_sampler_params_per_stage() -> None:
    s = GenerationSettings(tex_slat_guidance_strength=3, tex_slat_guidance_interval_end=0.8, ss_sampling_steps=4)
    texture, structure = sampler_params(s, "texture"), sampler_params(s, "structure")
    assert (texture.guidance_strength, texture.guidance_interval, texture.rescale_t) == (3.0, (0.6, 0.8), 3.0)
    assert (structure.steps, structure.guidance_rescale, structure.guidance_strength) == (4, 0.7, 7.5)


def test_family_defaults_hold_only_where_the_user_said_nothing() -> None:
    s = GenerationSettings(ss_guidance_interval_start=0.2, ss_sampling_steps=12)
    params = sampler_params(s, "structure", {"steps": 25, "guidance_interval": [0.1, 0.5], "rescale_t": 2.0})
    assert (params.steps, params.guidance_interval, params.rescale_t) == (12, (0.2, 1.0), 2.0)


def test_endpoints() -> None:
    plain, lora = ENDPOINTS["fal-ai/trellis-2"], ENDPOINTS["fal-ai/trellis-2-lora"]
    assert len(plain.fields) == 18 + 12 and len(lora.fields) == 18 + 8
    spoken = {name for endpoint in ENDPOINTS.values() for name in endpoint.fields}
    assert spoken == set(GenerationSettings.model_fields) - set(LOCAL_FIELDS)
    assert lora.defaults == {"resolution": 512}
    assert (plain.choices["texture_size"], lora.choices["resolution"]) == ((1024, 2048, 4096), (512, 1024))
    assert not any(n.startswith(("remesh", "uv_")) for n in lora.fields)
    assert not any(n.endswith("lora_url") for n in plain.fields)


def test_every_field_says_what_it_does() -> None:
    for name, field in GenerationSettings.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_seed_is_kept_or_drawn_in_31_bits() -> None:
    assert resolve_seed(0) == 0 and resolve_seed(7) == 7
    drawn = {resolve_seed(None) for _ in range(20)}
    assert len(drawn) > 1 and all(0 <= s < 2**31 for s in drawn)
