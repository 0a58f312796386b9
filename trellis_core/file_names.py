"""Names of files that users give: dates filled in, and what no file can be called refused in words."""

from __future__ import annotations

import os
import re
from datetime import datetime

from .errors import InputError
from .files import bad_on_windows

_DATE = re.compile(r"%date:([^%]+)%")
_PART = re.compile("yyyy|yy|MM|M|dd|d|hh|h|mm|m|ss|s")
LONGEST_NAME = 255
"""Bytes that a file's name may have on all common systems."""
_ROOM = 40
"""Bytes that are put behind a name at most: stage, number and ending."""


def spelled_out(prefix: str, now: datetime | None = None) -> str:
    """The start of a file's name with %date:...% replaced, as the editor does it for the host's own nodes.

    Args:
        prefix: folders and a name, with "/" between them. yyyy, yy, MM, M, dd, d, hh, h (of 24), mm, m, ss and s are parts of
            a date.

    Raises:
        InputError: no file can be called so; says why.
    """
    now = now or datetime.now()
    text = _DATE.sub(lambda found: _PART.sub(lambda part: _spelled(part[0], now), found[1]), prefix.strip())
    *folders, name = text.replace("\\", "/").split("/")
    if not name or set(name) == {"."}:
        raise InputError(f'"{prefix}" names no file: write a name, behind the last "/" where there are folders.')
    if any(not character.isprintable() for character in text):
        raise InputError("The name holds a line break or another character that is not printed: take it out.")
    for part, room in (*((folder, 0) for folder in folders), (name, _ROOM)):
        if len(os.fsencode(part)) + room > LONGEST_NAME:
            raise InputError(f'The name is too long: "{part[:24]}..." may have {LONGEST_NAME - room} bytes.')
        if os.name == "nt" and part and (why := bad_on_windows(part)):
            raise InputError(f'"{part}" cannot be in a file\'s name: {why}.')
    return text


def _spelled(part: str, now: datetime) -> str:
    value = {"y": now.year, "M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}[part[0]]
    return f"{value:04}"[-len(part) :] if len(part) > 1 else str(value)
