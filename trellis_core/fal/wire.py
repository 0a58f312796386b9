"""Talking HTTP: through the proxy that the environment names, and within bounded time and size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver

from ..errors import InputError
from ..fetch import check_url, is_public
from .answers import Answer, Gone, NotConnected, Odd, Unanswered, read, shown

BIGGEST_ANSWER = 4 << 20
GONE_ASKS = 4
"""How often a job has to be missing, in a row, before it is believed to be gone."""
LONGEST_PAUSE = 10.0
LEAST = 1 << 16


@dataclass(frozen=True)
class Pace:
    """Seconds.

    Attributes:
        poll: between two questions about a job. patience: without any sensible answer, after which it is left alone.
        upload: the same while a file is sent, when no job is at stake yet.
        answer: for a whole answer, however it trickles. submit: the same for a new job. cancel: for taking a job back.
        silence: in which at least `LEAST` bytes of a file must come.
    """

    poll: float = 0.7
    patience: float = 300.0
    upload: float = 30.0
    answer: float = 30.0
    submit: float = 120.0
    cancel: float = 5.0
    silence: float = 60.0


class Patience:
    """Asking again: later each time, as late as the other side asks for, and not for ever."""

    def __init__(self, pace: Pace, about: str, longest: float | None = None) -> None:
        self._pace, self._about, self._longest = pace, about, pace.patience if longest is None else longest
        self._gone = 0
        self.heard()

    def heard(self) -> None:
        """There was a sensible answer."""
        self._since, self._pause, self._gone = asyncio.get_running_loop().time(), self._pace.poll, 0

    async def after(self, problem: Odd) -> None:
        """Wait before the next question.

        Raises:
            Gone: the API has said so often enough. Unanswered: it was asked for too long.
        """
        self._gone = self._gone + 1 if problem.gone else 0
        if self._gone >= GONE_ASKS:
            raise Gone(f"The API does not have {self._about}: the request id is wrong or too old.")
        pause = max(self._pause, problem.wait)
        silent = asyncio.get_running_loop().time() - self._since
        if silent + pause > self._longest:
            asks = f" It asks to be left alone for {problem.wait:.0f} seconds." if problem.wait > self._pause else ""
            raise Unanswered(
                f"There was no sensible answer about {self._about} for {silent:.0f} seconds ({problem}).{asks} The job may go "
                "on and is kept: run this again, and it is asked for again. Nothing is submitted, or paid, twice."
            )
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        await asyncio.sleep(pause)


def proxy_for(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for an address.

    Raises:
        InputError: it is of a kind that this program does not speak.
    """
    parts, known = urlsplit(url), getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise InputError(f"The proxy {shown(proxy)} cannot be used: only http:// and https:// proxies can.")
    return proxy


@asynccontextmanager
async def session(public_but: Collection[str] | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections. With `public_but`, only to public hosts and these ("name:port"), unless a proxy does the connecting."""
    resolver = None if public_but is None else _PublicResolver(public_but)
    connector = aiohttp.TCPConnector(resolver=resolver)
    headers = {"User-Agent": "trellis-core", "Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False) as opened:
        yield opened


def allow(url: str, public_but: Collection[str]) -> None:
    """Check an address that the API has named. Names are checked when they are looked up.

    Raises:
        Odd: it is none, or leads into a private network.
    """
    try:
        parts = check_url(url)
    except InputError as error:
        raise Odd(f"the address it gives is of no use. {error}") from None
    host = str(parts.hostname)
    trusted = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}" in public_but
    if not trusted and (host == "localhost" or (_is_address(host) and not is_public(host))):
        raise Odd(f"it names {host}, which is not a public host")


async def ask(
    opened: aiohttp.ClientSession, method: str, url: str, *, within: float, headers: Mapping[str, str], **body: Any
) -> Answer:
    """One question and its whole answer. Redirects are not followed.

    Raises:
        NotConnected: nothing was sent. Odd: the connection broke, the answer did not come in time, or is far too long.
    """
    timeout, proxy = aiohttp.ClientTimeout(total=within), proxy_for(url)
    try:
        async with opened.request(
            method, url, headers=headers, allow_redirects=False, proxy=proxy, timeout=timeout, **body
        ) as reply:
            text = await _read_body(reply)
            return Answer(reply.status, reply.headers, read(text), text[:4096].decode("utf-8", "replace"))
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        raise problem_of(error, url) from None


def problem_of(error: Exception, url: str) -> Odd:
    """Why there was no answer."""
    if isinstance(error, Odd):
        return error
    through = " through the proxy of the environment" if proxy_for(url) else ""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.InvalidURL)) or (
        type(error).__name__ == "ConnectionTimeoutError"
    ):
        return NotConnected(f"{urlsplit(url).hostname} cannot be reached{through}: {shown(error)}")
    if isinstance(error, asyncio.TimeoutError):
        return Odd("the answer did not come in time")
    return Odd(f"the connection broke{through}: {shown(error) or type(error).__name__}")


async def _read_body(reply: aiohttp.ClientResponse) -> bytes:
    """What came of a body, also where it was cut off."""
    parts, length = [], 0
    try:
        async for chunk in reply.content.iter_chunked(1 << 16):
            parts.append(chunk)
            length += len(chunk)
            if length > BIGGEST_ANSWER:
                raise Odd(f"status {reply.status} with more than {BIGGEST_ANSWER >> 20} MB")
    except aiohttp.ClientPayloadError:
        pass  # no JSON object ends early and is one still
    return b"".join(parts)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class _PublicResolver(AbstractResolver):
    """Looks names up and refuses those that stand for addresses in private networks."""

    def __init__(self, trusted: Collection[str]) -> None:
        self._trusted, self._resolver = trusted, aiohttp.ThreadedResolver()
        self._proxies = {urlsplit(proxy).hostname for proxy in getproxies().values()}

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        found = await self._resolver.resolve(host, port, family)
        free = f"{host}:{port}" in self._trusted or host in self._proxies
        if not free and not all(is_public(str(entry["host"])) for entry in found):
            raise Odd(f"it names {host}, which is not a public host")
        return found

    async def close(self) -> None:
        await self._resolver.close()
