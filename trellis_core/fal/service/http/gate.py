"""The gate: what a request's headers say is judged here and nowhere else, before anything else looks at it.

What cannot be parsed is 400. Programs of other machines are kept out by the key, or where there is none, by asking for a
Host of this machine (DNS rebinding); pages of other sites by what browsers say of themselves and no page can change:
Origin and Sec-Fetch-Site, and by a type of body that no page may send elsewhere without being asked for permission.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...errors import FalError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?", re.ASCII)
SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


class Request(Protocol):
    """Of a request, what the gate looks at."""

    method: str
    scheme: str
    headers: Any
    body_exists: bool


def parse_address(text: str, what: str) -> SplitResult:
    """Parts of an address that strangers sent. Raises FalError: 400, it cannot be parsed."""
    try:
        parts = urlsplit(text)
        _ = parts.port, parts.hostname, text.encode("ascii")
    except ValueError:
        raise FalError(400, f"{what} cannot be parsed.", "bad_request") from None
    return parts


def parse_target(text: str, what: str) -> tuple[SplitResult, str, dict[str, str]]:
    """The same with its path decoded, and its query."""
    parts = parse_address(text, what)
    try:
        return parts, unquote(parts.path, errors="strict"), dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        raise FalError(400, f"{what} cannot be parsed.", "bad_request") from None


def own_host(request: Request) -> str:
    """What the request calls this machine: "name" or "name:port". Raises FalError: 400, nothing that can be parsed."""
    found = request.headers.getall("Host", [])
    host = found[0].strip() if len(found) == 1 else ""
    parts = parse_address(f"//{host}", "The Host header")
    if not parts.hostname or not _HOST.fullmatch(host):
        raise FalError(400, "The Host header cannot be parsed.", "bad_request")
    return host.lower()


def check_encoding(request: Request) -> None:
    """Raises FalError: 415, the body is packed. Unpacked, a small one can be of any size."""
    if any(value.strip().lower() not in ("", "identity") for value in request.headers.getall("Content-Encoding", [])):
        raise FalError(415, "Bodies with a Content-Encoding are refused: send them as they are.")


def check_type(request: Request) -> None:
    """Raises FalError: 415, the body is not sent as JSON."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if request.body_exists and kind != "application/json":
        raise FalError(415, "The Content-Type of the body must be application/json.")


def check_local(host: str) -> None:
    """Raises FalError: 403, the request was not meant for this machine by a name that only it has."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name in LOOPBACK
    if not local:
        raise FalError(403, "Without a key this server answers only to its own machine.")


def check_page(request: Request, host: str, allowed: Collection[str] = ()) -> None:
    """Keep out pages of other sites.

    Args:
        host: as `own_host` gives it.
        allowed: origins ("https://host:port") of other pages that may come in.

    Raises:
        FalError: 403, it comes from a page that is not this server's own or allowed; 400, from one that cannot be parsed.
    """
    headers: Mapping[str, str] = request.headers
    origin = headers.get("Origin")
    if origin is not None:
        if origin.lower() in allowed:
            return
        parts = parse_address(origin, "The Origin header")
        if parts.scheme.lower() not in ("http", "https") or parts.netloc.lower() != host:
            raise FalError(403, "This server answers only to its own pages: see --origin for others.")
    site = headers.get("Sec-Fetch-Site", "none").strip().lower()
    opened = request.method in SAFE and headers.get("Sec-Fetch-Mode", "").strip().lower() == "navigate"
    if site not in ("none", "same-origin") and not opened:
        raise FalError(403, "This server answers only to its own pages: see --origin for others.")
