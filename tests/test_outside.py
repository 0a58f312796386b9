"""The gate for JSON from outside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from trellis_core.errors import InputError, WeightsError
from trellis_core.outside import MAX_DEPTH, MAX_DIGITS, checked, parse_json, parse_object, read_object

LEAVES = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_python_writes_comes_back(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text, "it") == parse_json(b"\xef\xbb\xbf" + text.encode(), "it") == value


@given(st.binary(max_size=60) | st.text('[]{}:,"\\0159.eE+-Nainfu ', max_size=60))
def test_anything_else_is_refused_in_words(text: bytes | str) -> None:
    try:
        parse_json(text, "the body")
    except InputError as error:
        assert str(error).startswith("the body cannot be read as JSON: ") and str(error).endswith(".")


@pytest.mark.parametrize(("text", "reason"), [
    ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested {MAX_DEPTH + 1} deep"),
    ("[" * 3_000_000, "nested 3000000 deep"),
    ('{"a":' * 100_000, "nested 100000 deep"),
    ("9" * 5000, f"5000 characters, more than {MAX_DIGITS}"),
    ("0." + "1" * 5000, "a number has 5002 characters"),
    ("1e999", "the number 1e999 is too large"),
    ("[NaN]", "NaN is not a JSON number"),
    ("-Infinity", "-Infinity is not a JSON number"),
    ('{"a": 1, "b": 2, "a": 3}', "the name 'a' is there twice"),
    ('["\\ud800"]', "not UTF-8"),
    ("\ud800", "not UTF-8"),
    (b'"\xff"', "not UTF-8"),
    ('{"a": "' + '\\"' * 300_000, "Unterminated string"),
    ("", "Expecting value"),
    ("[1]" + " " * 20, "it is 0.0 MB long"),
])  # fmt: skip
def test_bounds(text: bytes | str, reason: str) -> None:
    with pytest.raises(WeightsError, match="cannot be read as JSON") as caught:
        parse_json(text, "config.json", raising=WeightsError, max_bytes=8 if text == "[1]" + " " * 20 else 10**8)
    assert reason in str(caught.value) and len(str(caught.value)) < 300


def test_brackets_inside_texts_do_not_nest() -> None:
    for text in ("[" * 1000, '\\"[{' * 100, "\\"):
        assert parse_json(json.dumps([text]), "it") == [text]
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "it")


def test_objects_and_files(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}', encoding="utf-8")
    assert read_object(file) == parse_object('{"a": 1}', "it") == {"a": 1}
    file.write_text("[1]")
    with pytest.raises(InputError, match="should hold a JSON object, not list"):
        read_object(file)
    with pytest.raises(InputError, match="more than the 0.0 MB that are read"):
        read_object(file, max_bytes=2)
    for missing in (tmp_path, tmp_path / "b.json"):
        with pytest.raises(WeightsError, match="There is no file"):
            read_object(missing, raising=WeightsError)


@dataclass(frozen=True)
class Layer:
    width: Annotated[int, Field(ge=1, le=8)]
    levels: tuple[float, ...] = ()
    even: bool = False

    def __post_init__(self) -> None:
        if self.even and self.width % 2:
            raise ValueError("the width must be even")


def test_values_are_held_to_a_model() -> None:
    assert checked(Layer, {"width": 3, "levels": [1, 2.5], "other": "x"}, "it") == Layer(3, (1.0, 2.5))
    for value, reason in [
        ({"width": "3"}, "\"width\": input should be a valid integer (it is '3')"),
        ({"width": 9}, "less than or equal to 8 (it is 9)"),
        ({"width": 1.0}, "valid integer"),
        ({"width": True}, "valid integer"),
        ({"width": 3, "even": True}, "net.json: the width must be even."),
        ({"width": 3, "even": 1}, "valid boolean"),
        ({"width": 3, "levels": [1, "x" * 1000]}, '"levels.1": input should be a valid number'),
        ({}, '"width": field required'),
        ([1], "should be an object"),
        ({"width": 3, "levels": ["a"] * 9}, "and 5 more"),
    ]:
        with pytest.raises(WeightsError, match=r"net\.json: .*\.$") as caught:
            checked(Layer, value, "net.json", raising=WeightsError)
        assert reason in str(caught.value) and len(str(caught.value)) < 500
