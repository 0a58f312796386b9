"""What users read about the nodes agrees with the nodes: help pages, translations, workflows. Needs no host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.make_help import page, pages
from scripts.make_workflows import SCHEMAS, editor_workflow

ROOT = Path(__file__).parents[2]
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
WORKFLOWS = sorted((ROOT / "example_workflows" / "api").glob("*.json"))


def test_pages_say_what_the_nodes_say() -> None:
    """In every language: names, ranges, defaults and tooltips are those of the nodes and of their translations."""
    wrong = [path for path, text in pages() if not path.exists() or path.read_text() != text]
    assert not wrong, f"python scripts/make_help.py writes {[str(path.relative_to(ROOT)) for path in wrong]} anew"


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_a_page_in_every_language_and_none_too_many(language: str) -> None:
    found = ROOT.joinpath("web", "docs").glob("*.md" if language == "en" else f"*/{language}.md")
    assert {path.stem if language == "en" else path.parent.name for path in found} == set(SCHEMAS)


def test_a_page_names_every_input_with_its_range() -> None:
    text = page("TrellisCoreSamplingSettings", "en")
    assert "- **steps** (`sampling_steps`): Steps of the sampler." in text and "*1 to 50; Default `12`.*" in text
    assert "|" not in text, "tables do not fit the help panel"


def test_labels_of_a_node_differ_within_what_the_editor_shows() -> None:
    """Nodes 2.0 cuts labels off; those of the kept nodes of version 0.1 are as they were."""
    for node, said in json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text()).items():
        labels = [entry["name"] for entry in said["inputs"].values()]
        if not SCHEMAS[node]["deprecated"]:
            assert len({label[:12] for label in labels}) == len(labels), (node, labels)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_names_everything(language: str) -> None:
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())
    assert set(nodes) == set(SCHEMAS)
    for node, schema in SCHEMAS.items():
        assert set(nodes[node]["inputs"]) == set(schema["inputs"])
        assert all(entry["name"] for entry in nodes[node]["inputs"].values())
        if language != "en":  # whose words are those of the nodes
            assert nodes[node]["description"] and all(entry["tooltip"] for entry in nodes[node]["inputs"].values())
            assert all(entry["name"] and entry["tooltip"] for entry in nodes[node]["outputs"].values())
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
