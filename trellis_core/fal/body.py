"""The body of a request, read so that a long data URI costs its own length and nothing else does.

Everything in a body but data URIs is small, or refused. So those are cut out before the JSON is read, each leaving a short
name in its place, and are looked at again only by who decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..outside import parse_object
from .errors import LONGEST_ECHO, FalError, echo

MAX_JSON = 1 << 20
"""Bytes of a body without its data URIs."""
MAX_VALUES = 50_000
"""Values in a JSON text, give or take: a megabyte of empty lists keeps Python's reader, and so everybody, busy for long."""
_BEGIN = b'"data:'


@dataclass(frozen=True)
class Body:
    """A JSON body in which every text that begins with "data:" stands as "data:#0", "data:#1", ...

    Attributes:
        text: the JSON.
        data: those texts by their names, as they stood in the JSON.
    """

    text: bytes
    data: Mapping[str, memoryview]

    def read(self, most: int) -> dict[str, Any]:
        """The object in it.

        Raises:
            FalError: 422, it is none, or the text is longer than `most` bytes.
        """

        def refuse(why: str) -> FalError:
            return FalError(422, [{"loc": ["body"], "msg": why, "type": "json_invalid"}])

        if len(self.text) > most:
            raise too_long(most)
        return read_object(self.text, refuse, most)

    def whole(self, value: str) -> str | memoryview:
        """The data URI that `value` names, else `value`."""
        return self.data.get(value, value)

    def shown(self, value: Any) -> Any:
        """`value` short enough to be repeated to who sent it."""
        if isinstance(value, str) and value in self.data:
            value = bytes(self.data[value][: LONGEST_ECHO + 1]).decode("utf-8", "replace")
        return echo(value)


def read_object(text: bytes, raising: Callable[[str], Exception], most: int) -> dict[str, Any]:
    """The object in a body of at most `most` bytes and `MAX_VALUES` values; `raising` makes the error of its message."""
    if text.count(b",") > MAX_VALUES:
        raise raising(f"The body holds more than {MAX_VALUES} values.")
    return parse_object(text, "The body", raising=raising, max_bytes=most)


def split(body: bytes) -> Body:
    """Cut the data URIs out of a body."""
    view = memoryview(body)
    kept: list[bytes] = []
    data: dict[str, memoryview] = {}
    done = 0
    while (begin := body.find(_BEGIN, done)) >= 0:
        end = body.find(b'"', begin + len(_BEGIN))
        if end < 0:
            break
        name = f"data:#{len(data)}"
        data[name] = view[begin + 1 : end]
        kept += [body[done : begin + 1], name.encode()]
        done = end
    return Body(b"".join([*kept, body[done:]]), data)


def too_long(most: int) -> FalError:
    """For a body with too much in it besides data URIs."""
    text = f"The body is larger than {most} bytes without its data URIs: upload files, and send their addresses."
    return FalError(413, text)
