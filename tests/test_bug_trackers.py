"""docs/bug_trackers.md names a test for every symptom, and the tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = re.compile(r"(\[[^]]+ \d+\]\(https://github.com/\S+/\d+\)(, )?)+")
ROWS = [line for line in (ROOT / "docs" / "bug_trackers.md").read_text().splitlines() if line.count("|") == 4 and "`" in line]


def test_every_symptom_is_held_by_a_test_that_exists() -> None:
    missing = []
    for row in ROWS:
        _, symptom, reported, held, _ = (cell.strip() for cell in row.split("|"))
        assert symptom and (
            reported == "ours" or re.fullmatch(r"(\[[^]]+ \d+\]\(https://github.com/\S+/\d+\)(, )?)+", reported)
        ), row
        path, _, name = held.strip("`").partition("::")
        tree = ast.parse((ROOT / path).read_text())
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(held)
    assert not missing


def test_there_are_at_least_forty() -> None:
    assert len({row.split("|")[1] for row in ROWS}) >= 40
