"""Files from addresses that strangers give: public hosts only, limited in size and time, never more than asked for.

A service that loads what a caller names must not become the caller's way into its network (docs/method/fal.md). So every
address that a host name stands for has to be a public one, the connection goes to exactly the address that was checked,
and every redirect is checked again. Proxies named in the environment are not used, and no credentials are ever sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from .context import QUIET, RunContext
from .errors import InputError

REDIRECTS = 5
SOCKET_SECONDS = 30.0
"""Longest silence of the other side."""
TOTAL_SECONDS = 600.0
"""Longest time that a file may take from the first connection to the last byte, redirects included."""
LOOK = 0.25
"""Seconds between looks at whether the caller has cancelled."""
CHUNK = 1 << 18
PIECE = 1 << 16
"""Characters of a data URI that are decoded at a time: percent signs take a hundred times their own memory."""
MAX_PLAIN_URI = 1 << 20
"""Characters of a data URI that is not base64: no picture comes that way."""

_UNICAST = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        # What `is_global` of one Python version or another lets pass, and IPv6 forms that carry an IPv4 address inside.
        ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")
        + ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)


class FetchError(InputError):
    """A file could not be had from its address. `kind` is the hosted endpoints' word for it, `limit` bytes if too large."""

    def __init__(self, message: str, kind: str = "file_download_error", limit: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.limit = kind, limit


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched: where it lies, how long it is, its SHA-256 in hex, and the server's ETag ("" without)."""

    path: Path
    size: int
    sha256: str
    etag: str


def is_public(address: str) -> bool:
    """Whether an IP address is one that everybody in the Internet may reach, in a form that says so plainly.

    Private, shared, loopback, link-local, multicast, reserved and documentation addresses are not, nor are IPv6 forms that
    stand for an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo, ISATAP).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip in network for network in _SPECIAL if network.version == ip.version):
        return False
    if ip.version == 6 and (ip not in _UNICAST or ip.packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def fetch_bytes(
    url: str,
    *,
    limit_bytes: int,
    allow_private: bool = False,
    trusted: Collection[str] = (),
    seconds: float | None = None,
    ctx: RunContext = QUIET,
) -> bytes:
    """The content of a web address or a data URI, in memory. See `fetch_file`."""
    if url[:5].lower() == "data:":
        return decode_data_uri(url, limit_bytes)[0]
    with _opened(url, allow_private, trusted, seconds, ctx) as response:
        return b"".join(_chunks(response, limit_bytes, ctx))


def fetch_file(
    url: str,
    target: str | os.PathLike[str],
    *,
    limit_bytes: int,
    allow_private: bool = False,
    trusted: Collection[str] = (),
    seconds: float | None = None,
    ctx: RunContext = QUIET,
) -> Fetched:
    """Write the content of a web address to `target`: completely, or not at all.

    Args:
        url: http or https, without a user name.
        target: the file to write; its folder exists.
        limit_bytes: more than this is refused, when it is announced or when it comes.
        allow_private: take addresses in private networks too. Only for what the machine's own user names.
        trusted: hosts ("name" or "name:port") for which private addresses are fine.
        seconds: the whole of it may take no longer; None for `TOTAL_SECONDS`.
        ctx: told the progress where the length is known; a cancel takes effect within half a second, however slowly or
            silently the other side sends.

    Raises:
        FetchError: the address is not allowed, does not answer, answers with an error, or gives too much.
    """
    target = Path(target)
    digest, size = hashlib.sha256(), 0
    with _opened(url, allow_private, trusted, seconds, ctx) as response:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".fetch-")
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in _chunks(response, limit_bytes, ctx):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
        return Fetched(target, size, digest.hexdigest(), response.getheader("ETag", ""))


def decode_data_uri(uri: str | bytes | memoryview, limit_bytes: int) -> tuple[bytes, str]:
    """Content and media type of a data URI; in memory of about twice the content's size, whatever stands in it.

    Raises:
        FetchError: malformed, or longer than `limit_bytes`.
    """
    try:
        raw = memoryview(uri.encode() if isinstance(uri, str) else uri)
    except UnicodeError as error:
        raise FetchError("The data URI is malformed: it holds half a character.") from error
    head, comma, _ = bytes(raw[:1024]).partition(b",")
    if head[:5].lower() != b"data:" or not comma:
        raise FetchError("The data URI is malformed: it should begin with data:<type>;base64,")
    media, *options = head[5:].decode("latin-1").split(";")
    coded = "base64" in (option.strip().lower() for option in options)
    body = raw[len(head) + 1 :]
    longest = limit_bytes * 3 // 2 + 1024 if coded else min(limit_bytes * 3, MAX_PLAIN_URI)
    if len(body) > longest:
        raise _too_large(limit_bytes)
    try:
        data = _from_base64(_unquoted(body)) if coded else b"".join(_unquoted(body))
    except (binascii.Error, ValueError) as error:
        raise FetchError("The data URI is malformed: its base64 cannot be decoded.") from error
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    return data, media.strip().lower() or "text/plain"


def _unquoted(body: memoryview) -> Iterator[bytes]:
    """Percent signs decoded, piece by piece."""
    left = b""
    for start in range(0, len(body), PIECE):
        piece = left + bytes(body[start : start + PIECE])
        split = piece.rfind(b"%", len(piece) - 2)  # an escape that the next piece completes
        cut = len(piece) if split < 0 or start + PIECE >= len(body) else split
        left = piece[cut:]
        yield unquote_to_bytes(piece[:cut])


def _from_base64(pieces: Iterator[bytes]) -> bytes:
    """White space is fine, everything else that is no base64 is not."""
    made, left, ended = bytearray(), b"", False
    for piece in pieces:
        text = left + b"".join(piece.split())
        cut = len(text) - len(text) % 4
        if ended and text:
            raise ValueError("there is something behind the end")
        made += base64.b64decode(text[:cut], validate=True)
        left, ended = text[cut:], text[:cut].endswith(b"=")
    if left:
        raise ValueError("the last group is not complete")
    return bytes(made)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allow_private: bool = False,
    trusted: Collection[str] = (),
    timeout: float = 15.0,
) -> int:
    """Send `body` to an address that a stranger gave; the status of the answer. Redirects are not followed.

    Raises:
        FetchError: the address is not allowed, or does not answer in time.
    """
    end = time.monotonic() + timeout
    with _connected(check_url(url), allow_private, trusted, timeout, end, QUIET) as connection:
        return _exchange(connection, "POST", urlsplit(url), headers, body).status


def check_url(url: str) -> SplitResult:
    """Parts of an http or https address that is well formed.

    Raises:
        FetchError: another scheme, no host, a user name, white space or control characters.
    """
    try:
        parts = urlsplit(url)
        port = parts.port  # checks the number
    except ValueError as error:
        raise FetchError(f"The address is malformed: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise FetchError("The address must begin with http:// or https:// and name a host.")
    if parts.username is not None or parts.password is not None:
        raise FetchError("Addresses with a user name or password in them are refused.")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise FetchError("The address holds white space or control characters: write them as %20 and the like.")
    return parts


@contextmanager
def _opened(
    url: str, allow_private: bool, trusted: Collection[str], seconds: float | None, ctx: RunContext
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after redirects."""
    end = time.monotonic() + (TOTAL_SECONDS if seconds is None else seconds)
    for _ in range(REDIRECTS + 1):
        parts = check_url(url)
        with _connected(parts, allow_private, trusted, SOCKET_SECONDS, end, ctx) as connection:
            response = _exchange(connection, "GET", parts, {"Accept-Encoding": "identity", "Accept": "*/*"})
            if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                try:
                    url = urljoin(url, response.getheader("Location", ""))
                except ValueError as error:
                    raise FetchError(f"{parts.hostname} leads to an address that is malformed: {error}.") from error
                continue
            if response.status != 200:
                raise FetchError(f"{parts.hostname} answered {response.status} instead of the file.")
            yield response
            return
    raise FetchError(f"The address leads on and on: more than {REDIRECTS} redirects.")


@contextmanager
def _connected(
    parts: SplitResult, allow_private: bool, trusted: Collection[str], silence: float, end: float, ctx: RunContext
) -> Iterator[http.client.HTTPConnection]:
    """A connection to one of the host's addresses, all of which were checked; cut at the end of its time and on a cancel."""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    host = str(parts.hostname)
    try:
        host = host if ":" in host else host.encode("idna").decode()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"There is no host {parts.hostname}.") from error
    free = allow_private or host in trusted or f"{host}:{port}" in trusted
    if not free and not all(is_public(str(entry[4][0])) for entry in found):
        raise FetchError(f"{parts.hostname} is not a public host: addresses in private networks are refused.")
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port, timeout=silence)
    connection.auto_open = 0  # a second connection would go to an address that nobody checked
    with _guarded(end, ctx) as guard:
        try:
            connection.sock = _socket(found, silence, host if secure else None, guard)
            yield connection
        except FetchError:
            ctx.check()  # a connection that was cut because of a cancel is no fault of the other side
            raise
        finally:
            connection.close()


class _Guard:
    """Cuts the connection that it is shown when time is up or the caller cancels, whatever the connection waits for."""

    def __init__(self, end: float, ctx: RunContext) -> None:
        self._end, self._ctx = end, ctx
        self._sock: socket.socket | None = None
        self._cut = False
        self.done = threading.Event()

    def watch(self, sock: socket.socket) -> None:
        self._sock = sock
        if self._cut:
            _cut(sock)

    def run(self) -> None:
        is_cancelled = self._ctx.is_cancelled or bool
        while not self.done.wait(min(LOOK, max(self._end - time.monotonic(), 0.0))):
            if time.monotonic() >= self._end or is_cancelled():
                self._cut = True
                if self._sock is not None:
                    _cut(self._sock)
                return


@contextmanager
def _guarded(end: float, ctx: RunContext) -> Iterator[_Guard]:
    guard = _Guard(end, ctx)
    threading.Thread(target=guard.run, name="fetch-guard", daemon=True).start()
    try:
        yield guard
    finally:
        guard.done.set()


def _socket(found: list[tuple], timeout: float, server_name: str | None, guard: _Guard) -> socket.socket:
    """A socket to the first address that answers; with TLS, checked against the host's name, where there is one."""
    problem: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        guard.watch(sock)
        sock.settimeout(min(timeout, 10.0))
        try:
            sock.connect(address)
            if server_name:
                context = ssl.create_default_context()
                sock = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
                guard.watch(sock)
                sock.do_handshake()
            sock.settimeout(timeout)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise FetchError(f"The host cannot be reached: {problem}.") from problem


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    parts: SplitResult,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> http.client.HTTPResponse:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, path, body, {"User-Agent": "trellis-core", "Connection": "close", **headers})
        return connection.getresponse()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise FetchError(f"{parts.hostname} does not answer as a web server should.") from error


def _chunks(response: http.client.HTTPResponse, limit: int, ctx: RunContext) -> Iterator[bytes]:
    announced = response.length  # None where the server does not say
    if announced is not None and announced > limit:
        raise _too_large(limit)
    done = 0
    try:
        while chunk := response.read1(CHUNK):  # as it comes: a drop at a time must not keep a cancel waiting
            done += len(chunk)
            if done > limit:
                raise _too_large(limit)
            if announced:
                ctx.report(done / announced)
            ctx.check()
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise FetchError("The file came only half: the connection broke or took too long.") from error
    if announced and done < announced:
        raise FetchError("The file came only half: the connection was closed early.")


def _too_large(limit: int) -> FetchError:
    return FetchError(f"The file is larger than {limit} bytes.", "file_too_large", limit)
