"""The service against full quotas, second starts, damaged folders, and being told to stop."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from tests.fal.test_fal_service import APP, _call, _end, _submit, _until  # noqa: E402
from tests.helpers.fal_service import GLB, KEY, OTHER_KEY, PIXELS, Gate, serving  # noqa: E402
from tests.helpers.misbehaving import Stranger, tiresome_host  # noqa: E402
from trellis_core.errors import InputError  # noqa: E402
from trellis_core.fal.service.config import Limits  # noqa: E402
from trellis_core.fal.service.inputs import room_for  # noqa: E402
from trellis_core.fal.service.local import Made  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402

ROOM = room_for(GenerationSettings(texture_size=1024, decimation_target=5000))
SMALL = {"image_url": PIXELS, "texture_size": 1024, "decimation_target": 5000, "resolution": 512}


def _work(url: str, key: str = KEY, **values: Any) -> tuple[int, Any, Any]:
    return _call("POST", f"{url}/run/{APP}", {**SMALL, **values}, key=key)


def _upload(url: str, data: bytes, key: str = KEY) -> tuple[int, Any]:
    token = _call("POST", f"{url}/rest/storage/auth/token", key=key)[1]["token"]
    return _call("POST", f"{url}/cdn/files/upload", data, token)[:2]


def test_a_full_quota_is_told_before_the_work_and_is_one_keys_own(tmp_path: Path) -> None:
    gate = Gate()
    with serving(tmp_path, gate, quota=4 * ROOM, quota_per_key=2 * ROOM) as (url, service):
        assert _work(url)[0] == 200 and len(gate.seen) == 1
        status, file = _upload(url, os.urandom(ROOM * 3 // 2))
        assert status == 200
        status, body, _ = _work(url)
        assert status == 507 and "Delete" in body["detail"] and len(gate.seen) == 1
        assert _work(url, key=OTHER_KEY)[0] == 200  # one key's files are no other's trouble
        place = file["access_url"]
        assert _call("DELETE", place, key=OTHER_KEY)[0] == 404 and _call("DELETE", place, key=None)[0] == 401
        assert _call("DELETE", place)[0] == 204 and _call("GET", place, key=None)[0] == 404
        assert _work(url)[0] == 200
        assert service.accounts.total == 3 * len(GLB)


def test_requests_can_be_deleted_with_what_they_made(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (url, service):
        request_id = _submit(url)
        one = f"{url}/queue/{APP}/requests/{request_id}"
        assert _call("DELETE", one)[0] == 400
        gate.open()
        made = _end(url, request_id)[1]["model_glb"]["url"]
        assert _call("DELETE", one, key=OTHER_KEY)[0] == 404
        assert _call("DELETE", one)[0] == 204
        assert _call("GET", one)[0] == 404 and _call("GET", made, key=None)[0] == 404
        _until(lambda: service.accounts.total == 0 and not list((tmp_path / "content").iterdir()))


def test_the_oldest_results_give_way_where_that_is_wanted(tmp_path: Path) -> None:
    def make(*_: Any) -> Made:
        return Made(os.urandom(5000), 0)

    with serving(tmp_path, make, quota=ROOM + 12_000, keys=(KEY,), oldest_give_way=True) as (url, service):
        made = [_work(url)[1]["model_glb"]["url"] for _ in range(4)]
        assert [_call("GET", one, key=None)[0] for one in made] == [404, 200, 200, 200]
        _until(lambda: len(list((tmp_path / "content").iterdir())) == 3)


def test_the_numbers_of_files_uploads_and_records_are_limited_for_each_key(tmp_path: Path) -> None:
    limits = Limits(files_per_key=2, uploads_per_key=2, records_per_key=3)
    with serving(tmp_path, limits=limits) as (url, service):
        assert [_upload(url, b"")[0] for _ in range(3)] == [200, 200, 507]
        assert _upload(url, b"", OTHER_KEY)[0] == 200
        begin = f"{url}/rest/storage/upload/initiate-multipart"
        many = [_call("POST", begin, {}, key=OTHER_KEY)[0] for _ in range(3)]
        assert many == [200, 200, 507]
        ids = [_submit(url, resolution=3) for _ in range(5)]
        assert all(_end(url, one)[0] == 422 for one in ids[-1:])
        _until(lambda: len(service.queue._jobs) == 3)
        assert _call("GET", f"{url}/queue/{APP}/requests/{ids[0]}/status")[0] == 404


def test_a_second_start_on_the_same_folder_touches_nothing(tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (url, _):
        ids = [_submit(url, seed=n) for n in range(3)]
        token = _call("POST", f"{url}/rest/storage/auth/token")[1]["token"]
        parts = f"{url}/cdn/files/upload/multipart"
        begun = _call("POST", parts, b"", token, Content_Type="image/png")[1]
        part = f"{begun['access_url']}/multipart/{begun['uploadId']}"
        assert _call("PUT", f"{part}/1", b"first", token)[0] == 200
        with pytest.raises(InputError, match="Another service"), serving(tmp_path):
            pass
        assert _call("PUT", f"{part}/2", b"second", token)[0] == 200
        assert _call("POST", f"{part}/complete", {"parts": [{"partNumber": 1}, {"partNumber": 2}]}, token)[0] == 200
        assert _call("GET", begun["access_url"], key=None)[1] == b"firstsecond"
        gate.open()
        assert [_end(url, one)[1]["seed"] for one in ids] == [0, 1, 2] and len(gate.seen) == 3


STRAY = ["file", "folder", "full folder", "link to nowhere", "link out", "pipe", "\udcff name", "unreadable"]


@pytest.mark.parametrize("room", ["", "content", "inputs", "spool", "scratch", "files", "jobs"])
def test_stray_things_keep_no_service_from_starting(tmp_path: Path, room: str) -> None:
    with serving(tmp_path) as (url, _):
        kept = _end(url, _submit(url))[1]["model_glb"]["url"]
    place = tmp_path / room
    place.mkdir(exist_ok=True)
    for kind in STRAY:
        stray = place / kind
        if kind == "pipe":
            os.mkfifo(stray)
        elif "link" in kind:
            stray.symlink_to("/nowhere" if "nowhere" in kind else tmp_path)
        elif "folder" in kind:
            stray.mkdir()
            if "full" in kind:
                (stray / "a.json").write_text("{")
        else:
            stray.write_bytes(b"{")
            stray.chmod(0 if kind == "unreadable" else 0o600)
    with serving(tmp_path) as (url, _):
        assert _call("GET", url + kept[kept.index("/cdn") :], key=None)[1] == GLB
        assert _work(url)[0] == 200


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "folder", "wal"])
def test_a_damaged_database_is_set_aside(tmp_path: Path, damage: str) -> None:
    with serving(tmp_path) as (url, _):
        _end(url, _submit(url))
    file = tmp_path / "state.sqlite"
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "wal":
        (tmp_path / "state.sqlite-wal").write_bytes(b"noise" * 1000)
    else:
        data = file.read_bytes()
        noise = random.Random(0).randbytes(len(data))
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2 + 7], "noise": noise}[damage])
    with serving(tmp_path) as (url, _):
        assert _work(url)[0] == 200
    assert (tmp_path / "damaged").exists() == (damage in ("cut", "noise", "folder"))


BAD_VALUES = [
    ("status", "LOST"), ("status_code", "x"), ("answer", "{"), ("answer", "[]"), ("answer", '{"model_glb": 3}'),
    ("headers", "3"), ("logs", '[{"a": "b"}]'), ("ended", None), ("created", "soon"), ("app", "nobody/nothing"),
    ("id", "../../etc"), ("webhook_tries", "many"), ("answer", b"\xff"), ("answer", "[" * 5000),
]  # fmt: skip


def test_damaged_records_are_set_aside_and_the_others_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as (url, _):
        ids = [_submit(url, seed=n) for n in range(len(BAD_VALUES) + 1)]
        made = [_end(url, one)[1] for one in ids]
    with sqlite3.connect(tmp_path / "state.sqlite") as database:
        for one, (column, value) in zip(ids, BAD_VALUES, strict=False):
            database.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, one))
        database.execute("UPDATE files SET size = size + 1 WHERE job = ?", (ids[0],))
    with serving(tmp_path) as (url, _):
        assert _end(url, ids[-1])[1]["seed"] == len(BAD_VALUES)
        assert [_call("GET", f"{url}/queue/{APP}/requests/{one}")[0] for one in ids[:-1]] == [404] * len(BAD_VALUES)
        place = made[0]["model_glb"]["url"]
        assert _call("GET", url + place[place.index("/cdn") :], key=None)[0] == 404
        assert _work(url)[0] == 200
    assert caplog.text.count("set aside") >= len(BAD_VALUES)


def test_a_file_that_is_not_what_was_kept_is_not_served(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, service):
        made = _end(url, _submit(url))[1]["model_glb"]["url"]
        (content,) = (tmp_path / "content").iterdir()
        for harm in (lambda: content.write_bytes(GLB[:-1]), content.unlink):
            harm()
            status, body, _ = _call("GET", made, key=None)
            assert status == 404 and "damaged" in body["detail"]


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, None])
def test_a_secret_is_whole_or_made_anew(tmp_path: Path, content: bytes | None) -> None:
    secret = tmp_path / "secret"
    secret.mkdir() if content is None else secret.write_bytes(content)
    with serving(tmp_path) as (url, _):
        assert len(secret.read_bytes()) == 32 and secret.read_bytes() != content
        assert secret.stat().st_mode & 0o077 == 0
        known = secret.read_bytes()
    with serving(tmp_path):
        assert secret.read_bytes() == known


def test_impossible_folders_are_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        Path("/proc/nowhere"),
        Path("/dev/null"),
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(InputError), serving(place):
            pass


def test_a_folder_that_goes_away_is_507(tmp_path: Path) -> None:
    import shutil

    with serving(tmp_path / "data") as (url, _):
        shutil.rmtree(tmp_path / "data")
        assert _upload(url, bytes(200_000))[0] == 507
        status, _, _ = _call("POST", f"{url}/queue/{APP}", {"image_url": PIXELS + " " * 200_000})
        assert status == 507


def _old_folder(folder: Path) -> dict[str, str]:
    """As version 0.1.0 left it: a waiting, a finished and a running job, an upload, damaged notes. Ids by what they are."""
    ids = {name: str(uuid.uuid4()) for name in ("waiting", "done", "running", "damaged")}
    files, jobs = folder / "files", folder / "jobs"
    files.mkdir(parents=True)
    jobs.mkdir()
    (folder / "secret").write_bytes(b"s" * 32)
    now = time.time()
    owner = __import__("hashlib").sha256(KEY.encode()).digest().hex()[:32]
    for number, name in enumerate(ids):
        record: dict[str, Any] = {
            "id": ids[name], "app": APP, "owner": owner, "origin": "http://x/fal", "line": [0, number], "created": now,
            "input_size": 10, "status": "IN_QUEUE", "logs": [], "answer": None, "headers": {},
        }  # fmt: skip
        if name == "done":
            file = {"url": f"/cdn/files/{'a' * 32}/m.glb", "content_type": "model/gltf-binary", "file_name": "m.glb"}
            record |= {"status": "COMPLETED", "started": now, "ended": now + 2, "status_code": 200}
            record["answer"] = {"model_glb": {**file, "file_size": len(GLB)}}
        elif name == "running":
            record |= {"status": "IN_PROGRESS", "started": now}
        (jobs / f"{ids[name]}.job").write_text(json.dumps(record)[: 50 if name == "damaged" else None])
        if name != "done":
            (jobs / f"{ids[name]}.input").write_bytes(json.dumps({"image_url": PIXELS, "seed": 5}).encode())
    for letter, name, data in (("a", "m.glb", GLB), ("b", "p.png", b"picture"), ("c", "cut.bin", b"cut")):
        note = {"id": letter * 32, "name": name, "content_type": "image/png", "size": len(data), "expires": now + 9999}
        (files / (letter * 32)).write_bytes(data)
        (files / f"{letter * 32}.json").write_text(json.dumps(note | ({"size": 99} if letter == "c" else {})))
    (files / f"{'d' * 32}.json").write_text("{")
    (files / f"{'e' * 32}.parts").mkdir()
    (files / "left.draft").touch()
    (jobs / "left.draft").touch()
    return ids


def test_a_folder_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    ids = _old_folder(tmp_path)
    for _ in range(2):
        with serving(tmp_path) as (url, service):
            assert _end(url, ids["waiting"])[1]["seed"] == 5
            assert _end(url, ids["running"])[1]["detail"].startswith("failed: restarted")
            made = _end(url, ids["done"])[1]["model_glb"]["url"]
            assert _call("GET", made, key=None)[1] == GLB
            assert _call("GET", f"{url}/cdn/files/{'b' * 32}/p.png", key=None)[1] == b"picture"
            assert _call("GET", f"{url}/queue/{APP}/requests/{ids['damaged']}/status")[0] == 404
            assert service.accounts.total == 2 * len(GLB) + len(b"picture")
        assert not (tmp_path / "jobs").exists() and not (tmp_path / "files").exists()
    kept = [path.name.rpartition(".")[0] for path in (tmp_path / "damaged").iterdir()]
    assert {f"{ids['damaged']}.job", f"{ids['damaged']}.input", "c" * 32, "c" * 32 + ".json"} <= set(kept)


# In processes of their own

SERVER = """
import asyncio, sys
from pathlib import Path
from tests.helpers.fal_service import KEY, Gate
from trellis_core.fal.service.app import Service
from trellis_core.fal.service.config import ServiceConfig
from trellis_core.fal.service.local import LocalRunner
from trellis_core.fal.service.serve import run_service
gate = Gate(closed=sys.argv[2] == "closed")
def deaf(inputs, ctx):
    gate.began.release()
    while True: __import__("time").sleep(0.1)
service = Service(ServiceConfig(Path(sys.argv[1]), (KEY,), trusted=tuple(sys.argv[3:])))
make = deaf if sys.argv[2] == "deaf" else gate
run_service(service, LocalRunner(make, service.reader, service.store, service.pools), "127.0.0.1", 0)
"""


def _start(folder: Path, how: str, *trusted: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", SERVER, str(folder), how, *trusted]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[1].rstrip(".")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_whatever_it_is_doing_and_waiting_jobs_stay(tmp_path: Path, number: int) -> None:
    with tiresome_host() as (host, heard):
        process, url = _start(tmp_path, "deaf", host[7:])
        slow = _submit(url, image_url=host + "/a.png")
        heard.acquire()
        waiting = [_submit(url, seed=n) for n in range(3)]
        with Stranger(url) as stream, Stranger(url) as half, Stranger(url) as sync, Stranger(url):
            key = f"Authorization: Key {KEY}"
            stream.send(stream.head("GET", f"/queue/{APP}/requests/{slow}/status/stream", key))
            stream.socket.recv(100)
            half.send(half.head("POST", f"/queue/{APP}", key, "Content-Length: 1000") + b"{")
            body = json.dumps({"image_url": PIXELS}).encode()
            sync.send(sync.head("POST", f"/run/{APP}", key, f"Content-Length: {len(body)}") + body)
            process.send_signal(number)
            process.wait(timeout=30)
    assert process.returncode == 0
    with serving(tmp_path) as (url, _):
        assert sorted(_end(url, one)[1].get("seed", -1) for one in waiting)[-2:] == [1, 2]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    process, url = _start(tmp_path, "closed")
    _submit(url)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_port_in_use_ends_the_start_before_anything_is_begun(tmp_path: Path) -> None:
    import asyncio

    from trellis_core.fal.service.app import Service
    from trellis_core.fal.service.config import ServiceConfig
    from trellis_core.fal.service.serve import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="listen"):
        asyncio.run(serve(Service(ServiceConfig(tmp_path)), None, "127.0.0.1", taken.getsockname()[1]))  # type: ignore[arg-type]
    with serving(tmp_path):
        pass  # the folder is free again


@pytest.mark.parametrize("kills", [2])
def test_kills_lose_nothing(tmp_path: Path, kills: int) -> None:
    """The long form of this is in `python -m tests.service_trial`."""
    from tests.service_trial import killing

    told = killing(tmp_path, kills, seed=3)
    assert told["lost"] == 0 and told["submitted"] > 0 and told["half files"] == 0
