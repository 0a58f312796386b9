"""Workflows that users have: those of this version's templates, and those that every released version could save.

saved/VERSION holds the templates of a released version as the editor stored them, and below api/ what they posted. They are
never changed: a release adds a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Host
from .graphs import bare, defaults, posted

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
SAVED = sorted((Path(__file__).parent / "saved").glob("*/*.json"))


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def known(host: Host) -> dict[str, Any]:
    return host.client.get("/object_info")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_posts_its_api_file(known: dict[str, Any], path: Path) -> None:
    assert posted(_read(path), known) == bare(_read(path.parent / "api" / path.name))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_saved_workflow_posts_what_it_posted(known: dict[str, Any], path: Path) -> None:
    """And defaults of the widgets that were added since, which stand behind those that it knows."""
    then, now = bare(_read(path.parent / "api" / path.name)), posted(_read(path), known)
    assert set(now) == set(then)
    for key, node in then.items():
        assert now[key]["class_type"] == node["class_type"]
        assert now[key]["inputs"] == {**defaults(known[node["class_type"]]), **node["inputs"]}


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_host_takes_a_saved_prompt(host: Host, path: Path) -> None:
    assert host.client.objections(bare(_read(path.parent / "api" / path.name))) == {}
