"""What the host knows of the pack when it has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

from trellis_core.settings import LORA_FIELDS, SOURCE_FIELDS, STAGE_PREFIX, GenerationSettings

from .conftest import ROOT, Host, environment

SNAPSHOT = Path(__file__).with_name("object_info.json")
OPEN_CHOICES = {("TrellisCoreLoadFamily", "weights"), ("TrellisCoreLoadLora", "lora"), ("TrellisCoreLoraInfo", "lora")}
"""Combos whose options are the files of the machine."""
NEEDED = {
    "TrellisCoreGenerate": {"image", "seed"},
    "TrellisCoreImageTo3D": {"image", "seed"},
    "TrellisCoreFalGenerate": {"image", "seed"},
}
"""What a prompt has to say of these nodes at least: the rest has defaults."""
WIDGETS = ("FLOAT", "INT", "BOOLEAN", "STRING", "COMBO")
LIGHT = {"the_pack", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "safetensors"}
"""Packages that loading the pack may import, beside those that the host has."""


def test_starts_with_one_line_of_log_and_without_failures(host: Host) -> None:
    log = host.log.read_text().split("To see the GUI go to")[0]
    ours = [line for line in log.splitlines() if "TRELLIS.2 Core" in line]
    assert len(ours) == 1, ours
    assert "without" not in ours[0]
    assert "IMPORT FAILED" not in log and "Traceback" not in log


def test_nodes_are_those_of_the_snapshot(host: Host) -> None:
    """Ids, order of widgets, types and defaults are what saved workflows rely on: they only ever grow."""
    info = {name: node for name, node in host.client.get("/object_info").items() if name.startswith("TrellisCore")}
    found = {name: _facts(name, node) for name, node in sorted(info.items())}
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_weights_are_found_wherever_the_host_looks(host: Host) -> None:
    node = host.client.get("/object_info/TrellisCoreLoadFamily")["TrellisCoreLoadFamily"]
    kind, *options = node["input"]["required"]["weights"]
    names = kind if isinstance(kind, list) else options[0]["options"]
    assert names[0] == "mini"
    assert {"mine", "theirs"} <= set(names)  # in models/trellis2, and in a place of extra_model_paths.yaml


def test_loading_is_quick_and_brings_in_nothing_heavy(host: Host) -> None:
    """In processor time, so that it holds on a busy machine."""
    inside = [sys.executable, str(Path(__file__).with_name("inside.py")), str(ROOT), str(host.base)]
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(host.source)])
    done = subprocess.run(inside, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seconds"] <= 0.3
    assert set(told["packages"]) <= LIGHT | sys.stdlib_module_names
    assert told["with metadata"] == ["prompt", "workflow"]
    assert told["without metadata"] == []
    assert set(told["nodes"]) == set(json.loads(SNAPSHOT.read_text()))


def test_ids_are_our_own(host: Host) -> None:
    info = host.client.get("/object_info")
    ours = {name for name, node in info.items() if node["python_module"].startswith("custom_nodes.trellis2-core")}
    assert ours == {name for name in info if name.startswith("TrellisCore")}


def test_every_setting_is_on_a_node_with_its_default_and_range(host: Host) -> None:
    """Of pictures and LoRAs, which are sockets, the endpoints take addresses; samplers share one node."""
    info = host.client.get("/object_info")
    widgets: dict[str, Any] = {}
    for kind in ("MeshSettings", "TextureSettings", "FileSettings", "ShapeSampler", "Remesh", "Bake"):
        widgets |= _facts(kind, info[f"TrellisCore{kind}"])["inputs"]
    sampling = _facts("SamplingSettings", info["TrellisCoreSamplingSettings"])["inputs"]
    for name, field in GenerationSettings.model_fields.items():
        if name in (*SOURCE_FIELDS, *LORA_FIELDS, "seed"):
            continue
        prefix = next((prefix for prefix in STAGE_PREFIX.values() if name.startswith(f"{prefix}_")), None)
        widget = sampling[name.removeprefix(f"{prefix}_")] if prefix else widgets[name]
        if prefix in (None, "shape_slat") and name != "resolution":
            assert str(widget["default"]) == str(field.default), name
        if "options" in widget:
            choices = [str(choice) for choice in get_args(field.annotation)]
            assert widget["options"] == (["recommended", *choices] if name == "resolution" else choices), name
            continue
        for rule in field.metadata:
            assert not hasattr(rule, "ge") or widget["min"] == rule.ge, name
            assert not hasattr(rule, "le") or widget["max"] == rule.le, name


def test_a_node_has_twelve_widgets_at_most(host: Host) -> None:
    for name, node in host.client.get("/object_info").items():
        if name.startswith("TrellisCore") and not node.get("deprecated"):
            inputs = _facts(name, node)["inputs"].items()
            widgets = [key for key, fact in inputs if fact["type"] in WIDGETS]
            assert len(widgets) <= 12, (name, widgets)


def test_a_picture_and_a_seed_are_enough(host: Host) -> None:
    info = host.client.get("/object_info")
    for name, needed in NEEDED.items():
        assert {key for key, fact in _facts(name, info[name])["inputs"].items() if fact["needed"]} == needed


def test_every_number_says_its_step_and_everything_what_it_is(host: Host) -> None:
    for name, node in host.client.get("/object_info").items():
        if not name.startswith("TrellisCore"):
            continue
        for key, (kind, *options) in {**node["input"].get("required", {}), **node["input"].get("optional", {})}.items():
            assert options[0].get("tooltip"), (name, key)
            if kind == "FLOAT":
                assert options[0].get("step"), (name, key)
        assert all(node["output_tooltips"]), (name, node["output_tooltips"])


def _facts(name: str, node: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for key, (kind, *options) in node["input"].get(group, {}).items():
            known = options[0] if options else {}
            choices = known.get("options", kind if isinstance(kind, list) else None)
            fact = {"type": "COMBO" if isinstance(kind, list) else kind, "needed": group == "required"}
            fact |= {k: known[k] for k in ("default", "min", "max", "step", "advanced", "tooltip") if k in known}
            if choices is not None and (name, key) not in OPEN_CHOICES:
                fact["options"] = choices
            inputs[key] = fact
    outputs = list(zip(node["output_name"], node["output"], node["output_is_list"], node["output_tooltips"], strict=True))
    return {
        "name": node["display_name"],
        "category": node["category"],
        "description": node["description"],
        "deprecated": bool(node.get("deprecated")),
        "output_node": node["output_node"],
        "inputs": inputs,
        "outputs": [list(output) for output in outputs],
    }
