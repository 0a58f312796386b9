"""A few of the kills of `python -m tests.kill_trial`, which does a hundred of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill_trial import hold


@pytest.mark.parametrize(
    ("name", "kills", "seconds"), [("generate", 2, 6.0), ("service", 2, 1.0), ("training", 1, 15.0), ("download", 3, 3.0)]
)
def test_a_kill_leaves_nothing_half_and_loses_nothing(name: str, kills: int, seconds: float, tmp_path: Path) -> None:
    needed = {"service": "aiohttp", "training": "peft", "download": "huggingface_hub"}
    pytest.importorskip(needed.get(name, "trellis_core"))
    hold(name, kills, 1, tmp_path, seconds)
