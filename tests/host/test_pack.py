"""What the host knows of the pack when it has started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .conftest import Host

SNAPSHOT = Path(__file__).with_name("object_info.json")
OPEN_CHOICES = {("TrellisCoreLoadFamily", "weights"), ("TrellisCoreLoadLora", "lora")}
"""Combos whose options are the files of the machine."""


def test_starts_with_one_line_of_log_and_without_failures(host: Host) -> None:
    log = host.log.read_text()
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


def test_mini_is_always_in_the_list(host: Host) -> None:
    node = host.client.get("/object_info/TrellisCoreLoadFamily")["TrellisCoreLoadFamily"]
    assert "mini" in json.dumps(node["input"]["required"]["weights"])


def test_every_number_says_its_step_and_every_widget_what_it_does(host: Host) -> None:
    for name, node in host.client.get("/object_info").items():
        if not name.startswith("TrellisCore"):
            continue
        for key, (kind, *options) in {**node["input"].get("required", {}), **node["input"].get("optional", {})}.items():
            if kind in ("FLOAT", "INT", "BOOLEAN", "STRING", "COMBO") or isinstance(kind, list):
                assert options[0].get("tooltip"), (name, key)
            if kind == "FLOAT":
                assert options[0].get("step"), (name, key)


def _facts(name: str, node: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for key, (kind, *options) in node["input"].get(group, {}).items():
            known = options[0] if options else {}
            choices = known.get("options", kind if isinstance(kind, list) else None)
            fact = {"type": "COMBO" if isinstance(kind, list) else kind, "needed": group == "required"}
            fact |= {k: known[k] for k in ("default", "min", "max", "step", "advanced") if k in known}
            if choices is not None and (name, key) not in OPEN_CHOICES:
                fact["options"] = choices
            inputs[key] = fact
    outputs = list(zip(node["output_name"], node["output"], node["output_is_list"], strict=True))
    return {
        "name": node["display_name"],
        "category": node["category"],
        "output_node": node["output_node"],
        "inputs": inputs,
        "outputs": [list(output) for output in outputs],
    }
