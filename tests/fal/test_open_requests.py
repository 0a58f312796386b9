"""What is kept between runs: by several programs at once, over damage, and from earlier versions."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest

from trellis_core.errors import InputError
from trellis_core.fal.open_requests import ACCEPTED, DATABASE, MADE, SENT, Notebook

PROCESSES = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")


def _write(folder: Path, name: str, count: int) -> None:
    book = Notebook(folder)
    for number in range(count):
        kept = book.begin(f"{name} {number}")
        book.keep_upload(name, str(number), "address")
        book.accepted(kept, f"id-{name}-{number}")


def test_entries_of_programs_that_share_a_folder_are_all_kept(tmp_path: Path) -> None:
    count = 15
    programs = [PROCESSES.Process(target=_write, args=(tmp_path, name, count)) for name in "abcd"]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert [program.exitcode for program in programs] == [0] * len(programs)
    book = Notebook(tmp_path)
    for name in "abcd":
        for number in range(count):
            kept = book.find(f"{name} {number}")
            assert kept is not None and (kept.state, kept.id) == (ACCEPTED, f"id-{name}-{number}")
            assert book.upload(name, str(number)) == "address"


def test_a_request_and_its_states(tmp_path: Path) -> None:
    book = Notebook(tmp_path)
    assert book.find("one") is None and book.find_id("") is None
    sent = book.begin("one")
    assert sent.state == SENT and sent.once and book.find("none", "one") == sent
    accepted = book.accepted(sent, "the-id")
    assert book.find_id("the-id") == accepted and accepted.once == sent.once
    made = Notebook(tmp_path).made(accepted, "{}")
    assert made.state == MADE and book.find("one") == made
    assert book.begin("one").once != sent.once
    book.forget(made)
    assert book.find("one") is None


def test_keys_stay_with_their_server_and_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAL_KEY", raising=False)
    book = Notebook(tmp_path / "deep" / "book")
    assert book.key("") == "" and book.keyed() == []
    book.set_key("", "hosted")
    book.set_key("http://Box:8000/fal", "boxed-secret")
    assert (book.key(""), book.key("http://box:8000/"), book.key("http://other:8000")) == ("hosted", "boxed-secret", "")
    monkeypatch.setenv("FAL_KEY", "environment")
    assert book.key("") == "environment" and book.key("http://other:8000") == ""
    files = list((tmp_path / "deep" / "book").iterdir())
    assert files and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    book.set_key("http://box:8000", "")
    assert book.keyed() == ["https://fal.ai"]
    assert not any(b"boxed-secret" in file.read_bytes() for file in files if file.exists())


@pytest.mark.parametrize("damage", [b"", b"no database" * 500, "middle"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes | str, caplog: pytest.LogCaptureFixture) -> None:
    book = Notebook(tmp_path)
    book.begin("one")
    file = tmp_path / DATABASE
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100) if isinstance(damage, str) else damage)
    assert book.find("one") is None
    kept = book.begin("two")
    assert Notebook(tmp_path).find("two") == kept
    assert not damage or ("damaged" in caplog.text and len(list(tmp_path.glob("*.damaged-*"))) == 1)


def test_a_folder_that_cannot_be_used_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(InputError, match="paid twice"):
        Notebook(tmp_path).begin("one")


def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trellis_core.fal import open_requests as module

    book, connect = Notebook(tmp_path), module._connect
    book.begin("one")

    def small(path: Path) -> sqlite3.Connection:
        database = connect(path)
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    monkeypatch.setattr(module, "_connect", small)
    with pytest.raises(InputError, match="full"):
        book.made(book.begin("two"), "x" * 100_000)
    monkeypatch.setattr(module, "_connect", connect)
    assert book.find("one") is not None and not list(tmp_path.glob("*.damaged-*"))


def test_notes_of_earlier_versions_are_taken_over(tmp_path: Path) -> None:
    now = time.time()
    notes = {
        "uploads": {"server digest": {"url": "http://a/b", "time": now}, "damaged": 3, "worse": {"url": None}},
        "requests": {"old": {"id": "the-id", "time": now - 1}, "damaged": {"id": 7}, "odd": {"id": "x", "time": "noon"}},
    }
    (tmp_path / "requests.json").write_text(json.dumps(notes))
    (tmp_path / "keys.json").write_text(json.dumps({"http://box:8000": "a key", "odd": 3}))
    book = Notebook(tmp_path)
    assert book.key("http://box:8000/fal") == "a key" and book.upload("server", "digest") == "http://a/b"
    kept = book.find("old")
    assert kept is not None and (kept.state, kept.id, kept.time) == (ACCEPTED, "the-id", now - 1)
    assert book.find_id("x") is not None and book.find("damaged") is None
    assert [path.name for path in tmp_path.glob("*.json")] == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"requests": 3}', b"\xff" * 9, b"[" * 10_000])
def test_damaged_notes_of_earlier_versions_are_left_aside(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "requests.json").write_bytes(text)
    assert Notebook(tmp_path).find("one") is None


def test_old_models_and_scraps_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from trellis_core.fal import open_requests as module

    monkeypatch.setattr(module, "KEPT_MODELS", 250)
    book, long_ago = Notebook(tmp_path), time.time() - module.KEPT_SCRAPS - 60
    paths = [book.model("server", str(number)) for number in range(4)]
    paths[0].parent.mkdir()
    for age, path in enumerate(paths):
        path.write_bytes(b"x" * 100)
        os.utime(path, (time.time() - age, time.time() - age))
    begun, given_up = (path.with_name(f"{path.name}.part") for path in paths[:2])
    for path in (begun, given_up):
        path.write_bytes(b"x" * 1000)
    os.utime(given_up, (long_ago, long_ago))
    book.tidy()
    assert [path.exists() for path in (*paths, begun, given_up)] == [True, True, False, False, True, False]


def test_a_request_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    import asyncio

    from PIL import Image

    from tests.helpers.fal_faults import faulty
    from trellis_core.fal.client import FalClient, data_uri
    from trellis_core.fal.order import order
    from trellis_core.fal.remote import generate
    from trellis_core.settings import GenerationSettings

    wanted = order("fal-ai/trellis-2", GenerationSettings(seed=4, resolution=512), [Image.new("RGBA", (8, 8))])
    with faulty() as server:
        picture = data_uri(wanted.files["image_url"][0].data, "image/png")
        body = [server.url, wanted.app, {"image_url": picture, "seed": 4, "resolution": 512}]
        fingerprint = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        (tmp_path / "requests.json").write_text(json.dumps({"requests": {fingerprint: {"id": "an-old-one", "time": 1.0}}}))
        server.accepted.append("an-old-one")
        made = asyncio.run(generate(FalClient("key", server.url), Notebook(tmp_path), wanted))
        assert made.request_id == "an-old-one" and server.asked["submit"] == 0
        assert Notebook(tmp_path).find(wanted.fingerprint(server.url)) is not None
