"""Our client behind a company's proxy, and our service that asks no proxy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp")
import aiohttp  # noqa: E402
from aiohttp import web  # noqa: E402
from PIL import Image  # noqa: E402

from tests.helpers.fal_faults import Faulty, faulty, served  # noqa: E402
from trellis_core.errors import InputError  # noqa: E402
from trellis_core.fal.answers import RemoteError  # noqa: E402
from trellis_core.fal.client import FalClient  # noqa: E402
from trellis_core.fal.endpoints import ONCE  # noqa: E402
from trellis_core.fal.open_requests import Notebook  # noqa: E402
from trellis_core.fal.order import order  # noqa: E402
from trellis_core.fal.remote import generate  # noqa: E402
from trellis_core.fal.wire import Pace, proxy_for  # noqa: E402
from trellis_core.fetch import FetchError, fetch_bytes  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402

pytestmark = pytest.mark.usefixtures("alone")


def _run(url: str, folder: Path) -> Any:
    wanted = order("fal-ai/trellis-2", GenerationSettings(seed=1), [Image.new("RGBA", (8, 8))])
    pace = Pace(poll=0.001, patience=30.0, upload=30.0)
    return asyncio.run(generate(FalClient("key", url, pace), Notebook(folder), wanted))


class _Proxy:
    """Hands requests for any host on to one server, and notes them."""

    def __init__(self, server: Faulty) -> None:
        self.server, self.seen = server, []

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, str(request.url), request.headers.get("Proxy-Authorization")))
        target = f"{self.server.url}{request.path_qs}"
        headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Range", "Content-Type", ONCE)}
        async with aiohttp.ClientSession() as session:
            async with session.request(request.method, target, data=await request.read(), headers=headers) as reply:
                return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_everything_goes_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with faulty() as server:
        proxy = _Proxy(server)
        with served(proxy.handle) as address:
            monkeypatch.setenv(variable, address.replace("http://", "http://user:word@"))
            server.url, direct = "http://api.example", server.url
            proxy.server = Faulty(url=direct)
            made = _run("http://api.example", tmp_path)
        assert made.glb == server.model
        assert {urlsplit(url).hostname for _, url, _ in proxy.seen} == {"api.example"}
        assert {method for method, _, _ in proxy.seen} == {"GET", "POST", "PUT"}
        assert all(word and word.startswith("Basic ") for _, _, word in proxy.seen)


def test_hosts_without_a_proxy_are_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org, 127.0.0.1")
    with faulty() as server:
        assert _run(server.url, tmp_path).glb == server.model


def test_a_proxy_that_cannot_be_used_is_told_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:password@127.0.0.1:9")
    with pytest.raises(RemoteError, match="through the proxy") as caught:
        _run("http://api.example", tmp_path)
    assert "password" not in str(caught.value)
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:password@127.0.0.1:9")
    with pytest.raises(InputError, match="only http") as caught:
        _run("http://api.example", tmp_path)
    assert "password" not in str(caught.value)


def test_the_proxy_of_each_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://other.example")
    monkeypatch.setenv("NO_PROXY", ".inside.example,box:8000")
    assert proxy_for("https://queue.fal.run/x") == "http://proxy.example:3128"
    assert proxy_for("http://a.example/") == "http://other.example"
    assert proxy_for("https://a.inside.example/") is None and proxy_for("http://box:8000/fal") is None
    assert proxy_for("http://box:8001/fal") == "http://other.example"
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_for("https://queue.fal.run/x") is None


def test_what_strangers_name_is_fetched_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty() as server:
        proxy = _Proxy(server)
        with served(proxy.handle) as address:
            monkeypatch.setenv("HTTP_PROXY", address)
            with pytest.raises(FetchError, match="not a public host"):
                fetch_bytes(f"{server.url}/files/a.glb", limit_bytes=1000)
            data = fetch_bytes(f"{server.url}/files/a.glb", limit_bytes=10**6, trusted=[urlsplit(server.url).netloc])
        assert data == server.model and not proxy.seen
