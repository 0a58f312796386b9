"""What users read about the nodes agrees with the nodes: help pages, translations, workflows. Needs no host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.make_workflows import SCHEMAS, editor_workflow
from trellis_core.settings import GenerationSettings

ROOT = Path(__file__).parents[2]
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
WORKFLOWS = sorted((ROOT / "example_workflows" / "api").glob("*.json"))


def _rows(page: str) -> dict[str, list[str]]:
    """The cells of a help page's table of inputs, by input."""
    table = page.split("## Inputs")[1].split("## Outputs")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| `")]
    return {re.match(r"`(\w+)`", row[0])[1]: row for row in (([row[0].lstrip("| "), *row[1:]]) for row in rows)}


def _value(text: str) -> Any:
    text = text.strip("`")
    words = {"on": True, "off": False}
    return words[text] if text in words else float(text) if re.fullmatch(r"-?[\d.]+", text) else text


@pytest.mark.parametrize("node", SCHEMAS)
def test_a_page_tells_of_every_input_as_it_is(node: str) -> None:
    rows = _rows((ROOT / "web" / "docs" / f"{node}.md").read_text())
    inputs = SCHEMAS[node]["inputs"]
    assert list(rows) == list(inputs)
    for name, spec in inputs.items():
        _, _, values, default, words = rows[name]
        assert words
        if "max" in spec:
            assert [float(end) for end in values.split(" to ")] == [float(spec["min"]), float(spec["max"])]
        if "options" in spec:
            assert re.findall("`([^`]+)`", values) == spec["options"]
        if isinstance(spec.get("default"), (bool, int, float)):
            assert _value(default) == spec["default"]
        elif spec.get("default"):
            assert default == f"`{spec['default']}`"


def test_pages_say_what_settings_say() -> None:
    for node in SCHEMAS:
        for name, row in _rows((ROOT / "web" / "docs" / f"{node}.md").read_text()).items():
            field = GenerationSettings.model_fields.get(name)
            if field is None or name in ("seed", "cascade"):  # these have words of their own on the nodes
                continue
            assert row[4].startswith(field.description)
            assert _value(row[3]) == field.default


def test_there_is_no_page_too_many() -> None:
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(SCHEMAS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_names_everything(language: str) -> None:
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())
    assert set(nodes) == set(SCHEMAS)
    for node, schema in SCHEMAS.items():
        assert set(nodes[node]["inputs"]) == set(schema["inputs"])
        assert all(entry["name"] for entry in nodes[node]["inputs"].values())
        if "outputs" in nodes[node]:
            assert len(nodes[node]["outputs"]) == len(schema["outputs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_editor_workflows_are_made_from_the_api_ones(path: Path) -> None:
    prompt = json.loads(path.read_text())
    stored = json.loads((path.parents[1] / path.name).read_text())
    assert stored == editor_workflow(path.stem, prompt)
    for node in stored["nodes"]:
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                link = next(link for link in stored["links"] if link[0] == socket["link"])
                assert link[3:5] == [node["id"], slot]
                assert prompt[str(node["id"])]["inputs"][socket["name"]] == [str(link[1]), link[2]]
