"""Reading requests and writing answers with aiohttp: what all handlers share."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ..errors import FalError, not_found

CHUNK = 1 << 18
SILENCE = 60.0
"""Seconds that a body may pause before it is given up."""


@dataclass
class Call:
    """A request to the service, wherever the service is mounted.

    Attributes:
        request: as the host gives it. Its path is not to be looked at: the call may have come through the proxy.
        path: below the service's address, with a leading "/".
        query: of the path.
        origin: the service's own address, as the client sees it, without a trailing "/".
        owner: fingerprint of its key; "" before that was checked.
        parts: what the route's pattern found in the path.
    """

    request: web.Request
    path: str
    query: dict[str, str]
    origin: str
    owner: str = ""
    parts: dict[str, str] = field(default_factory=dict)

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            FalError: 413, it is longer than `limit`.
        """
        return b"".join([chunk async for chunk in self.chunks(limit)])

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """The body, piece by piece; the same error, and 400 where nothing comes for `SILENCE` seconds."""
        done = 0
        if (self.request.content_length or 0) > limit:
            raise FalError(413, f"The body is larger than {limit} bytes.")
        try:
            while chunk := await asyncio.wait_for(self.request.content.read(CHUNK), SILENCE):
                done += len(chunk)
                if done > limit:
                    raise FalError(413, f"The body is larger than {limit} bytes.")
                yield chunk
        except asyncio.TimeoutError:
            raise FalError(400, f"The body stopped half way: nothing came for {SILENCE:g} seconds.", "bad_request") from None

    async def json(self, limit: int = 1 << 20) -> dict[str, Any]:
        """A small JSON object; an empty body is an empty object."""
        try:
            values = json.loads(await self.body(limit) or b"{}")
        except (ValueError, RecursionError):
            raise FalError(400, "The body is not valid JSON.", "bad_request") from None
        if not isinstance(values, dict):
            raise FalError(400, "The body must be a JSON object.", "bad_request")
        return values

    def seconds(self, header: str) -> float | None:
        """A header that holds a number of seconds above 0, None without it."""
        text = self.request.headers.get(header)
        if text is None:
            return None
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e8:
            raise FalError(400, f"{header} must be a number of seconds above 0.", "bad_request")
        return seconds

    def lifetime(self) -> float | None:
        """Seconds that the client wants its files kept, from its lifecycle header; None for as long as it may be."""
        headers = self.request.headers
        text = headers.get("X-Fal-Object-Lifecycle-Preference") or headers.get("X-Fal-Object-Lifecycle")
        try:
            seconds = json.loads(text or "{}").get("expiration_duration_seconds")
            return None if seconds is None else float(seconds)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FalError(400, "The lifecycle header is not valid.", "bad_request") from None


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Routes:
    """Patterns of paths and methods, with `{name}` for a segment and `{name*}` for one or more."""

    def __init__(self) -> None:
        self._table: list[tuple[re.Pattern[str], dict[str, tuple[Handler, bool]]]] = []

    def add(self, methods: str, pattern: str, handler: Handler, *, public: bool = False) -> None:
        """`public` handlers are called without a check of the key."""
        escaped = re.sub(r"\{(\w+)\*\}", r"(?P<\1>[^?#]+?)", pattern)
        escaped = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/?#]+)", escaped)
        entry = dict.fromkeys(methods.split(), (handler, public))
        self._table.append((re.compile(escaped), entry))

    def find(self, method: str, path: str) -> tuple[Handler, bool, dict[str, str]]:
        """Handler, whether it is public, and the parts of the path.

        Raises:
            FalError: 404 no such path; 405 not with this method.
        """
        wrong: set[str] = set()
        for pattern, entry in self._table:
            if match := pattern.fullmatch(path):
                if method in entry:
                    return *entry[method], match.groupdict()
                wrong |= set(entry)
        if wrong:
            raise FalError(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(wrong))})
        raise not_found("The address")


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """JSON."""
    return web.json_response(body, status=status, headers=headers)


def failure(error: FalError) -> web.Response:
    """An error as JSON."""
    return answer(error.body, error.status, error.headers)
