"""A log that strangers can neither flood nor write to a terminal with."""

from __future__ import annotations

import logging
import re
import time

BURST = 10
"""Lines of one kind in `WINDOW` seconds; more are only counted."""
WINDOW = 60.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """With what moves a terminal's cursor, or begins a line, written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Escaping(logging.Formatter):
    """Every record is one line; those of a traceback are the only others."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(super().formatMessage(record))

    def formatException(self, ei) -> str:  # type: ignore[no-untyped-def]  # noqa: N802
        return "\n".join(map(escaped, super().formatException(ei).splitlines()))


class Sparing(logging.Filter):
    """Lets `BURST` records of one kind (same place, same text before it is filled in) pass in `WINDOW` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.name, str(record.msg)[:200]
        now = time.monotonic()
        since, count = self._seen.get(kind, (now, 0))
        if now - since > WINDOW:
            if count > BURST:
                record.msg = f"{record.msg} (and {count - BURST} more of this kind before)"
            since, count = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[kind] = since, count + 1
        return count < BURST


def set_up() -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Escaping("%(levelname)s %(message)s"))
    handler.addFilter(Sparing())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
