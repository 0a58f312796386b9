"""The service against bad input, strangers, restarts and full disks; spoken to in plain HTTP."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import os
import socket
import sqlite3
import time
import urllib.error
import urllib.request
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from PIL import Image  # noqa: E402

from tests.helpers.fal_service import GLB, KEY, OTHER_KEY, PICTURE, PIXELS, Gate, serving  # noqa: E402
from trellis_core.errors import EmptyResultError  # noqa: E402
from trellis_core.fal.service.app import Service  # noqa: E402
from trellis_core.fal.service.config import Limits  # noqa: E402
from trellis_core.fal.service.serve import config  # noqa: E402

APP = "fal-ai/trellis-2-lora"


def _call(method: str, url: str, body: Any = None, key: str | None = KEY, **headers: str) -> tuple[int, Any, Any]:
    """Status, body (JSON where it is), headers."""
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        headers["Authorization"] = f"Key {key}"
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        reply = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        content = reply.read()
        plain = "json" in reply.headers.get("Content-Type", "")
        return reply.status, json.loads(content) if plain else content, reply.headers


def _submit(url: str, **values: Any) -> str:
    status, body, _ = _call("POST", f"{url}/queue/{APP}", {"image_url": PIXELS, **values})
    assert status == 200, body
    return body["request_id"]


def _end(url: str, request_id: str, key: str = KEY) -> tuple[int, Any, Any]:
    one = f"{url}/queue/{APP}/requests/{request_id}"
    deadline = time.monotonic() + 300
    while _call("GET", f"{one}/status", key=key)[1]["status"] != "COMPLETED":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return _call("GET", one, key=key)


def _picture(width: int, height: int, kind: str = "PNG") -> str:
    buffer = BytesIO()
    Image.new("RGB", (width, height)).save(buffer, kind)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("/etc/passwd", "file_download_error"),
        ("file:///etc/passwd", "file_download_error"),
        ("http://127.0.0.1:1/a.png", "file_download_error"),
        ("http://169.254.169.254/latest/meta-data", "file_download_error"),
        ("http://[::ffff:10.0.0.1]/", "file_download_error"),
        ("data:image/png;base64,!!!!", "file_download_error"),
        ("data:image/png;base64,AAAA", "image_load_error"),
        ("data:image/png;base64," + PICTURE[:-40], "image_load_error"),
        (_picture(9, 9, "BMP"), "unsupported_image_format"),
        (_picture(4097, 8), "image_too_large"),
        (_picture(2, 2), "image_load_error"),
        ("", "file_download_error"),
    ],
)  # fmt: skip
def test_pictures_that_cannot_be_used(tmp_path: Path, url: str, kind: str) -> None:
    with serving(tmp_path) as (base, _):
        status, body, headers = _end(base, _submit(base, image_url=url))
        assert status == 422 and headers["x-fal-needs-retry"] == "false"
        (error,) = body["detail"]
        assert (error["loc"], error["type"]) == (["body", "image_url"], kind)
        if kind == "image_too_large":
            assert error["ctx"] == {"max_height": 4096, "max_width": 4096}


def test_files_of_this_service_are_read_without_the_network_and_only_by_their_id(tmp_path: Path) -> None:
    gate = Gate()
    with serving(tmp_path, gate) as (base, service):
        stored = service.store.put_bytes(base64.b64decode(PICTURE), "p.png", "image/png")
        assert _end(base, _submit(base, image_url=base + stored.address))[0] == 200
        (tmp_path / "content" / "secret.png").write_bytes(base64.b64decode(PICTURE))
        for path in ("/cdn/files/../secret.png", "/cdn/files/secret.png/secret.png", "/rest/.well-known/jwks.json"):
            assert _end(base, _submit(base, image_url=base + path))[0] == 422
            assert _call("GET", base + path.replace("/rest/.well-known/jwks.json", "/cdn/files/..%2fsecret"))[0] == 404


def test_loras_are_safetensors_from_public_hosts_or_this_one(tmp_path: Path) -> None:
    gate = Gate()
    with serving(tmp_path, gate) as (base, service):
        stored = service.store.put_bytes(b"weights", "l.safetensors", "application/octet-stream")
        assert _end(base, _submit(base, geometry_lora_url=base + stored.address))[0] == 200
        assert list(gate.seen[0].loras) == ["geometry_lora_url"]
        status, body, _ = _end(base, _submit(base, texture_lora_url="http://10.0.0.1/l.safetensors"))
        assert (status, body["detail"][0]["loc"][-1]) == (422, "texture_lora_url")
        assert not list((tmp_path / "scratch").iterdir())


def test_what_the_body_may_be(tmp_path: Path) -> None:
    with serving(tmp_path) as (base, _):
        for body in (b"", b"nope", b"[1]", b'{"image_url": NaN}', b"[" * 100_000, b"\xff\xfe", b"1" * 5000):
            status, answer, _ = _call("POST", f"{base}/run/{APP}", body)
            assert (status, type(answer["detail"])) == (422, list), body[:20]
        status, answer, _ = _call("POST", f"{base}/run/{APP}", {"image_url": PIXELS, "nobody_knows": 1, "remesh": True})
        assert status == 200
        for header in ("X_Fal_Request_Timeout", "X_Fal_Object_Lifecycle_Preference"):
            assert _call("POST", f"{base}/queue/{APP}", {}, **{header: "soon"})[0] == 400
        assert _call("POST", f"{base}/queue/{APP}?fal_webhook=file:///a", {})[0] == 400


def test_bodies_have_a_largest_size(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(data_uri=1000, json=1000)) as (base, service):
        most = service.config.limits.body
        assert _call("POST", f"{base}/queue/{APP}", b" " * (most + 1))[0] == 413
        assert service.accounts.total == 0


def test_strangers(tmp_path: Path) -> None:
    with serving(tmp_path) as (base, _):
        for key in (None, "", "wrong", KEY[:-1], KEY + "x"):
            assert _call("POST", f"{base}/queue/{APP}", {}, key=key)[0] == 401
            assert _call("POST", f"{base}/rest/storage/upload/initiate", {}, key=key)[0] == 401
            assert _call("POST", f"{base}/cdn/files/upload", b"x", key=key)[0] == 401
            assert _call("POST", f"{base}/proxy", {}, key=key, x_fal_target_url=f"https://queue.fal.run/{APP}")[0] == 401
        for target in ("http://evil.example/", "https://evil.example/run", f"{base}/proxy", "", base + "x/queue"):
            assert _call("POST", f"{base}/proxy", {}, x_fal_target_url=target)[0] in (400, 404)


def test_without_a_key_only_this_machine_may_come_in(tmp_path: Path) -> None:
    with serving(tmp_path, keys=()) as (base, _):
        body = {"image_url": PIXELS}
        assert _call("POST", f"{base}/run/{APP}", body, key=None)[0] == 200
        assert _call("POST", f"{base}/run/{APP}", body, key=None, Origin="https://evil.example")[0] == 403
        assert _call("POST", f"{base}/run/{APP}", body, key=None, Host="rebound.example")[0] == 403
        assert "Access-Control-Allow-Origin" not in _call("GET", f"{base}/openapi.json?endpoint_id={APP}")[2]


def test_a_key_is_needed_where_others_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from trellis_core.cli.main import build_parser
    from trellis_core.errors import InputError

    monkeypatch.delenv("TRELLIS_SERVER_KEY", raising=False)
    for wrong in (["--host", "0.0.0.0"], ["--host", "::"], ["--host", "0.0.0.0", "--key", "short"]):
        with pytest.raises(InputError, match="key"):
            config(build_parser().parse_args(["serve", *wrong]))
    monkeypatch.setenv("TRELLIS_SERVER_KEY", KEY)
    assert config(build_parser().parse_args(["serve", "--host", "0.0.0.0"])).keys == (KEY,)


def test_two_clients_with_one_id(tmp_path: Path) -> None:
    """The same key sees one job twice; another key cannot tell it from none."""
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, _):
        request_id = _submit(base)
        one = f"{base}/queue/{APP}/requests/{request_id}"
        gate.began.acquire()
        missing = [_call("GET", f"{base}/queue/{APP}/requests/{'0' * 36}{end}", key=OTHER_KEY)[:2] for end in ("", "/status")]
        assert [_call("GET", one + end, key=OTHER_KEY)[:2] for end in ("", "/status")] == missing
        assert _call("PUT", f"{one}/cancel", key=OTHER_KEY)[0] == 404
        assert [_call("PUT", f"{one}/cancel")[0] for _ in range(2)][0] == 202
        assert _end(base, request_id)[0] == 499
        assert _call("PUT", f"{one}/cancel")[0] == 400


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EmptyResultError("nothing"), 422, "no_media_generated"), (RuntimeError("secret"), 500, "internal_server_error"),
        (MemoryError(), 500, "internal_server_error"),
    ],
)  # fmt: skip
def test_work_that_fails(tmp_path: Path, error: Exception, status: int, kind: str) -> None:
    def make(*_: Any) -> Any:
        raise error

    with serving(tmp_path, make) as (base, _):
        found, body, _ = _end(base, _submit(base))
        assert (found, body["detail"][0]["type"]) == (status, kind)
        assert "secret" not in json.dumps(body)


def test_status_stream_says_each_line_once(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, _):
        request_id = _submit(base)
        host, path = base.removeprefix("http://").split("/", 1)
        connection = http.client.HTTPConnection(host, timeout=20)
        headers = {"Authorization": f"Key {KEY}"}
        connection.request("GET", f"/{path}/queue/{APP}/requests/{request_id}/status/stream?logs=1", headers=headers)
        reply = connection.getresponse()
        first = json.loads(reply.readline().removeprefix(b"data: "))
        assert first["status"] in ("IN_QUEUE", "IN_PROGRESS")
        gate.open()
        events = [first] + [json.loads(line[6:]) for line in reply if line.startswith(b"data: ")]
        connection.close()
        assert events[-1]["status"] == "COMPLETED"
        assert [log["message"] for event in events for log in event.get("logs") or []] == ["0 % structure", "100 % asset"]


def test_a_client_that_goes_away_takes_its_sync_run_back(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, service):
        host, port = base.removeprefix("http://").split("/")[0].split(":")
        body = json.dumps({"image_url": PIXELS}).encode()
        head = f"POST /fal/run/{APP} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Key {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + body)
            gate.began.acquire()
        deadline = time.monotonic() + 20
        while (job := next(iter(service.queue._jobs.values()))).status != "COMPLETED":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (job.status_code, job.error_type) == (499, "client_cancelled")


def _upload_address(base: str) -> tuple[str, str, bytes]:
    """Where a file can be put and will be found, and the beginning of a request that puts 100,000 bytes there."""
    made = _call("POST", f"{base}/rest/storage/upload/initiate", {"file_name": "../../a b", "content_type": "image/png"})[1]
    path, host = made["upload_url"].split("/", 3)[3], base.split("/")[2]
    request = f"PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\nhalf"
    return made["upload_url"], made["file_url"], request.encode()


def _half_sent(base: str, service: Service, request: bytes) -> socket.socket:
    """A client that has sent the beginning of a request, after the service has taken it in."""
    host, port = base.split("/")[2].split(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(request)
    _until(lambda: service.accounts.total == len("half"))
    return client


def _until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_half_sent_uploads_leave_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as (base, service):
        upload, found, request = _upload_address(base)
        assert found.endswith("/a_b")
        _half_sent(base, service, request).close()
        _until(lambda: not service.accounts.total and not list((tmp_path / "spool").iterdir()))
        assert _call("PUT", upload, b"whole", key=None)[0] == 200
        assert _call("PUT", upload, b"again", key=None)[0] == 400
        assert _call("PUT", upload.replace("image%2Fpng", "text%2Fhtml"), b"x", key=None)[0] == 401
        assert _call("GET", found, key=None)[1] == b"whole"


def test_an_upload_that_hangs_does_not_block_its_repetition_and_ends(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(silence_seconds=1.0)) as (base, service):
        upload, found, request = _upload_address(base)
        with _half_sent(base, service, request) as hanging:
            assert _call("PUT", upload, b"whole", key=None)[0] == 200
            hanging.settimeout(60)
            assert hanging.recv(1000).startswith(b"HTTP/1.1 400")
        _until(lambda: service.accounts.total == len(b"whole"))
        assert len(list((tmp_path / "content").iterdir())) == 1 and not list((tmp_path / "spool").iterdir())
        assert _call("GET", found, key=None)[1] == b"whole"


def test_files_that_could_be_pages_are_only_saved(tmp_path: Path) -> None:
    with serving(tmp_path) as (base, service):
        for kind in ("text/html", "image/svg+xml"):
            stored = service.store.put_bytes(b"<script>", "a.html", kind)
            headers = _call("GET", base + stored.address, key=None)[2]
            assert headers["Content-Type"] == "application/octet-stream" and "attachment" in headers["Content-Disposition"]
            assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_quota_and_expiry(tmp_path: Path) -> None:
    with serving(tmp_path, quota=100_000, keys=(KEY,)) as (base, service):
        token = _call("POST", f"{base}/rest/storage/auth/token")[1]["token"]

        def upload(size: int, keep: str = "{}") -> tuple[int, Any, Any]:
            return _call(
                "POST", f"{base}/cdn/files/upload", bytes(size), token, X_Fal_Object_Lifecycle_Preference=keep,
                Content_Type="image/png",
            )  # fmt: skip

        gone = upload(90_000, '{"expiration_duration_seconds": 0}')
        assert gone[0] == 200 and _call("GET", gone[1]["access_url"])[0] == 404
        assert upload(90_000)[0] == 200  # the expired one made room
        assert upload(90_000)[0] == 507
        assert service.accounts.total == 90_000
        assert _call("POST", f"{base}/queue/{APP}", b" " * 20_000)[0] == 507


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    from trellis_core.fal.service.state import records

    with serving(tmp_path) as (base, service):

        def full(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(records, "insert", full)
        status, body, _ = _call("POST", f"{base}/queue/{APP}", {"image_url": PIXELS})
        assert status == 507 and ("full" if number == errno.ENOSPC else "write") in body["detail"]
        monkeypatch.undo()
        assert service.accounts.total == 0
        assert _end(base, _submit(base))[0] == 200


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, _):
        done = Gate()
        running, *waiting = [_submit(base, seed=n) for n in range(4)]
        gate.began.acquire()
    done = Gate()
    with serving(tmp_path, done) as (base, _):
        status, body, _ = _end(base, running)
        assert status == 500 and body["detail"].startswith("failed: restarted") and body["error_type"] == "runner_server_error"
        made = [_end(base, request_id) for request_id in waiting]
        assert [answer[1]["seed"] for answer in made] == [1, 2, 3] == [inputs.settings.seed for inputs in done.seen]
        assert _call("GET", made[0][1]["model_glb"]["url"], key=None)[1] == GLB
    with serving(tmp_path) as (base, _):
        assert _end(base, waiting[0])[1]["seed"] == 1


def test_a_restart_keeps_how_long_jobs_may_wait_and_sweeps_what_was_half_written(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, _):
        _submit(base)
        gate.began.acquire()
        late, early = (
            _call("POST", f"{base}/queue/{APP}", {"image_url": PIXELS}, X_Fal_Request_Timeout="900")[1]["request_id"]
            for _ in "ab"
        )
    with sqlite3.connect(tmp_path / "state.sqlite") as database:
        database.execute("UPDATE jobs SET start_by = created + 0.001 WHERE id = ?", (late,))
    (tmp_path / "spool" / "half").touch()
    (tmp_path / "inputs" / str(uuid.uuid4())).touch()
    with serving(tmp_path) as (base, _):
        status, _, headers = _end(base, late)
        assert status == 504 and headers["x-fal-request-timeout-type"] == "user"
        assert _end(base, early)[0] == 200
        assert not list((tmp_path / "spool").iterdir()) and not list((tmp_path / "inputs").iterdir())


def test_low_priority_waits_and_the_line_has_an_end(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate, longest=3) as (base, _):
        _submit(base, seed=0)
        gate.began.acquire()
        for seed, priority in ((1, "low"), (2, "normal"), (3, "normal")):
            assert (
                _call("POST", f"{base}/queue/{APP}", {"image_url": PIXELS, "seed": seed}, X_Fal_Queue_Priority=priority)[0]
                == 200
            )
        status, body, _ = _call("POST", f"{base}/queue/{APP}", {"image_url": PIXELS})
        assert (status, body["error_type"]) == (503, "runner_scheduling_failure")
        gate.open()
        for _ in range(3):
            gate.began.acquire()
        assert [inputs.settings.seed for inputs in gate.seen] == [0, 2, 3, 1]


def test_two_hundred_jobs_end_in_their_order_with_their_own_results(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (base, service):
        ids = [_submit(base, seed=seed) for seed in range(200)]
        gate.began.acquire()
        assert _call("GET", f"{base}/queue/{APP}/requests/{ids[-1]}/status")[1]["queue_position"] == 198
        gate.open()
        assert [_end(base, request_id)[1]["seed"] for request_id in reversed(ids)] == list(reversed(range(200)))
        assert [inputs.settings.seed for inputs in gate.seen] == list(range(200))
        assert not list((tmp_path / "scratch").iterdir()) and not list((tmp_path / "inputs").iterdir())
        assert service.accounts.total == 200 * len(GLB) and len(list((tmp_path / "content").iterdir())) == 1


def test_webhooks_to_hosts_that_are_down_or_private_harm_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as private, socket.create_server(("127.0.0.1", 0)) as down:
        ports = [server.getsockname()[1] for server in (private, down)]
        down.close()
        with serving(tmp_path, trusted=(f"127.0.0.1:{ports[1]}",), webhook_pauses=(0, 0.01, 0.01)) as (base, service):
            for port in ports:
                hook = f"{base}/queue/{APP}?fal_webhook=http%3A%2F%2F127.0.0.1%3A{port}%2F"
                request_id = _call("POST", hook, {"image_url": PIXELS})[1]["request_id"]
                assert _end(base, request_id)[0] == 200
                _until(lambda: service.queue._jobs[request_id].webhook_tries == 3)  # noqa: B023
        private.settimeout(0)
        with pytest.raises(BlockingIOError):
            private.accept()


def test_secrets_are_for_this_user_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        pass
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data" / "secret").stat().st_mode & 0o077 == 0
    assert KEY.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())


def test_the_service_makes_a_model_with_mini(tmp_path: Path) -> None:
    from trellis_core.fal.service.local import maker
    from trellis_core.family import load_family

    picture = (Path(__file__).parents[2] / "examples" / "icon_tree.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    steps = {f"{stage}_sampling_steps": 2 for stage in ("ss", "shape_slat", "tex_slat")}
    with serving(tmp_path, maker(load_family("mini"), None)) as (base, _):
        status, body, _ = _end(base, _submit(base, image_url=url, seed=1, texture_size=1024, **steps))
        assert status == 200, body
        assert _call("GET", body["model_glb"]["url"], key=None)[1][:4] == b"glTF"


def test_a_job_with_a_mark_is_made_once(tmp_path: Path) -> None:
    gate = Gate(closed=True)

    def submit(url: str, mark: str, key: str = KEY) -> tuple[int, Any]:
        body = json.dumps({"image_url": PIXELS}).encode()
        headers = {"Authorization": f"Key {key}", "Content-Type": "application/json", "Idempotency-Key": mark}
        asked = urllib.request.Request(f"{url}/queue/fal-ai/trellis-2", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=20) as reply:
                return reply.status, json.load(reply)["request_id"]
        except urllib.error.HTTPError as error:
            return error.code, None

    with serving(tmp_path, gate, longest=2) as (url, _):
        first = submit(url, "one")
        assert first == submit(url, "one") and first[0] == 200
        others = {submit(url, "two")[1], submit(url, "one", OTHER_KEY)[1]}
        assert len({first[1], *others}) == 3
        assert submit(url, "three")[0] == 503 and submit(url, "two")[1] in others  # also where the line is full
        assert submit(url, "x" * 201)[0] == submit(url, "a b")[0] == 400
    with serving(tmp_path, gate) as (url, _):
        assert submit(url, "one") == first  # also after a restart
        gate.open()
