"""The official clients live their whole life against our service."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
fal_client = pytest.importorskip("fal_client")

from tests.helpers.fal_service import GLB, KEY, OTHER_KEY, PICTURE, PIXELS, Gate, serving  # noqa: E402

PLAIN, LORA = "fal-ai/trellis-2", "fal-ai/trellis-2-lora"
ROOT = Path(__file__).parents[2]


@contextmanager
def _pointed(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import fal_client.client as module

    for name, value in {
        "RUN_URL_FORMAT": f"{url}/run/", "QUEUE_URL_FORMAT": f"{url}/queue/",
        "REST_URL": f"{url}/rest", "CDN_URL": f"{url}/cdn",
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    yield fal_client.SyncClient(key=KEY)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def python(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with serving(tmp_path / "data", gate) as (url, _), _pointed(url, monkeypatch) as client:
        yield client


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Gate]]:
    """A client, and work that goes on only when its gate is opened."""
    gate = Gate(closed=True)
    with serving(tmp_path / "data", gate) as (url, _), _pointed(url, monkeypatch) as client:
        yield client, gate
        gate.open()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read()


@contextmanager
def _receiver(status: int = 200) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """An address for webhooks, and what came there."""
    heard: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(status if len(heard) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_upload_submit_follow_fetch(python: Any, gate: Gate) -> None:
    url = python.upload(base64.b64decode(PICTURE), "image/png", "in put.png")
    assert _get(url) == base64.b64decode(PICTURE)
    handle = python.submit(PLAIN, {"image_url": url, "resolution": "512", "seed": 3})
    events = list(handle.iter_events(with_logs=True))
    assert type(events[-1]).__name__ == "Completed" and events[-1].error is None
    assert [log["message"] for log in events[-1].logs] == ["0 % structure", "100 % asset"]
    made = handle.get()["model_glb"]
    assert _get(made["url"]) == GLB and made["file_size"] == len(GLB) and made["content_type"] == "model/gltf-binary"
    assert gate.seen[0].settings.resolution == 512 and gate.seen[0].settings.seed == 3
    assert gate.seen[0].picture.size == (8, 8)


def test_subscribe_and_run_and_the_echo_of_the_lora_endpoint(python: Any) -> None:
    told: list[Any] = []
    made = python.subscribe(LORA, {"image_url": PIXELS, "texture_size": "1024"}, with_logs=True, on_queue_update=told.append)
    assert told
    assert {k: v for k, v in made.items() if k != "model_glb"} == {
        "seed": 7, "resolution": 512, "decimation_target": 500000, "texture_size": 1024,
        "sparse_structure_lora_url": None, "geometry_lora_url": None, "texture_lora_url": None,
    }  # fmt: skip
    again = python.run(LORA, {"image_url": PIXELS, "texture_size": 4096, "resolution": 1024, "seed": 1})
    assert (again["texture_size"], again["resolution"], again["seed"]) == (4096, 1024, 1)


@pytest.mark.parametrize("how", ["run", "subscribe"])
def test_wrong_values_are_named(python: Any, how: str) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        getattr(python, how)(LORA, {"image_url": PIXELS, "resolution": 1536, "ss_sampling_steps": 51})
    assert caught.value.status_code == 422
    found = {entry["loc"][-1]: (entry["type"], entry.get("ctx")) for entry in caught.value.response.json()["detail"]}
    assert found == {
        "resolution": ("literal_error", {"expected": "512 or 1024"}), "ss_sampling_steps": ("less_than_equal", {"le": 50}),
    }  # fmt: skip


def test_wrong_key_unknown_app_unknown_id(python: Any) -> None:
    stranger = fal_client.SyncClient(key="wrong")
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        stranger.submit(PLAIN, {"image_url": PIXELS})
    assert caught.value.status_code == 401
    for call in (lambda: python.submit("fal-ai/nothing", {}), lambda: python.result(PLAIN, "0" * 36)):
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            call()
        assert caught.value.status_code == 404


def test_requests_of_one_key_do_not_exist_for_another(python: Any) -> None:
    handle = python.submit(PLAIN, {"image_url": PIXELS})
    handle.get()
    other = fal_client.SyncClient(key=OTHER_KEY)
    for call in (other.status, other.result, other.cancel):
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            call(PLAIN, handle.request_id)
        assert caught.value.status_code == 404


def test_early_result_positions_and_cancel(held: tuple[Any, Gate]) -> None:
    client, gate = held
    running, waiting, last = (client.submit(PLAIN, {"image_url": PIXELS}) for _ in range(3))
    gate.began.acquire()
    assert type(running.status()).__name__ == "InProgress"
    assert (waiting.status().position, last.status().position) == (0, 1)
    early = urllib.request.Request(running.response_url, headers={"Authorization": f"Key {KEY}"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(early, timeout=10)
    assert (refused.value.code, json.load(refused.value)) == (400, {"detail": "Request is still in progress"})

    waiting.cancel()
    assert last.status().position == 0
    running.cancel()
    for handle in (waiting, running):
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            handle.get()
        assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")
    gate.open()
    assert last.get()["model_glb"]
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        last.cancel()
    assert caught.value.status_code == 400


def test_a_job_that_does_not_start_in_time(held: tuple[Any, Gate]) -> None:
    client, gate = held
    client.submit(PLAIN, {"image_url": PIXELS})
    late = client.submit(PLAIN, {"image_url": PIXELS}, start_timeout=1.001)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        late.get()
    assert (caught.value.status_code, caught.value.error_type) == (504, "request_timeout")
    assert caught.value.response_headers["x-fal-request-timeout-type"] == "user"
    assert len(gate.seen) == 1


def test_uploads_in_parts_and_the_other_way(python: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fal_client.client as module

    big = os.urandom(2_500_000)
    path = tmp_path / "big.bin"
    path.write_bytes(big)
    for name in ("MULTIPART_THRESHOLD", "MULTIPART_CHUNK_SIZE", "MULTIPART_MAX_CONCURRENCY"):
        if hasattr(module, name):
            monkeypatch.setattr(
                module, name, {"MULTIPART_THRESHOLD": 1_000_000, "MULTIPART_CHUNK_SIZE": 1_000_000}.get(name, 3)
            )
    assert _get(python.upload_file(str(path))) == big
    assert _get(python.upload(big, "application/octet-stream")) == big
    assert _get(python.upload(b"small", "text/plain", repository="fal")) == b"small"


def test_webhooks_are_signed_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    with _receiver(status=500) as (hook, heard):
        trusted = (hook.split("/")[2],)
        with (
            serving(tmp_path, trusted=trusted, webhook_pauses=(0, 0.01, 0.01)) as (url, _),
            _pointed(url, monkeypatch) as client,
        ):
            handle = client.submit(PLAIN, {"image_url": PIXELS}, webhook_url=hook)
            _until(lambda: len(heard) == 2)
            assert heard[0][1] == heard[1][1]
            message = json.loads(heard[1][1])
            assert (message["request_id"], message["status"]) == (handle.request_id, "OK")
            assert _get(message["payload"]["model_glb"]["url"]) == GLB
            headers, body = heard[1]
            signed = "\n".join(
                [headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp")]
                + [hashlib.sha256(body).hexdigest()]
            )
            (key,) = json.loads(_get(f"{url}/rest/.well-known/jwks.json"))["keys"]
            public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
            public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), signed.encode())

            client.submit(PLAIN, {}, webhook_url=hook)
            _until(lambda: len(heard) == 3)
            failed = json.loads(heard[2][1])
            assert (failed["status"], failed["error"]) == ("ERROR", "Invalid status code: 422")
            assert failed["payload"]["detail"][0]["loc"] == ["body", "image_url"]


def test_the_async_client(python: Any) -> None:
    import asyncio

    async def life() -> Any:
        client = fal_client.AsyncClient(key=KEY)
        url = await client.upload(base64.b64decode(PICTURE), "image/png")
        return await client.subscribe(PLAIN, {"image_url": url})

    assert asyncio.run(life())["model_glb"]["file_size"] == len(GLB)


@pytest.mark.parametrize("mode", ["middleware", "proxy", "fetch"])
def test_the_javascript_client(tmp_path: Path, mode: str) -> None:
    node = shutil.which("node")
    places = [Path(p) for p in (os.environ.get("NODE_PATH"), ROOT / "node_modules") if p]
    modules = next((p for p in places if (p / "@fal-ai" / "client").is_dir()), None)
    if node is None or modules is None:
        assert not os.environ.get("CI"), "CI has to install node and @fal-ai/client"
        pytest.skip("needs node and npm's @fal-ai/client: npm install --no-save @fal-ai/client")
    gate = Gate(closed=True)
    with _receiver() as (hook, heard), serving(tmp_path / "data", gate, trusted=(hook.split("/")[2],)) as (url, _):
        script = tmp_path / "life.mjs"
        client = (modules / "@fal-ai" / "client" / "src" / "index.js").as_posix()
        source = (ROOT / "tests" / "helpers" / "fal_life.mjs").read_text()
        script.write_text(source.replace("@fal-ai/client", client))
        opener = threading.Thread(target=lambda: [gate.began.acquire(), gate.began.acquire(), gate.open()])
        opener.daemon = True
        opener.start()
        done = subprocess.run(
            [node, str(script), url, mode, KEY, PICTURE, hook], capture_output=True, text=True, timeout=120, check=False
        )
        gate.open()
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "all good"
        _until(lambda: heard)
