"""Writes example_workflows/NAME.json, in the editor's format, from example_workflows/api/NAME.json.

    python scripts/make_workflows.py

The API files say what happens; here is only where the nodes stand. The order of sockets and widgets comes from the stored
/object_info of tests/host.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCHEMAS = json.loads((ROOT / "tests" / "host" / "object_info.json").read_text())
CORE: dict[str, dict[str, Any]] = {
    "LoadImage": {
        "name": "Load Image",
        "inputs": {"image": {"type": "COMBO"}},
        "outputs": [["IMAGE", "IMAGE"], ["MASK", "MASK"]],
    },
    "ImageBatch": {
        "name": "Batch Images",
        "inputs": {"image1": {"type": "IMAGE"}, "image2": {"type": "IMAGE"}},
        "outputs": [["IMAGE", "IMAGE"]],
    },
    "PrimitiveInt": {"name": "Int", "inputs": {"value": {"type": "INT"}}, "outputs": [["INT", "INT"]]},
}
WIDGETS = ("COMBO", "INT", "FLOAT", "BOOLEAN", "STRING")
OPTIONAL_SHAPE = 7

HUB = "https://huggingface.co"
MODELS = [
    ("trellis_2_bf16.safetensors", f"{HUB}/Comfy-Org/TRELLIS.2/resolve/main/diffusion_models", "diffusion_models"),
    ("trellis_2_shape_vae_bf16.safetensors", f"{HUB}/Comfy-Org/TRELLIS.2/resolve/main/vae", "vae"),
    ("trellis_2_texture_vae_bf16.safetensors", f"{HUB}/Comfy-Org/TRELLIS.2/resolve/main/vae", "vae"),
    ("dino_v3_vit_l.safetensors", f"{HUB}/Comfy-Org/TRELLIS.2/resolve/main/clip_vision", "clip_vision"),
]
"""The host's own TRELLIS.2 files, where a user can get them: name, address of the folder, folder below models/."""

NOTES = {
    "one_node": "# Image to 3D in one node\n1. Choose a picture of **one object** in *Load Image* (or keep the toadstool).\n"
    "2. Press **Run**.\n3. Turn the model on *Save GLB* with the mouse. The file is in the output folder.",
    "image_to_3d_stages": "# Stage by stage\nFrom left to right: what the network sees, the coarse **structure**, the "
    "**shape**, the **texture**, a clean **mesh**, the file. Change something late, and only what follows runs again. "
    "*Asset Report* says how good the model is.",
    "cascade_1024": "# Finer: 1024 with cascade\n*Sample Shape* forms a coarse shape first and refines it. Finer, and several "
    "times slower than 512.",
    "shape_only": "# Shape only\nNo texture is painted: a clean mesh to print, to sculpt on, or to paint yourself. Nothing "
    "here needs the texture network.",
    "texture_variants": "# Two textures on one shape\nThe shape is made once, then painted twice. *variant* of the lower "
    "*Sample Texture* is 1: any other number paints another texture.",
    "batch": "# Several pictures at once\nA batch makes one model of each picture; leaf through them with the arrows on "
    "*Save GLB*. More pictures: more *Batch Images* nodes.",
    "here_or_fal": "# Here or at fal.ai\n*remote* on *Here or fal* decides where the model is made; *Settings* holds for "
    "both, and the other way does not run. fal.ai needs a key (variable FAL_KEY, or the settings under TRELLIS.2) and bills "
    "each model; a server of your own goes into *base_url*.",
    "lora_styles": "# LoRAs\nEach *Load LoRA* changes the style of one stage: here the structure becomes tall and thin, the "
    "texture polished gold. *strength* 0 leaves one out, negative turns it around. Your own files go into `models/loras`.",
}
WEIGHTS_NOTE = (
    "\n\n## Weights\n**mini** comes with the pack: a small toy model that shows the way on any computer. For full quality put "
    "the official weights into `models/trellis2/` and choose them in *Load TRELLIS.2*: "
    "[TRELLIS.2-4B](https://huggingface.co/microsoft/TRELLIS.2-4B), "
    "[TRELLIS-image-large](https://huggingface.co/microsoft/TRELLIS-image-large), "
    "[DINOv3](https://huggingface.co/timm/vit_large_patch16_dinov3.lvd1689m). The pack's README says what goes where."
)

OTHERS = "all that have no place of their own"
GROUPS = {
    "1 · Picture and weights": (
        "#4a6a8c",
        ("LoadImage", "ImageBatch", "PrimitiveInt", "LoadFamily", "LoadLora", "ImageConditioner"),
    ),
    "2 · Shape": ("#6a5a8c", ("StructureSampler", "ShapeSampler")),
    "3 · Texture": ("#8a6a4a", ("TextureSampler",)),
    "2 · Model": ("#6a5a8c", ("Generate", OTHERS)),
    "4 · Mesh and maps": ("#4a7a7a", ("Decode", "Remesh", "Bake")),
    "5 · Result": ("#5a7a5a", ("SaveGLB", "AssetReport")),
}
"""What stands together, from left to right: heading, colour, kinds of nodes."""
HEAD, BORDER, GUTTER = 34, 20, 40
"""Pixels of the editor: title of a node, frame of a group, room between two columns or rows (Nodes 2.0 are taller)."""


def editor_workflow(name: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """A graph of the editor that posts exactly this prompt."""
    links: list[list[Any]] = []
    places, groups = _places(prompt)
    order = sorted(prompt, key=lambda key: (_depth(prompt, key), int(key)))
    nodes = [_node(key, prompt, order.index(key), places[key], links) for key in prompt]
    by_id = {node["id"]: node for node in nodes}
    for link, source, slot, *_ in links:
        by_id[source]["outputs"][slot]["links"].append(link)
    nodes.append(_note(max(by_id) + 1, len(nodes), NOTES[name] + WEIGHTS_NOTE, wide=len(groups) > 3))
    return {
        "last_node_id": nodes[-1]["id"],
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _schema(kind: str) -> dict[str, Any]:
    return CORE.get(kind) or SCHEMAS[kind]


def _node(key: str, prompt: dict[str, Any], order: int, place: tuple[int, int], links: list[list[Any]]) -> dict[str, Any]:
    kind, values = prompt[key]["class_type"], prompt[key]["inputs"]
    schema = _schema(kind)
    sockets = [name for name, spec in schema["inputs"].items() if spec["type"] not in WIDGETS]
    widgets = [name for name in schema["inputs"] if name not in sockets]
    inputs = []
    for slot, name in enumerate([*sockets, *widgets]):
        spec = schema["inputs"][name]
        made: dict[str, Any] = {"name": name, "type": spec["type"], "link": None}
        if not spec.get("needed", True):
            made["shape"] = OPTIONAL_SHAPE
        if name in widgets:
            made["widget"] = {"name": name}
        if isinstance(values.get(name), list):
            source, output = values[name]
            made["link"] = len(links) + 1
            outputs = _schema(prompt[source]["class_type"])["outputs"]
            links.append([made["link"], int(source), output, int(key), slot, outputs[output][1]])
        inputs.append(made)
    properties: dict[str, Any] = {"Node name for S&R": kind}
    properties["cnr_id"] = "comfy-core" if kind in CORE else "trellis2-core"
    if kind == "TrellisCoreLoadFamily":
        properties["models"] = [{"name": n, "url": f"{url}/{n}", "directory": folder} for n, url, folder in MODELS]
    title = prompt[key]["_meta"]["title"]
    return {
        "id": int(key),
        "type": kind,
        **({"title": title} if title != schema["name"] else {}),
        "pos": list(place),
        "size": list(_size(key, prompt)),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": name, "type": type_, "links": []} for name, type_, *_ in schema["outputs"]],
        "properties": properties,
        "widgets_values": _widget_values(kind, schema["inputs"], values),
    }


def _widget_values(kind: str, inputs: dict[str, Any], values: dict[str, Any]) -> list[Any]:
    """By position, as the editor stores them; a seed is followed by what happens to it after a run."""
    stored: list[Any] = []
    for name, spec in inputs.items():
        if spec["type"] in WIDGETS:
            value = values.get(name, spec.get("default"))
            stored.append(spec.get("default") if isinstance(value, list) else value)  # a linked widget keeps its default
            if name == "seed" or kind == "PrimitiveInt":
                stored.append("fixed")
    return [*stored, "image"] if kind == "LoadImage" else stored


def _note(number: int, order: int, text: str, wide: bool) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [-BORDER, -HEAD - 80 - 340] if wide else [-BORDER - GUTTER - 400, -HEAD - 46],
        "size": [760, 340] if wide else [400, 560],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }


def _size(key: str, prompt: dict[str, Any]) -> tuple[int, int]:
    kind = prompt[key]["class_type"]
    schema = _schema(kind)
    widgets = sum(spec["type"] in WIDGETS for spec in schema["inputs"].values()) + ("seed" in schema["inputs"])
    rows = max(len(schema["inputs"]) - widgets, len(schema["outputs"]))
    pictures = {"LoadImage": 340, "TrellisCoreSaveGLB": 580, "TrellisCoreImageConditioner": 240, "TrellisCoreAssetReport": 240}
    sampler = 240 if kind.endswith("Sampler") or kind == "TrellisCoreGenerate" else 0  # the live picture
    width = 540 if kind in ("TrellisCoreSaveGLB", "TrellisCoreAssetReport") else 330
    return width, 30 + 22 * rows + 26 * widgets + pictures.get(kind, sampler)


def _depth(prompt: dict[str, Any], key: str) -> int:
    sources = [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return 1 + max((_depth(prompt, source) for source in sources), default=-1)


def _places(prompt: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
    """Groups beside each other; in each, a column for every step that one of its nodes waits for another."""
    places: dict[str, tuple[int, int]] = {}
    groups: list[dict[str, Any]] = []
    homes = {kind: title for title, (_, kinds) in GROUPS.items() for kind in kinds}
    x = 0
    for title, (color, _) in GROUPS.items():
        kinds = {key: prompt[key]["class_type"].removeprefix("TrellisCore") for key in prompt}
        members = [key for key, kind in kinds.items() if homes.get(kind, homes[OTHERS]) == title]
        if not members:
            continue
        left, bottom = x, 0
        for column in _columns(prompt, members):
            y = 0
            for key in column:
                places[key] = (x, y)
                y += _size(key, prompt)[1] + HEAD + GUTTER
            bottom = max(bottom, y - HEAD - GUTTER)
            x += max(_size(key, prompt)[0] for key in column) + GUTTER
        box = [left - BORDER, -HEAD - 46, x - GUTTER - left + 2 * BORDER, bottom + HEAD + 46 + BORDER]
        groups.append({"id": len(groups) + 1, "title": title, "bounding": box, "color": color, "font_size": 24, "flags": {}})
        x += 2 * BORDER
    for number, group in enumerate(groups, 1):
        group["title"] = f"{number}{group['title'][1:]}"
        group["bounding"][3] = max(other["bounding"][3] for other in groups)
    return places, groups


def _columns(prompt: dict[str, Any], members: list[str]) -> list[list[str]]:
    depth: dict[str, int] = {}
    for key in sorted(members, key=lambda key: _depth(prompt, key)):
        sources = [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list) and value[0] in depth]
        depth[key] = 1 + max((depth[source] for source in sources), default=-1)
    return [[key for key in members if depth[key] == step] for step in range(max(depth.values()) + 1)]


def main() -> None:
    for path in sorted((ROOT / "example_workflows" / "api").glob("*.json")):
        made = editor_workflow(path.stem, json.loads(path.read_text()))
        (path.parents[1] / path.name).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
