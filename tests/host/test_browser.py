"""The editor in a real browser: every workflow opens in both renderers, and models are seen on their nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import ROOT, WORKFLOWS, Host
from .editor import VIEWER, Editor, chromium, editor

RENDERERS = {"classic": False, "nodes2": True}
SAVER = 4
"""Save GLB in the workflow of one node."""
COLORFUL = 0.03
"""Share of the picture that the red of the toadstool takes at least."""


@pytest.fixture(scope="module", params=RENDERERS)
def page(host: Host, request: pytest.FixtureRequest) -> Iterator[Editor]:
    missing = [] if chromium() else ["a browser (Debian's package chromium)"]
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        missing.append("the Python package playwright")
    if missing:
        assert not os.environ.get("CI"), f"CI has to install {missing}"
        pytest.skip(f"not here: {' and '.join(missing)}; bash scripts/host.sh installs it")
    with editor(host.url) as opened:
        opened.open(nodes2=RENDERERS[request.param])
        yield opened


def _stored(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((ROOT / "example_workflows" / path.name).read_text()), json.loads(path.read_text())


def _untitled(prompt: dict[str, Any]) -> dict[str, Any]:
    """Without the titles of nodes: the host renames its own."""
    return {number: {key: value for key, value in node.items() if key != "_meta"} for number, node in prompt.items()}


def colorful(picture: np.ndarray) -> float:
    """Share of the pixels [height, width, 3] that have a colour of their own, unlike the viewer's grey."""
    return float(((picture.max(-1) - picture.min(-1)) > 0.12).mean())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_tidily_and_posts_its_api_form(page: Editor, path: Path) -> None:
    workflow, prompt = _stored(path)
    if page.nodes2:
        page.open(nodes2=True)  # a page that had another workflow mixes its nodes' places into the next one's
    page.load(workflow)
    assert not page.missing()
    assert _untitled(page.prompt()) == _untitled(prompt)
    boxes = page.boxes()
    assert len(boxes) == len(workflow["nodes"])
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"nodes {one} and {other} overlap: {a}, {b}"
    saved = {node["id"]: node for node in page.saved()["nodes"]}
    for node in workflow["nodes"]:
        assert saved[node["id"]]["widgets_values"] == node["widgets_values"]


def test_three_clicks_lead_from_the_templates_to_a_model(page: Editor) -> None:
    page.open(page.nodes2)  # as a newcomer: with nothing of ours on the canvas
    page.browse_templates()
    page.choose_pack()
    page.choose_template("one_node")
    page.press_run()
    page.wait_for_model()
    page.frame(SAVER)
    assert colorful(page.picture()) > COLORFUL
    figures = page.page.locator(f"{VIEWER} .figures").inner_text()
    assert "triangles" in figures and "1024×1024" in figures


def test_a_reload_brings_the_model_back(page: Editor) -> None:
    saved = page.saved()
    page.open(page.nodes2)
    page.load(saved)
    page.wait_for_model()
    page.frame(SAVER)
    assert colorful(page.picture()) > COLORFUL


def test_every_view_looks_different_and_dragging_turns_the_model(page: Editor) -> None:
    choose = page.page.locator(f"{VIEWER} select")
    seen = {}
    for view in ("lit", "color", "metallic", "roughness", "alpha", "normal", "clay", "checker"):
        choose.select_option(view)
        page.settle()
        seen[view] = page.picture()
    for one, other in combinations(seen, 2):
        assert np.abs(seen[one] - seen[other]).mean() > 0.002, (one, other)
    assert colorful(seen["clay"]) < 0.01 < colorful(seen["checker"])

    choose.select_option("lit")
    before = page.picture()
    page.page.get_by_role("button", name="Wireframe").click()
    page.settle()
    assert np.abs(page.picture() - before).mean() > 0.002
    page.page.get_by_role("button", name="Wireframe").click()
    page.drag(150, 0)
    assert np.abs(page.picture() - before).mean() > 0.005
    page.page.get_by_role("button", name="Reset").click()
    page.settle()
    assert np.abs(page.picture() - before).mean() < 0.002


def test_many_viewers_share_one_webgl_context_and_give_it_back(page: Editor) -> None:
    """The property of the Save GLB node of the tests before names a file to show."""
    files = page.page.evaluate("(id) => app.graph.getNodeById(id).properties.trellisCoreFiles", SAVER)
    for _ in range(2):
        page.page.evaluate("() => app.graph.clear()")
        page.wait_for_contexts(0)
        page.page.evaluate(
            """(files) => {
                for (let i = 0; i < 20; i++) {
                    const node = LiteGraph.createNode("TrellisCoreView3D");
                    node.pos = [(i % 5) * 420, Math.floor(i / 5) * 540];
                    app.graph.add(node);
                    node.onExecuted({ "3d": files });
                }
            }""",
            files,
        )
        page.frame()
        page.wait_for_model(count=20)
        page.wait_for_contexts(1)
    page.page.evaluate("() => app.graph.clear()")
    page.wait_for_contexts(0)


def test_nothing_of_ours_complained(page: Editor) -> None:
    assert not page.complaints
