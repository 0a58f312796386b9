"""Names that users give to files."""

from __future__ import annotations

from datetime import datetime

import pytest

from trellis_core.errors import InputError
from trellis_core.file_names import spelled_out

NOW = datetime(2026, 3, 7, 9, 5, 8)


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("3d/%date:yyyy-MM-dd%/chair", "3d/2026-03-07/chair"),
        ("%date:yyMMdd_hhmmss%", "260307_090508"),
        ("a %date:d.M.yyyy h:m:s% b", "a 7.3.2026 9:5:8 b"),
        ("%year%/plain", "%year%/plain"),
        ("Stühle/椅子 🪑", "Stühle/椅子 🪑"),
    ],
)
def test_dates_are_filled_in_and_the_rest_stays(prefix: str, name: str) -> None:
    assert spelled_out(prefix, NOW) == name


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("", "names no file"), ("  ", "names no file"), ("folder/", "names no file"), ("folder\\", "names no file"),
        (".", "names no file"), ("a/..", "names no file"), ("a\0b", "not printed"), ("a\nb", "not printed"),
        ("x" * 300, "too long"), ("ü" * 120, "too long"), ("y" * 256 + "/x", "too long"), ("a/" + "x" * 216, "too long"),
    ],
)  # fmt: skip
def test_what_no_file_can_be_called(prefix: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        spelled_out(prefix, NOW)
