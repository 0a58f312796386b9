"""The command `trellis2` that installing the package makes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_console_script_is_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    module, function = re.findall(r'^trellis2 = "([\w.]+):(\w+)"$', PROJECT.read_text(encoding="utf-8"), re.MULTILINE)[0]
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)(["--help"])
    assert ended.value.code == 0
    assert "generate" in capsys.readouterr().out
