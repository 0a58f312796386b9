"""Every field of the two hosted endpoints: name, type, default, range, as their published schemas say."""

from __future__ import annotations

import pytest

from trellis_core.fal.endpoints import ENDPOINTS
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


SHARED = {"image_url": TEXT, "seed": SEED, **rows(SAMPLER), "texture_size": (2048, (1024, 2048, 4096))}
PUBLISHED = {
    "fal-ai/trellis-2": {
        **SHARED, **rows(MESH), "remesh": ("boolean", True), "resolution": (1024, (512, 1024, 1536)),
    },
    "fal-ai/trellis-2-lora": {
        **SHARED, "sparse_structure_lora_url": TEXT, "geometry_lora_url": TEXT, "texture_lora_url": TEXT,
        "resolution": (512, (512, 1024)),
    },
}  # fmt: skip


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
    assert ENDPOINTS[endpoint].required == ("image_url",)
