"""Renders the pictures that users see of the pack: thumbnails of the example workflows, and the README's screenshots.

    bash scripts/test.sh tests/host/pictures.py

Run it when a workflow, the viewer or mini changed. It is no test: pytest collects it only by name, for its real host.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from .conftest import ROOT, WORKFLOWS, Host
from .editor import VIEWER, Editor, editor

SIDE = 384
"""Pixels of a thumbnail, which the template browser shows as a square."""
LARGE, NARROW = (640, 820), (420, 880)
"""Sizes of the viewers' nodes: for square pictures, and for two beside each other."""
SHOTS = ROOT / "docs"
LEGIBLE = {"LiteGraph.Canvas.MinFontSizeForLOD": 0, "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1}
"""Settings of the editor: words stay words in small graphs; one for hosts of 2025, one for older ones."""

VIEWS = {
    "one_node": ["lit"],
    "image_to_3d_stages": ["clay", "normal", "color", "lit"],
    "cascade_1024": ["lit", "wires"],
    "shape_only": ["clay"],
    "texture_variants": ["lit", "second"],
    "batch": ["lit", "next"],
}
"""What a thumbnail shows, from left to right; of other workflows, the final look."""


def _save(picture: Image.Image, path: Path, limit: int) -> None:
    """As JPEG in the best quality that takes at most `limit` kilobytes."""
    for quality in range(92, 40, -4):
        data = io.BytesIO()
        picture.convert("RGB").save(data, "JPEG", quality=quality, optimize=True, progressive=True)
        if data.tell() <= limit * 1000:
            break
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.getvalue())


def _tile(page: Editor, view: str) -> Image.Image:
    """What a viewer shows in one of its views."""
    buttons = page.page.locator(VIEWER)
    if view == "wires":
        buttons.get_by_role("button", name="Wireframe").first.click()
    elif view == "next":
        buttons.get_by_role("button", name="›").first.click()
        page.wait_for_model()
    elif view != "second":
        page.page.locator(f"{VIEWER} select").first.select_option(view)
    page.settle()
    return Image.fromarray(np.uint8(page.picture(int(view == "second")) * 255))


def _thumbnail(tiles: list[Image.Image]) -> Image.Image:
    """One picture, two beside each other, or four in the corners."""
    width, height = SIDE if len(tiles) == 1 else SIDE // 2, SIDE // 2 if len(tiles) == 4 else SIDE
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, tile in enumerate(tiles):
        sheet.paste(ImageOps.fit(tile, (width, height), Image.Resampling.LANCZOS), (width * (index % 2), height * (index // 2)))
    return sheet


def _enlarge(page: Editor, size: tuple[int, int]) -> None:
    """Give the viewers' nodes a size in the graph, beside each other."""
    page.page.evaluate(
        """(size) => app.graph.nodes.filter((node) => node.comfyClass === "TrellisCoreSaveGLB").forEach((node, index) => {
            node.setSize([...size]);
            node.pos = [4000 + index * (size[0] + 40), 0];
        })""",
        size,
    )


@pytest.fixture(scope="module")
def page(host: Host) -> Iterator[Editor]:
    with editor(host.url) as opened:
        opened.open(nodes2=False, **LEGIBLE)
        yield opened


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_thumbnail(page: Editor, path: Path) -> None:
    workflow: dict[str, Any] = json.loads((path.parents[1] / path.name).read_text())
    views = VIEWS.get(path.stem, ["lit"])
    page.load(workflow)
    page.run()
    page.wait_for_model(1 + ("second" in views))
    _enlarge(page, NARROW if len(views) == 2 else LARGE)
    page.frame(*(node["id"] for node in workflow["nodes"] if node["type"] == "TrellisCoreSaveGLB"))
    tiles = [_tile(page, view) for view in views]
    _save(_thumbnail(tiles), path.parents[1] / f"{path.stem}.jpg", 40)


def test_stages(page: Editor) -> None:
    workflow = json.loads((ROOT / "example_workflows" / "image_to_3d_stages.json").read_text())
    page.load(workflow)
    page.run()
    page.wait_for_model()
    page.page.set_viewport_size({"width": 2000, "height": 880})
    page.frame(*(node["id"] for node in workflow["nodes"] if node["type"] != "MarkdownNote"), least=0.0)
    _shot(page, "stages", {"x": 64, "y": 162, "width": 1936, "height": 606})


def test_three_clicks(page: Editor) -> None:
    """As someone who never saw the pack: its name in the template browser, a card, Run."""
    page.page.set_viewport_size({"width": 1280, "height": 800})
    page.open(nodes2=False, **LEGIBLE)
    page.browse_templates()
    page.choose_pack()
    _shot(page, "click_1")
    page.choose_template("one_node")
    _shot(page, "click_2")
    page.press_run()
    page.wait_for_model()
    page.settle()
    _shot(page, "click_3")


def _shot(page: Editor, name: str, part: dict[str, float] | None = None) -> None:
    _save(Image.open(io.BytesIO(page.page.screenshot(clip=part))), SHOTS / f"{name}.jpg", 150)
