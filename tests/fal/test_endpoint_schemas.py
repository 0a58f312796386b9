"""Every field of the hosted endpoints: name, type, default, range, as their published schemas say."""

from __future__ import annotations

import pytest

from trellis_core.fal.endpoints import ENDPOINTS, check_payload
from trellis_core.fal.endpoints import MULTI_ENDPOINT as MULTI
from trellis_core.fal.endpoints import RETEXTURE_ENDPOINT as RETEXTURE
from trellis_core.fal.errors import FalError
from trellis_core.settings import GenerationSettings

TEXT = ("string", None)
SEED = ("integer", None)

SAMPLER = """
    ss_guidance_strength                number   7.5  0 10
    ss_guidance_rescale                 number   0.7  0 1
    ss_guidance_interval_start          number   0.6  0 1
    ss_guidance_interval_end            number   1.0  0 1
    ss_sampling_steps                   integer  12   1 50
    ss_rescale_t                        number   5.0  1 6
    shape_slat_guidance_strength        number   7.5  0 10
    shape_slat_guidance_rescale         number   0.5  0 1
    shape_slat_guidance_interval_start  number   0.6  0 1
    shape_slat_guidance_interval_end    number   1.0  0 1
    shape_slat_sampling_steps           integer  12   1 50
    shape_slat_rescale_t                number   3.0  1 6
    tex_slat_guidance_strength          number   1.0  0 10
    tex_slat_guidance_rescale           number   0.0  0 1
    tex_slat_guidance_interval_start    number   0.6  0 1
    tex_slat_guidance_interval_end      number   0.9  0 1
    tex_slat_sampling_steps             integer  12   1 50
    tex_slat_rescale_t                  number   3.0  1 6
    decimation_target                   integer  500000  5000 2000000
"""
MESH = """
    remesh_band                         number   1    0 4
    remesh_project                      number   0    0 1
    uv_unwrap_angle_threshold_deg       number   90   0 180
    uv_unwrap_refine_iterations         integer  0    0 10
    uv_unwrap_global_iterations         integer  1    1 10
    uv_unwrap_smooth_strength           number   1    0 10
"""


def rows(table: str) -> dict[str, tuple]:
    """name -> (type, default, lowest, highest)."""
    split = (line.split() for line in table.strip().splitlines())
    return {name: (kind, float(default), float(low), float(high)) for name, kind, default, low, high in split}


SIZES = {"texture_size": (2048, (1024, 2048, 4096))}
SAMPLED = {"seed": SEED, **rows(SAMPLER), **SIZES}
FINE = {**rows(MESH), "remesh": ("boolean", True), "resolution": (1024, (512, 1024, 1536))}
PUBLISHED = {
    "fal-ai/trellis-2": {"image_url": TEXT, **SAMPLED, **FINE},
    "fal-ai/trellis-2-lora": {
        "image_url": TEXT, "sparse_structure_lora_url": TEXT, "geometry_lora_url": TEXT, "texture_lora_url": TEXT,
        "resolution": (512, (512, 1024)), **SAMPLED,
    },
    "fal-ai/trellis-2/multi": {"image_urls": ("array", None), **SAMPLED, **FINE},
    "fal-ai/trellis-2/retexture": {
        "image_url": TEXT, "mesh_url": TEXT, "seed": SEED, "resolution": (1024, (512, 1024)), **SIZES,
        **{name: row for name, row in rows(SAMPLER).items() if name.startswith("tex_slat_")},
    },
}  # fmt: skip
REQUIRED = {"fal-ai/trellis-2/multi": ("image_urls",), "fal-ai/trellis-2/retexture": ("image_url", "mesh_url")}


def ours(endpoint: str, name: str) -> tuple:
    """What we say of a field, in the form of the tables above."""
    known, schema = ENDPOINTS[endpoint], GenerationSettings.model_json_schema()["properties"][name]
    default = known.defaults.get(name, schema["default"])
    if "enum" in schema:
        return default, known.choices.get(name, tuple(schema["enum"]))
    if "anyOf" in schema:
        value, nothing = schema["anyOf"]
        assert nothing == {"type": "null"}
        return value["type"], default
    if schema["type"] == "boolean":
        return schema["type"], default
    return schema["type"], default, schema["minimum"], schema["maximum"]


@pytest.mark.parametrize("endpoint", PUBLISHED)
def test_fields_of_an_endpoint(endpoint: str) -> None:
    wanted = PUBLISHED[endpoint]
    assert set(ENDPOINTS[endpoint].fields) == set(wanted)
    assert {name: ours(endpoint, name) for name in wanted} == wanted
    assert ENDPOINTS[endpoint].required == REQUIRED.get(endpoint, ("image_url",))


def test_bodies_of_the_endpoints_with_several_sources() -> None:
    settings, unknown = check_payload(MULTI, b'{"image_urls": ["a", "b"], "resolution": "1536", "image_url": "c"}')
    assert settings.image_urls == ("a", "b") and settings.resolution == 1536 and unknown == ["image_url"]
    settings, unknown = check_payload(RETEXTURE, b'{"image_url": "a", "mesh_url": "b", "ss_sampling_steps": 3}')
    assert settings.mesh_url == "b" and settings.resolution == 1024 and unknown == ["ss_sampling_steps"]
    for app, body, loc, kind in (
        (MULTI, b'{"image_urls": ["a"]}', "image_urls", "too_short"),
        (MULTI, b'{"image_urls": "ab"}', "image_urls", "tuple_type"),
        (MULTI, b'{"image_url": "a"}', "image_urls", "missing"),
        (RETEXTURE, b'{"image_url": "a"}', "mesh_url", "missing"),
        (RETEXTURE, b'{"image_url": "a", "mesh_url": "b", "resolution": 1536}', "resolution", "literal_error"),
    ):
        with pytest.raises(FalError) as caught:
            check_payload(app, body)
        (entry,) = caught.value.detail
        assert (entry["loc"], entry["type"]) == (["body", loc], kind)
