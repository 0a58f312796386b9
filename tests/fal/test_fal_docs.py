"""The page about the service's limits says what they are."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from trellis_core.fal.service.config import GB, KB, MB, Limits, ServiceConfig
from trellis_core.fal.service.serve import add_arguments

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
ROWS = [re.split(r" *\| *", line)[1:5] for line in PAGE.splitlines() if line.startswith("| ")][1:]
BY_NAME = {name: row for row in ROWS for name in re.findall(r"`(\w+)`", row[3])}
ELSEWHERE = {"data", "keys", "public_url", "prefix", "limits", "webhook_pauses"}


@pytest.mark.parametrize("field", fields(Limits), ids=lambda field: field.name)
def test_every_limit_is_in_the_table_with_its_value(field) -> None:  # type: ignore[no-untyped-def]
    said, value = BY_NAME[field.name][1], field.default
    sizes = [f"{value // unit} {name}" for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "kB")) if value % unit == 0]
    assert any(word in said for word in [*sizes[:1], f"{value:g}"]), said


def test_every_setting_of_a_service_and_every_option_for_one_is_in_the_table() -> None:
    assert {field.name for field in fields(ServiceConfig)} - ELSEWHERE <= BY_NAME.keys()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    told = set(re.findall(r"`(--[\w-]+)", PAGE))
    assert told <= options | {"--code"}
    assert options - told == {
        "--help", "--host", "--port", "--key", "--data", "--public-url", "--weights", "--device", "--matting",
    }  # fmt: skip
