"""What a widget shows is what is used: read from the files that the host writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trellis_core.asset.report import EXTRAS
from trellis_core.family import load_family
from trellis_core.gltf.container import split_glb
from trellis_core.presets import PRESETS

from .conftest import ROOT, Host

MINI = {stage: sampler.params for stage, sampler in load_family("mini").samplers.items()}
"""What mini recommends, by stage."""
QUICK = {"sampling_steps": 1}


def _made(host: Host, node: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
    """What the file of a node of whole models says that it was made with."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "icon_duck.png"}},
        "2": {**node, "inputs": {"image": ["1", 0], "seed": 5, **node["inputs"]}},
        "3": {"class_type": "TrellisCoreSaveGLB", "inputs": {"glb": ["2", 0], "filename_prefix": "used"}},
        **more,
    }
    outcome = host.client.run(prompt)
    assert outcome.how == "success", outcome.message()
    (file,) = outcome.files()
    return split_glb(host.client.download(file))[0]["asset"]["extras"][EXTRAS]


def _settings(kind: str, before: str | None = None, **values: Any) -> dict[str, Any]:
    return {"class_type": f"TrellisCore{kind}Settings", "inputs": values | ({"settings": [before, 0]} if before else {})}


SMALL = _settings("Texture", texture_size="1024")


def test_a_picture_and_a_seed_follow_what_the_weights_recommend(host: Host) -> None:
    used = _made(host, {"class_type": "TrellisCoreGenerate", "inputs": {"settings": ["9", 0]}}, **{"9": SMALL})
    assert used["weights"] == "mini" and used["seed"] == 5
    assert used["ss_sampling_steps"] == MINI["structure"]["steps"]
    assert used["tex_slat_guidance_strength"] == MINI["texture"]["guidance_strength"]


def test_a_settings_node_is_used_as_it_stands(host: Host) -> None:
    """Also where its values are the defaults of the schema, which mini does not recommend."""
    nodes = {
        "9": _settings("Sampling", stage="texture", guidance_strength=1.0, guidance_rescale=0.0),
        "8": _settings("Sampling", before="9", stage="structure", sampling_steps=12, guidance_strength=7.5),
        "7": {**SMALL, "inputs": {**SMALL["inputs"], "settings": ["8", 0]}},
    }
    used = _made(host, {"class_type": "TrellisCoreGenerate", "inputs": {"settings": ["7", 0]}}, **nodes)
    assert (used["tex_slat_guidance_strength"], used["tex_slat_guidance_rescale"]) == (1.0, 0.0)
    assert (used["ss_sampling_steps"], used["ss_guidance_strength"]) == (12, 7.5)
    assert used["shape_slat_sampling_steps"] == MINI["shape"]["steps"], "a stage without a node follows the weights"


def test_a_preset_is_used_and_changed_by_settings(host: Host) -> None:
    node = {"class_type": "TrellisCoreGenerate", "inputs": {"preset": "draft", "settings": ["9", 0]}}
    used = _made(host, node, **{"9": _settings("Mesh", faces=3000)})
    assert used["texture_size"] == PRESETS["draft"]["texture_size"] and used["resolution"] == 512
    assert used["faces"] == 3000 and "decimation_target" not in used


def test_nodes_that_contradict_each_other_are_refused(host: Host) -> None:
    prompt = json.loads((ROOT / "example_workflows" / "api" / "image_to_3d_stages.json").read_text())
    baker = next(key for key, node in prompt.items() if node["class_type"] == "TrellisCoreBake")
    prompt["50"] = _settings("Texture", texture_size="4096")
    prompt[baker]["inputs"]["settings"] = ["50", 0]
    prompt[baker]["inputs"]["texture_size"] = "1024"
    outcome = host.client.run(prompt)
    assert outcome.how == "error" and "texture_size is 1024 on this node and 4096" in outcome.message()


@pytest.mark.parametrize("changed", [{}, {"ss_sampling_steps": 2, "tex_slat_guidance_strength": 3.0}])
def test_a_node_of_version_0_1_keeps_its_meaning(host: Host, changed: dict[str, Any]) -> None:
    """A value left at its default counts as not given there, so old workflows give the models that they gave."""
    saved = json.loads((ROOT / "tests" / "host" / "saved" / "0.1.0" / "api" / "one_node.json").read_text())
    (old,) = (node for node in saved.values() if node["class_type"] == "TrellisCoreImageTo3D")
    values = {key: value for key, value in old["inputs"].items() if not isinstance(value, list)} | changed
    used = _made(host, {"class_type": "TrellisCoreImageTo3D", "inputs": values | {"seed": 5}})
    assert used["ss_sampling_steps"] == changed.get("ss_sampling_steps", MINI["structure"]["steps"])
    assert used["ss_guidance_strength"] == MINI["structure"]["guidance_strength"]
    wanted = changed.get("tex_slat_guidance_strength", MINI["texture"]["guidance_strength"])
    assert used["tex_slat_guidance_strength"] == wanted
