"""Reading requests and writing answers with aiohttp: what all handlers share."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from ....outside import parse_object
from ...body import read_object
from ...endpoints import ONCE
from ...errors import FalError, not_found
from ..config import Limits
from ..pools import Pool

CHUNK = 1 << 18
EXPECTS = "expects"
"""Set on a request whose client waits to be told that its body is wanted."""


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
        proxied: whether it came through the proxy.
    """

    request: web.BaseRequest
    path: str
    query: dict[str, str]
    origin: str
    limits: Limits
    owner: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    proxied: bool = False

    @property
    def content_type(self) -> str:
        """Type of the body, without parameters."""
        return self.request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """The body, piece by piece.

        Raises:
            FalError: 413 it is longer than `limit`; 400 it stops, comes slower than anybody sends, or is garbled.
        """
        request, limits = self.request, self.limits
        if (request.content_length or 0) > limit:
            raise FalError(413, f"The body is larger than {limit} bytes.")
        if request.pop(EXPECTS, False) and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        began, done = time.monotonic(), 0
        while True:
            left = began + limits.silence_seconds + done / limits.slowest - time.monotonic()
            try:
                chunk = await asyncio.wait_for(request.content.read(CHUNK), max(0.01, min(limits.silence_seconds, left)))
            except asyncio.TimeoutError:
                raise FalError(400, "The body stopped half way, or came too slowly.", "bad_request") from None
            except (web.RequestPayloadError, HttpProcessingError):
                raise FalError(400, "The body is not sent as its headers say.", "bad_request") from None
            if not chunk:
                return
            done += len(chunk)
            if done > limit:
                raise FalError(413, f"The body is larger than {limit} bytes.")
            yield chunk

    async def json(self, parsing: Pool, limit: int) -> dict[str, Any]:
        """A small JSON object; an empty body is an empty object."""
        body = b"".join([chunk async for chunk in self.chunks(limit)]) or b"{}"

        def refuse(why: str) -> FalError:
            return FalError(400, why, "bad_request")

        def parse() -> dict[str, Any]:
            return read_object(body, refuse, limit)

        return await parsing.run(self.owner, parse)

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

    def once(self) -> str:
        """The client's mark of a job that is not to be made twice, "" without one."""
        mark = self.request.headers.get(ONCE, "")
        if mark and not re.fullmatch(r"[!-~]{1,200}", mark):
            raise FalError(400, f"{ONCE} must be 1 to 200 visible characters of ASCII.", "bad_request")
        return mark

    def lifetime(self) -> float | None:
        """Seconds that the client wants its files kept, from its lifecycle header; None for as long as it may be."""
        headers = self.request.headers
        text = headers.get("X-Fal-Object-Lifecycle-Preference") or headers.get("X-Fal-Object-Lifecycle") or "{}"

        def refuse(_: str) -> FalError:
            return FalError(400, "The lifecycle header is not valid.", "bad_request")

        seconds = parse_object(text, "The header", raising=refuse).get("expiration_duration_seconds")
        if seconds is None:
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise refuse("")
        return min(max(float(seconds), 0.0), 1e10)


class FileAnswer(web.FileResponse):
    """A file, whole or the range that is asked for; who reads it slower than anybody does is cut off after `seconds`."""

    def __init__(self, path: Path, headers: dict[str, str], seconds: float) -> None:
        super().__init__(path, headers=headers)
        self._seconds = seconds

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            return await asyncio.wait_for(super().prepare(request), self._seconds)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client reads too slowly") from None


class Events:
    """A stream of server-sent events to one client, who is cut off when it does not read."""

    def __init__(self, call: Call, headers: dict[str, str]) -> None:
        more = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._call, self.response = call, web.StreamResponse(headers=more | headers)

    async def open(self) -> None:
        await self.response.prepare(self._call.request)

    async def send(self, value: Any) -> None:
        """One event. Raises ConnectionError: nobody reads it."""
        try:
            data = f"data: {json.dumps(value)}\n\n".encode()
            await asyncio.wait_for(self.response.write(data), self._call.limits.silence_seconds)
        except asyncio.TimeoutError:
            raise ConnectionResetError("the client does not read") from None


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """What answers a method at a path. `public`: without a check of the key. `body`: "json", or "file" for any type."""

    handler: Handler
    public: bool
    body: str


class Routes:
    """Patterns of paths and methods, with `{name}` for a segment and `{name*}` for one or more."""

    def __init__(self) -> None:
        self._table: list[tuple[re.Pattern[str], dict[str, Route]]] = []

    def add(self, methods: str, pattern: str, handler: Handler, *, public: bool = False, body: str = "json") -> None:
        """See `Route`."""
        escaped = re.sub(r"\{(\w+)\*\}", r"(?P<\1>[^?#]+?)", pattern)
        escaped = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/?#]+)", escaped)
        self._table.append((re.compile(escaped), dict.fromkeys(methods.split(), Route(handler, public, body))))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route, and the parts of the path.

        Raises:
            FalError: 404 no such path; 405 not with this method.
        """
        wrong: set[str] = set()
        for pattern, entry in self._table:
            if match := pattern.fullmatch(path):
                if method in entry:
                    return entry[method], match.groupdict()
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
