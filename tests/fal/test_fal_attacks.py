"""The service against clients that misbehave: each keeps nobody waiting but itself, and costs little."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from tests.fal.test_fal_service import APP, _call, _end, _submit, _until  # noqa: E402
from tests.helpers.fal_service import KEY, OTHER_KEY, PIXELS, Gate, serving  # noqa: E402
from tests.helpers.misbehaving import Stranger, tiresome_host  # noqa: E402
from trellis_core.fal.body import split  # noqa: E402
from trellis_core.fal.errors import FalError  # noqa: E402
from trellis_core.fal.service import jobs  # noqa: E402
from trellis_core.fal.service.config import Limits  # noqa: E402
from trellis_core.fal.service.http import logs  # noqa: E402

JOB = json.dumps({"image_url": PIXELS}).encode()
JSON = "Content-Type: application/json"
SUBMIT = f"/queue/{APP}"


def _with_length(stranger: Stranger, path: str, body: bytes, *headers: str, method: str = "POST", **more: Any) -> bytes:
    return stranger.head(method, path, f"Content-Length: {len(body)}", *headers, **more) + body


@pytest.mark.parametrize(
    "header",
    ["Origin: null", "Origin: file://", "Origin: data:", "Origin: ", "Origin: http://127.0.0.1:1", "Origin: http://[::1"]
    + ["Origin: chrome-extension://abc", "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"]
    + ["Sec-Fetch-Site: same-site", "Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=a"],
)
@pytest.mark.parametrize("method", ["POST /run/APP", "POST /queue/APP", "POST /rest/storage/upload/initiate", "POST /proxy"])
def test_no_web_page_may_use_a_service_without_a_key(tmp_path: Path, header: str, method: str) -> None:
    method, path = method.replace("APP", APP).split()
    with serving(tmp_path, keys=()) as (url, service), Stranger(url) as page:
        more = () if header.startswith("Content-Type") else (JSON,)
        target = f"x-fal-target-url: https://queue.fal.run/{APP}"
        status = page.status(_with_length(page, path, JOB, header, target, *more, method=method))
        assert status in (400, 403, 415) and not service.queue._jobs


def test_a_services_own_pages_and_allowed_ones_may(tmp_path: Path) -> None:
    with serving(tmp_path, keys=(), origins=("https://friend.example",)) as (url, _):
        for origin in ("http://" + url.split("/")[2], "https://friend.example"):
            with Stranger(url) as page:
                assert page.status(_with_length(page, SUBMIT, JOB, JSON, f"Origin: {origin}")) == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_packed_bodies_are_refused_unseen(tmp_path: Path, encoding: str) -> None:
    packed = gzip.compress(bytes(64 << 20), 9)
    with serving(tmp_path) as (url, service):
        upload = _call("POST", f"{url}/rest/storage/upload/initiate", {})[1]["upload_url"].removeprefix(url)
        tracemalloc.start()
        try:
            for method, path in (("POST", SUBMIT), ("PUT", upload), ("POST", "/nowhere"), ("GET", "/openapi.json")):
                with Stranger(url) as stranger:
                    request = _with_length(stranger, path, packed, f"Content-Encoding: {encoding}", method=method)
                    assert stranger.status(request) == 415
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert service.accounts.total == 0


def test_connections_that_keep_silent_or_drip_are_closed(tmp_path: Path) -> None:
    limits = Limits(head_seconds=0.5, idle_seconds=0.5, silence_seconds=0.5)
    with serving(tmp_path, limits=limits) as (url, _):
        with Stranger(url) as silent, Stranger(url) as kept:
            assert kept.status(kept.head("GET", "/nowhere")) == 404
            assert silent.hear() == b""
            kept.hear()
        with Stranger(url) as headers:
            assert headers.drip(headers.head("GET", "/" + "a" * 4000), seconds=30)
        with Stranger(url) as body:
            body.send(body.head("POST", SUBMIT, f"Authorization: Key {KEY}", "Content-Length: 100000"))
            assert body.drip(b" " * 100_000, seconds=30)


def test_silent_connections_give_way_to_others(tmp_path: Path) -> None:
    limits = Limits(connections=12, connections_per_address=8)
    with serving(tmp_path, limits=limits) as (url, _):
        silent = [Stranger(url) for _ in range(30)]
        assert _call("GET", f"{url}/openapi.json?endpoint_id={APP}", key=None)[0] == 200
        elsewhere = [Stranger(url, f"127.0.0.{n}") for n in range(2, 12) for _ in range(3)]
        assert _call("GET", f"{url}/openapi.json?endpoint_id={APP}", key=None)[0] == 200
        assert silent[0].hear() == b""
        for stranger in (*silent, *elsewhere):
            stranger.socket.close()


def test_who_does_not_wait_for_answers_gets_one(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _), Stranger(url) as stranger:
        stranger.send(stranger.head("GET", f"/openapi.json?endpoint_id={APP}") * 500)
        assert stranger.hear().count(b"HTTP/1.1 200") == 1


def test_the_proxy_does_not_call_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path, keys=()) as (url, _):
        for target in ("/proxy", "/proxy/", "/proxy?a=b", "//proxy", "/%70roxy", "/run/../proxy", "/cdn/../proxy/", ""):
            with Stranger(url) as stranger:
                assert stranger.status(stranger.head("GET", "/proxy", f"x-fal-target-url: {url}{target}")) in (400, 404, 405)
    assert not caplog.records


def test_what_cannot_be_parsed_is_400(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for keys in ((KEY,), ()):
        with serving(tmp_path / str(len(keys)), keys=keys) as (url, _):
            for host in ("[", "a:b", "[::1", "a b", "", "127.0.0.1:99999999", "x@127.0.0.1", "\xff", "[v1.a]"):
                with Stranger(url) as one:
                    assert one.status(one.head("GET", f"/openapi.json?endpoint_id={APP}", host=host)) == 400, host
            for target in ("http://[", "https://queue.fal.run:x/", "https://queue.fal.run/%ff", "\xff"):
                with Stranger(url) as one:
                    assert one.status(one.head("GET", "/proxy", f"x-fal-target-url: {target}")) == 400, target
            for line in (b"GET / HTTP/9\r\n\r\n", b"\x1b[2J\r\n\r\n", b"GET http://[/ HTTP/1.1\r\n\r\n"):
                with Stranger(url) as one:
                    assert one.status(line) == 400, line
    assert not caplog.records


def test_the_log_is_one_harmless_line_for_each_kind() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(handler.format(record))  # type: ignore[method-assign]
    handler.setFormatter(logs.Escaping("%(levelname)s %(message)s"))
    handler.addFilter(logs.Sparing())
    log = logging.Logger("a service")
    log.addHandler(handler)
    for n in range(1000):
        log.error("failed: %s", f"\x1b[31mred\r\nERROR forged \u202e{n}")
    assert len(said) == logs.BURST
    assert not any(c in "".join(said) for c in "\x1b\r\n\u202e") and said[3].endswith("3")


def test_data_uris_of_percent_signs_take_little(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        for head in ("data:,", "data:image/png;base64,"):
            request_id = _submit(url, image_url=head + "%" * (6 << 20))
            tracemalloc.start()
            try:
                assert _end(url, request_id)[0] == 422
                assert tracemalloc.get_traced_memory()[1] < 80 << 20
            finally:
                tracemalloc.stop()


def test_bodies_are_long_because_of_data_uris_or_not_at_all(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, service):
        for body in (
            b'{"image_url": "' + b"x" * (2 << 20) + b'"}',
            b'{"a": [' + b"0," * (1 << 20) + b"0]}",
            b'{"image_url": "\\u0064ata:,' + b"x" * (2 << 20) + b'"}',
        ):
            assert _call("POST", f"{url}/queue/{APP}", body)[0] == 413
        assert _call("POST", f"{url}/rest/storage/upload/initiate", b'{"a": "' + b"x" * (2 << 20) + b'"}')[0] == 413
        assert not service.queue._jobs and service.accounts.total == 0
        long = PIXELS.replace("base64,", "base64," + " " * (2 << 20))
        assert _end(url, _submit(url, image_url=long))[0] == 200
        status, answer, _ = _end(url, _submit(url, image_url=long, texture_size=long, seed=long))
        assert status == 422 and len(json.dumps(answer)) < 3000
        status, answer, _ = _end(url, _submit(url, image_url=PIXELS, geometry_lora_url=long))
        assert status == 200 and len(json.dumps(answer)) < 2000


def test_data_uris_are_cut_out_and_nothing_else() -> None:
    body = split(b'{"a": "data:,x", "data:b": "not data:", "c": ["data:;base64,AA=="], "data:" }')
    assert body.text == b'{"a": "data:#0", "data:#1": "not data:", "c": ["data:#2"], "data:#3" }'
    assert bytes(body.data["data:#2"]) == b"data:;base64,AA=="
    unfinished = split(b'{"a": "data:,xxx')
    with pytest.raises(FalError):
        unfinished.read(1000)


def test_nested_bodies_are_422(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        for depth in (60, 500, 900, 990, 1000, 5000):
            for field in ("seed", "unknown"):
                nested = b"[" * depth + b"]" * depth
                body = b'{"image_url": 3, "%s": %s}' % (field.encode(), nested)
                status, answer, _ = _call("POST", f"{url}/run/{APP}", body)
                assert status == 422 and len(json.dumps(answer)) < 2000


def test_bodies_hold_a_limited_number_of_values(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        many = b'{"image_url": "", "a": [' + b"[]," * 300_000 + b"[]]}"
        status, answer, _ = _call("POST", f"{url}/run/{APP}", many)
        assert status == 422 and "values" in answer["detail"][0]["msg"]
        assert _call("POST", f"{url}/rest/storage/upload/initiate", many)[0] == 400


def test_half_sent_bodies_lie_on_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, service):
        strangers = [Stranger(url) for _ in range(12)]
        tracemalloc.start()
        try:
            for one in strangers:
                one.send(one.head("POST", SUBMIT, f"Authorization: Key {KEY}", JSON, f"Content-Length: {30 << 20}"))
                one.send(b" " * (4 << 20))
            _until(lambda: service.accounts.total == 12 * (4 << 20))
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()
        assert service.accounts.used(next(iter(service.accounts._used))) == 12 * (4 << 20)
        for one in strangers:
            one.socket.close()
        _until(lambda: service.accounts.total == 0 and not list((tmp_path / "spool").iterdir()))


def test_webhooks_to_a_silent_host_keep_nobody_waiting(tmp_path: Path) -> None:
    with tiresome_host() as (host, heard):
        place = host.removeprefix("http://")
        with serving(tmp_path, trusted=(place,), limits=Limits(webhook_seconds=30.0)) as (url, _):
            for _ in range(30):
                hook = f"{url}/queue/{APP}?fal_webhook=http%3A%2F%2F{place}%2F"
                assert _call("POST", hook, {"image_url": PIXELS})[0] == 200
            heard.acquire()
            assert _end(url, _submit(url))[0] == 200
            token = _call("POST", f"{url}/rest/storage/auth/token", key=OTHER_KEY)[1]["token"]
            assert _call("POST", f"{url}/cdn/files/upload", bytes(200_000), token)[0] == 200


@pytest.mark.parametrize("drips", [True, False])
def test_a_picture_that_trickles_in_can_be_cancelled(tmp_path: Path, drips: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" if drips else b""
    with tiresome_host(head, drips) as (host, heard), serving(tmp_path, trusted=(host[7:],)) as (url, _):
        request_id = _submit(url, image_url=host + "/a.png")
        heard.acquire()
        assert _call("PUT", f"{url}/queue/{APP}/requests/{request_id}/cancel")[0] == 202
        assert _end(url, request_id)[0] == 499
        assert not list((tmp_path / "scratch").iterdir())


def test_a_download_has_a_limit_in_all(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    with tiresome_host(head, drips=True) as (host, _):
        with serving(tmp_path, trusted=(host[7:],), limits=Limits(download_seconds=0.3)) as (url, _):
            status, body, _ = _end(url, _submit(url, image_url=host + "/a.png"))
            assert (status, body["detail"][0]["type"]) == (422, "file_download_error")


def test_a_slow_picture_lends_its_turn_to_the_next_and_keeps_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.05)
    gate = Gate()
    with tiresome_host() as (host, heard), serving(tmp_path, gate, trusted=(host[7:],)) as (url, service):
        slow = [_submit(url, image_url=host + "/a.png", seed=n) for n in range(jobs.LENT + 2)]
        heard.acquire()
        other = _call("POST", f"{url}/queue/{APP}", {"image_url": PIXELS, "seed": 77}, key=OTHER_KEY)[1]["request_id"]
        assert _end(url, other, key=OTHER_KEY)[1]["seed"] == 77
        assert [service.queue._jobs[one].status for one in slow[jobs.LENT :]] == ["IN_QUEUE"] * 2
        for one in slow:
            _call("PUT", f"{url}/queue/{APP}/requests/{one}/cancel")
        assert all(_end(url, one)[0] == 499 for one in slow)
        assert _end(url, _submit(url))[0] == 200


def test_a_key_waits_for_a_limited_number_of_ends(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate, limits=Limits(waits_per_key=1)) as (url, _):
        first = threading.Thread(target=lambda: _call("POST", f"{url}/run/{APP}", {"image_url": PIXELS}))
        first.start()
        gate.began.acquire()
        assert _call("POST", f"{url}/run/{APP}", {"image_url": PIXELS})[0] == 429
        gate.open()
        first.join()
        assert _call("POST", f"{url}/run/{APP}", {"image_url": PIXELS}, key=OTHER_KEY)[0] == 200


def test_durations_come_from_a_clock_that_nobody_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = Gate(closed=True), time.time
    with serving(tmp_path, gate) as (url, _):
        request_id = _submit(url)
        gate.began.acquire()
        monkeypatch.setattr(time, "time", lambda: real() - 7200)
        gate.open()
        assert _end(url, request_id)[0] == 200
        state = _call("GET", f"{url}/queue/{APP}/requests/{request_id}/status")[1]
        assert state["metrics"]["inference_time"] >= 0
