"""Connections of the service's own server: how many there may be, and how long each may keep silent (docs/method/fal.md).

A client that is slow costs a connection and nothing else; where connections become scarce, those that have kept silent for
longest give way. Bodies are never unpacked, and what nobody reads is thrown away without being looked at.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..config import Limits
from .routes import EXPECTS, FileAnswer

LINGER = 2.0
"""Seconds in which a client that is refused may still send, so that it reads the answer."""
TICK = 0.5

_log = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connections(web.Server):
    """A server for aiohttp's runners. `close` it with them."""

    def __init__(self, handle: Handle, limits: Limits) -> None:
        super().__init__(self._answer)
        self._handle, self.limits = handle, limits
        self.most = _most(limits.connections)
        self.open: dict[Connection, None] = {}
        self.per_address: Counter[str] = Counter()
        self._ticking: asyncio.TimerHandle | None = None
        self._tick()

    def __call__(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()

    def admit(self, new: Connection) -> bool:
        """Whether there is room for one more, perhaps that of another one."""
        self.open[new] = None
        self.per_address[new.address] += 1
        crowd = None
        if self.per_address[new.address] > self.limits.connections_per_address:
            crowd = [one for one in self.open if one.address == new.address and one is not new]
        elif len(self.open) > self.most:
            fullest = self.per_address.most_common(1)[0][0]
            crowd = [one for one in self.open if one.address == fullest and one is not new]
        if crowd is None:
            return True
        silent = min((one for one in crowd if one.is_silent), key=lambda one: one.heard, default=None)
        if silent is not None:
            silent.cut()
        return silent is not None

    def forget(self, one: Connection) -> None:
        if one in self.open:
            del self.open[one]
            self.per_address[one.address] -= 1
            if not self.per_address[one.address]:
                del self.per_address[one.address]

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request = request
        if request.headers.get("Expect", "").lower() == "100-continue":
            request[EXPECTS] = True
        answer = await self._handle(request)
        if (connection.hurries or not request.content.is_eof()) and not answer.prepared:
            answer.force_close()
        return answer

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for one in [one for one in self.open if one.request is None and one.deadline < loop.time()]:
            one.cut()
        self._ticking = loop.call_later(TICK, self._tick)


class Connection(web.RequestHandler):
    """One connection, with deadlines for what its client has to do.

    Attributes:
        request: that is being answered, None while one is waited for.
        heard: when something came last. deadline: by which a whole request has to be here.
        hurries: whether its client sends requests without waiting for answers. No proper client does; it gets one answer.
    """

    def __init__(self, server: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, access_log=None, auto_decompress=False, lingering_time=0, logger=_log)
        self._server, self._limits, self._clock = server, server.limits, loop.time
        self.request: web.BaseRequest | None = None
        self.address = ""
        self.heard = self.deadline = 0.0
        self.hurries = self._begun = self._discarding = False
        self._gone = asyncio.Event()

    @property
    def is_silent(self) -> bool:
        """Whether it is the client's turn to say something."""
        return self.request is None or not self.request.content.is_eof()

    def cut(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.heard = self._clock()
        self.deadline = self.heard + self._limits.idle_seconds
        peer = transport.get_extra_info("peername")
        self.address = _network(peer[0]) if peer else ""
        if not self._server.admit(self):
            self.cut()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.forget(self)
        self._gone.set()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._gone.set()
        super().eof_received()

    def data_received(self, data: bytes) -> None:
        self.heard = self._clock()
        if self._discarding:
            return
        if self.request is None and not self._begun:
            self._begun = True
            self.deadline = self.heard + self._limits.head_seconds
        super().data_received(data)
        self.hurries |= len(self._messages) > 1

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        sending = super().finish_response(request, resp, start_time)
        if isinstance(resp, FileAnswer):  # it has a time limit of its own
            done = await sending
        else:
            try:
                done = await asyncio.wait_for(sending, self._limits.silence_seconds)
            except asyncio.TimeoutError:
                self.cut()
                done = resp, True
        if not request.content.is_eof():
            await self._discard()
        self.request, self._begun = None, False
        self.heard = self._clock()
        self.deadline = self.heard + self._limits.idle_seconds
        return done

    async def _discard(self) -> None:
        """Take what is still coming and throw it away unseen, for a moment: the client reads no answer while it sends."""
        self._discarding = True
        if (transport := self.transport) is None or transport.is_closing():
            return
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        try:
            await asyncio.wait_for(self._gone.wait(), LINGER)
        except asyncio.TimeoutError:
            self.cut()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What could not be parsed. Not logged: it says nothing about the service."""
        if status >= 500:
            _log.error("A request could not be answered.", exc_info=exc)
        text = "The request cannot be parsed." if status < 500 else "Internal server error"
        answer = web.json_response({"detail": text, "error_type": "bad_request"}, status=status)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **more: Any) -> None:
        _log.debug(*args, **more)


def _network(address: str) -> str:
    """An address, or of IPv6 the network that one client may have all of."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 and not ip.is_loopback else str(ip)


def _most(wanted: int) -> int:
    """As many connections as the system allows descriptors for, with some left for files."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return wanted if soft == resource.RLIM_INFINITY else max(16, min(wanted, soft * 2 // 3 - 64))
    except (ImportError, ValueError):
        return wanted
