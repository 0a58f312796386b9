"""Fetching from addresses that strangers give: what is refused, and that what is fetched is whole."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trellis_core import fetch
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled
from trellis_core.fetch import FetchError, decode_data_uri, fetch_bytes, fetch_file, is_public

BODY = bytes(range(256)) * 4000


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        if self.path == "/file":
            self._answer(200, BODY, {"Content-Length": str(len(BODY)), "ETag": '"v1"'})
        elif self.path == "/unknown-length":
            self._answer(200, BODY, {})
        elif self.path == "/half":
            self._answer(200, BODY[:1000], {"Content-Length": str(len(BODY))})
        elif self.path == "/round":
            self._answer(302, b"", {"Location": "/round"})
        elif self.path == "/inward":
            self._answer(302, b"", {"Location": "http://127.0.0.1:9/secret"})
        elif self.path == "/out-of-http":
            self._answer(302, b"", {"Location": "file:///etc/hostname"})
        elif self.path == "/nowhere":
            self._answer(302, b"", {"Location": "http://[::1/"})
        elif self.path == "/moved":
            self._answer(307, b"", {"Location": "/file"})
        else:
            self._answer(404, b"no", {})

    def do_POST(self) -> None:  # noqa: N802
        self.server.received = self.rfile.read(int(self.headers["Content-Length"]))  # type: ignore[attr-defined]
        self._answer(307 if self.path == "/moved" else 202, b"", {"Location": "/file"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    running.url = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1"]
    + ["255.255.255.255", "198.18.0.1", "192.0.0.8", "192.88.99.1", "203.0.113.5", "239.255.0.1"]
    + ["::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1"]
    + ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "2002:7f00:1::", "2001::1"]
    + ["2a00::5efe:10.0.0.1", "2a00::200:5efe:10.0.0.1"],
)
def test_addresses_that_are_not_plainly_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "/etc/passwd",
        "gopher://example.com",
        "http://",
        "http://user:pw@example.com",
    ]
    + ["http://example.com:99999/", "http://example.com/a b", "http://example.com/\r\nX: y", "http://[::1", "", "C:\\lora"]
    + ["http://example.com:0/"],
)
def test_addresses_that_are_no_addresses(url: str) -> None:
    with pytest.raises(FetchError):
        fetch_bytes(url, limit_bytes=10)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_every_spelling_of_this_machine_is_refused(server: Any, host: str) -> None:
    with pytest.raises(FetchError, match="not a public host|no host"):
        fetch_bytes(f"http://{host}:{server.server_port}/file", limit_bytes=len(BODY))


def test_a_host_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(FetchError, match="not a public host"):
        fetch_bytes("http://two-faced.example/", limit_bytes=10)


def test_a_name_is_looked_up_once_and_that_address_is_used(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: an answer that changes between the check and the connection gains nothing."""
    asked = []
    real = socket.getaddrinfo

    def count(host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        return real("127.0.0.1", port, **more)

    monkeypatch.setattr(socket, "getaddrinfo", count)
    trusted = {f"pinned.example:{server.server_port}"}
    assert fetch_bytes(f"http://pinned.example:{server.server_port}/file", limit_bytes=len(BODY), trusted=trusted) == BODY
    assert asked == ["pinned.example"]


def test_a_redirect_into_the_network_is_refused(server: Any) -> None:
    trusted = {f"127.0.0.1:{server.server_port}"}
    with pytest.raises(FetchError, match="not a public host"):
        fetch_bytes(server.url + "/inward", limit_bytes=10, trusted=trusted)
    with pytest.raises(FetchError, match="http://"):
        fetch_bytes(server.url + "/out-of-http", limit_bytes=10, trusted=trusted)
    with pytest.raises(FetchError, match="malformed"):
        fetch_bytes(server.url + "/nowhere", limit_bytes=10, trusted=trusted)


def test_redirects_end(server: Any) -> None:
    with pytest.raises(FetchError, match="redirects"):
        fetch_bytes(server.url + "/round", limit_bytes=10, allow_private=True)
    assert fetch_bytes(server.url + "/moved", limit_bytes=len(BODY), allow_private=True) == BODY


@pytest.mark.parametrize("path", ["/file", "/unknown-length"])
def test_too_much_is_refused_announced_or_not(server: Any, tmp_path: Path, path: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_file(server.url + path, tmp_path / "f", limit_bytes=len(BODY) - 1, allow_private=True)
    assert (caught.value.kind, caught.value.limit) == ("file_too_large", len(BODY) - 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_whole_or_not_there(server: Any, tmp_path: Path) -> None:
    got = fetch_file(server.url + "/file", tmp_path / "f", limit_bytes=len(BODY), allow_private=True)
    assert (tmp_path / "f").read_bytes() == BODY
    assert (got.size, got.sha256, got.etag) == (len(BODY), hashlib.sha256(BODY).hexdigest(), '"v1"')
    for path in ("/half", "/missing"):
        with pytest.raises(FetchError):
            fetch_file(server.url + path, tmp_path / "g", limit_bytes=len(BODY), allow_private=True)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_cancel_leaves_nothing(server: Any, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        fetch_file(
            server.url + "/file", tmp_path / "f", limit_bytes=len(BODY), allow_private=True,
            ctx=RunContext(is_cancelled=lambda: True),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_proxies_of_the_environment_are_not_used(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch_bytes(server.url + "/file", limit_bytes=len(BODY), allow_private=True) == BODY


def test_a_server_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FetchError):
        fetch_bytes(f"http://127.0.0.1:{silent.getsockname()[1]}/", limit_bytes=10, allow_private=True)


@pytest.mark.parametrize("drips", [True, False])
def test_a_cancel_reaches_a_download_that_drips_or_says_nothing(drips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LOOK", 0.01)
    cancelled, over = threading.Event(), threading.Event()

    def drip(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            client.recv(1000)
            if drips:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            cancelled.set()
            while not over.wait(0.01):
                if drips:
                    client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        other_side = threading.Thread(target=drip, args=(listening,))
        other_side.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        try:
            with pytest.raises(Cancelled):
                fetch_bytes(url, limit_bytes=1 << 20, allow_private=True, ctx=RunContext(is_cancelled=cancelled.is_set))
        finally:
            over.set()
            other_side.join()


def test_posts_follow_nothing(server: Any) -> None:
    assert fetch.post(server.url + "/", b"hello", {}, allow_private=True) == 202
    assert server.received == b"hello"
    assert fetch.post(server.url + "/moved", b"again", {}, allow_private=True) == 307
    with pytest.raises(FetchError):
        fetch.post(server.url + "/", b"", {})


def test_data_uris() -> None:
    assert decode_data_uri("data:image/png;base64,aGVs bG8=", 10) == (b"hello", "image/png")
    assert decode_data_uri("data:,a%20b", 10) == (b"a b", "text/plain")
    assert fetch_bytes("data:;base64,aGVsbG8=", limit_bytes=5) == b"hello"
    for wrong in ("data:image/png;base64", "data:;base64,****", "data:;base64,aGVsbG8"):
        with pytest.raises(FetchError):
            decode_data_uri(wrong, 10)
    for long in ("data:;base64,aGVsbG8=", "data:," + "a" * 10_000):
        with pytest.raises(FetchError) as caught:
            decode_data_uri(long, 4)
        assert caught.value.kind == "file_too_large"
    assert decode_data_uri(memoryview(b"data:;base64,aGVs%62G8%3D"), 10)[0] == b"hello"
    with pytest.raises(FetchError):
        decode_data_uri("data:;base64,aGU=aGU=", 10)
    with pytest.raises(FetchError):
        decode_data_uri("data:,\ud800", 10)


@pytest.mark.parametrize("step", range(-4, 5))
def test_data_uris_are_the_same_wherever_they_are_cut_into_pieces(step: int) -> None:
    content = bytes(range(256)) * (fetch.PIECE // 256 + 1)
    text = base64.b64encode(content).decode()
    text = text[: fetch.PIECE + step].replace("+", "%2B").replace("/", "%2F\n") + text[fetch.PIECE + step :]
    assert decode_data_uri("data:;base64," + text, len(content)) == (content, "text/plain")
    plain = "a" * (fetch.PIECE + step) + "%41b"
    assert decode_data_uri("data:," + plain, len(plain))[0] == b"a" * (fetch.PIECE + step) + b"Ab"


@pytest.mark.parametrize("head", ["data:;base64,", "data:,"])
def test_percent_signs_take_little_memory(head: str) -> None:
    uri = head + "%" * (6 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(FetchError):
            decode_data_uri(uri, 5 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(uri)
    finally:
        tracemalloc.stop()
