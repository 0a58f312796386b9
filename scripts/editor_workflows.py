"""Makes example_workflows/*.json, for the editor, of example_workflows/api/*.json and the stored description of our nodes.

    python scripts/editor_workflows.py

Run it after a change of a workflow or of a node. The editor keeps widgets by position, so new widgets go last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NODES = json.loads((ROOT / "tests" / "host" / "object_info.json").read_text())
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

CORE: dict[str, dict[str, Any]] = {
    "LoadImage": {
        "inputs": {"image": {"type": "COMBO", "needed": True}},
        "outputs": [["IMAGE", "IMAGE", False], ["MASK", "MASK", False]],
    },
    "ImageBatch": {
        "inputs": {"image1": {"type": "IMAGE", "needed": True}, "image2": {"type": "IMAGE", "needed": True}},
        "outputs": [["IMAGE", "IMAGE", False]],
    },
}
"""The same facts about nodes of the host."""

COMPANIONS = {("LoadImage", "image"): "image", **{(name, "seed"): "fixed" for name in NODES}}
"""Values of the widgets that the editor itself puts behind a widget: the upload button, control after generate."""

OPTIONAL, LIST = 7, 6
"""Shapes of sockets in the editor."""
COLUMN, GAP = 420, 50


def convert(prompt: dict[str, Any]) -> dict[str, Any]:
    """The editor's form of an API prompt, laid out in columns from left to right."""
    facts = {key: {**NODES, **CORE}[node["class_type"]] for key, node in prompt.items()}
    nodes = {key: _node(int(key), node, facts[key]) for key, node in prompt.items()}
    links = []
    for key, node in prompt.items():
        for slot, socket in enumerate(nodes[key]["inputs"]):
            value = node["inputs"].get(socket["name"])
            if isinstance(value, list):
                link, (source, output) = len(links) + 1, value
                links.append([link, int(source), output, int(key), slot, nodes[source]["outputs"][output]["type"]])
                socket["link"] = link
                nodes[source]["outputs"][output]["links"].append(link)
    _lay_out(nodes, links)
    return {
        "last_node_id": max(map(int, nodes)),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(key: int, node: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    kind, values = node["class_type"], []
    sockets = []
    for name, fact in facts["inputs"].items():
        if fact["type"] in WIDGETS:
            values.append(node["inputs"][name])
            values += [COMPANIONS[kind, name]] if (kind, name) in COMPANIONS else []
        else:
            shape = {} if fact["needed"] else {"shape": OPTIONAL}
            sockets.append({"name": name, "type": fact["type"], "link": None, **shape})
    outputs = [{"name": n, "type": t, "links": [], **({"shape": LIST} if many else {})} for n, t, many in facts["outputs"]]
    shown = [fact for fact in facts["inputs"].values() if fact["type"] in WIDGETS]
    viewer = 340 if kind in ("LoadImage", "TrellisCoreSaveGLB", "TrellisCoreView3D") else 0
    height = 60 + 22 * max(len(sockets), len(outputs)) + 26 * len(shown) + viewer
    return {
        "id": key,
        "type": kind,
        "pos": [0, 0],
        "size": [340, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": outputs,
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }


def _lay_out(nodes: dict[str, dict[str, Any]], links: list[list[Any]]) -> None:
    """A column for every step that a node is away from the first ones, in the order of their numbers."""
    depth = {node["id"]: 0 for node in nodes.values()}
    for _ in nodes:
        for _, source, _, target, _, _ in links:
            depth[target] = max(depth[target], depth[source] + 1)
    bottom: dict[int, int] = {}
    ordered = sorted(nodes.values(), key=lambda node: (depth[node["id"]], node["id"]))
    for order, node in enumerate(ordered):
        column = depth[node["id"]]
        node["order"] = order
        node["pos"] = [COLUMN * column, bottom.get(column, 0)]
        bottom[column] = node["pos"][1] + node["size"][1] + GAP


def main() -> None:
    for path in sorted((ROOT / "example_workflows" / "api").glob("*.json")):
        workflow = convert(json.loads(path.read_text()))
        (ROOT / "example_workflows" / path.name).write_text(json.dumps(workflow, indent=1) + "\n")


if __name__ == "__main__":
    main()
