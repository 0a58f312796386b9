"""What comes in from outside: every JSON text passes here, and is held to a typed model before anything is made of it.

A text may be nested `MAX_DEPTH` deep, its numbers may have `MAX_DIGITS` characters, and it may not hold NaN, infinity, half
a character or a name twice. Within these bounds Python's own reader neither fails nor takes long, and no two readers
understand the text differently.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from .errors import InputError

MAX_BYTES = 16 << 20
"""Longest text: read, it may take thirty times this."""
MAX_DEPTH = 64
MAX_DIGITS = 128
SHOWN = 4
"""Faults that a message names."""

_STRING = re.compile(rb'"[^"\\]*(?:\\(?:.|\Z)[^"\\]*)*(?:"|\Z)', re.DOTALL)
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_STEP = np.zeros(256, np.int32)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1

T = TypeVar("T")
Raising = Callable[[str], Exception]
"""A class of errors, or what makes one of a message."""


def parse_json(text: bytes | str, where: str, *, raising: Raising = InputError, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text.

    Args:
        text: bytes are UTF-8, with or without a byte order mark.
        where: what the text is, for the message: a path, "The body", ...
        raising: makes the error of its message.
        max_bytes: longest text accepted.

    Raises:
        raising: it is no JSON, or exceeds one of the bounds; says which.
    """
    try:
        data = text.encode() if isinstance(text, str) else bytes(text)
        if len(data) > max_bytes:
            raise ValueError(f"it is {len(data) / 1e6:,.1f} MB long, more than the {max_bytes / 1e6:,.1f} MB that are read")
        if (depth := _depth(data)) > MAX_DEPTH:
            raise ValueError(f"it is nested {depth} deep, more than {MAX_DEPTH}")
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_int=_whole, parse_float=_real, parse_constant=_no_number, object_pairs_hook=_object,
        )  # fmt: skip
        if _HALF_CHARACTER.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise raising(f"{where} cannot be read as JSON: it is not UTF-8 text.") from None
    except ValueError as error:
        raise raising(f"{where} cannot be read as JSON: {error}.") from None
    return value


def parse_object(text: bytes | str, where: str, *, raising: Raising = InputError, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """`parse_json` of a text that must be an object."""
    value = parse_json(text, where, raising=raising, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise raising(f"{where} should hold a JSON object, not {type(value).__name__}.")
    return value


def read_object(path: Path, *, raising: Raising = InputError, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """`parse_object` of a file, which may also be missing or not readable."""
    try:
        if not path.is_file():
            raise raising(f"There is no file {path}.")
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise raising(f"{path} cannot be opened: {error.strerror}.") from None
    return parse_object(text, str(path), raising=raising, max_bytes=max_bytes)


def checked(kind: type[T], value: Any, where: str, *, raising: Raising = InputError) -> T:
    """`value` as a `kind`, whose annotations say what may be in it.

    Args:
        kind: a pydantic model, a dataclass, or another annotated type. Nothing is converted: "3" is no number. Names that
            it does not have are left aside.
        value: as it came from JSON.

    Raises:
        raising: names the first faults and where in the value they are.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)  # strict, but lists may be tuples
    except ValidationError as error:
        raise raising(f"{where}: {_in_words(error)}.") from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _in_words(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    told = []
    for fault in faults[:SHOWN]:
        text = fault["msg"].removeprefix("Value error, ")
        place = ".".join(str(part)[:80] for part in fault["loc"])
        given = "" if fault["type"] in ("missing", "value_error") else f" (it is {reprlib.repr(fault['input'])})"
        told.append(f'"{place}": {text[:1].lower()}{text[1:]}{given}' if place else f"{text}{given}")
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(told) + more


def _depth(data: bytes) -> int:
    """How deep brackets outside strings are nested."""
    steps = _STEP[np.frombuffer(_STRING.sub(b"", data), np.uint8)]
    return int(np.cumsum(steps[steps != 0]).max(initial=0))


def _whole(text: str) -> int:
    return int(_short(text))


def _real(text: str) -> float:
    if not isfinite(number := float(_short(text))):
        raise ValueError(f"the number {text} is too large")
    return number


def _short(text: str) -> str:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} characters, more than {MAX_DIGITS}")
    return text


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {reprlib.repr(next(n for n in made if names.count(n) > 1))} is there twice")
    return made
