"""Our own client against our own service: what it sends, what it does not, and what it says when things go wrong."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402
from PIL import Image  # noqa: E402

from tests.helpers.fal_service import GLB, KEY, Gate, serving  # noqa: E402
from trellis_core.errors import InputError  # noqa: E402
from trellis_core.fal import client as module  # noqa: E402
from trellis_core.fal.client import FalClient, RemoteError, arguments_for, endpoint_for, scrub  # noqa: E402
from trellis_core.fal.endpoints import ENDPOINTS  # noqa: E402
from trellis_core.fal.open_requests import Notebook  # noqa: E402
from trellis_core.fal.remote import base_color, generate  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402

PLAIN, LORA = "fal-ai/trellis-2", "fal-ai/trellis-2-lora"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "INLINE", 0)
    monkeypatch.delenv("FAL_KEY", raising=False)


def _picture() -> Image.Image:
    picture = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    return picture


def _make(url: str, folder: Path, key: str = KEY, app: str = PLAIN, **more: Any) -> Any:
    book = Notebook(folder / "book")
    client = FalClient(key, url, book.uploads())
    settings = more.pop("settings", GenerationSettings(seed=3, resolution=512))
    return asyncio.run(generate(client, book, app, _picture(), settings, base_url=url, **more))


@pytest.mark.parametrize("app", ENDPOINTS)
def test_only_fields_of_the_endpoint_are_sent(app: str) -> None:
    everything = GenerationSettings(image_url="x", resolution=512).model_dump()
    sent = arguments_for(app, GenerationSettings(**everything))
    assert set(sent) <= set(ENDPOINTS[app].fields)
    assert arguments_for(app, GenerationSettings(image_url="x", resolution=1024))["resolution"] == 1024
    assert ("seed" in sent) is False


def test_values_that_an_endpoint_lacks_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="512 or 1024"):
        arguments_for(LORA, GenerationSettings(resolution=1536))
    with pytest.raises(InputError, match="LoRA"):
        endpoint_for("trellis-2", True)
    assert (endpoint_for("auto", True), endpoint_for("auto", False)) == (LORA, PLAIN)
    with pytest.raises(InputError, match="FAL_KEY"):
        FalClient("")
    for wrong in ("box", "file:///a", "http://user:pw@box/fal"):
        with pytest.raises(InputError):
            FalClient(KEY, wrong)


def test_a_model_with_loras_and_progress_and_nothing_sent_twice(tmp_path: Path) -> None:
    gate, states = Gate(), []
    with serving(tmp_path / "data", gate) as (url, service):
        loras = {"texture_lora_url": b"weights"}
        made = _make(url, tmp_path, app=LORA, loras=loras, on_state=states.append)
        assert (made.glb, made.seed) == (GLB, 3)
        assert list(gate.seen[0].loras) == ["texture_lora_url"] and gate.seen[0].picture.mode == "RGBA"
        assert states[-1].status == "COMPLETED" and states[-1].fraction == 1.0
        files = len(service.store)

        again = _make(url, tmp_path, app=LORA, loras=loras)
        assert again.request_id == made.request_id and len(gate.seen) == 1  # found again, as after a restart
        other = _make(url, tmp_path, app=LORA, loras=loras, settings=GenerationSettings(seed=4, resolution=512))
        assert other.request_id != made.request_id
        assert len(service.store) == files + 1  # the new model; picture and LoRA were there

        resumed = _make(url, tmp_path, request_id=made.request_id, app=LORA)
        assert resumed.glb == GLB and len(gate.seen) == 2


def test_uploads_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "PART", 1000)
    data = bytes(range(256)) * 15
    with serving(tmp_path) as (url, service):
        address = asyncio.run(FalClient(KEY, url).upload(data, "a.safetensors", "application/octet-stream"))
        stored = service.store.get(address.split("/")[-2])
        assert service.store.path(stored).read_bytes() == data


def test_a_stop_cancels_the_remote_job(tmp_path: Path) -> None:
    gate = Gate(closed=True)

    async def stopped(url: str, book: Notebook) -> None:
        client = FalClient(KEY, url)
        begun = asyncio.Event()
        work = generate(
            client, book, PLAIN, _picture(), GenerationSettings(seed=1), base_url=url,
            on_state=lambda state: begun.set() if state.status == "IN_PROGRESS" else None,
        )  # fmt: skip
        task = asyncio.ensure_future(work)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serving(tmp_path / "data", gate) as (url, service):
        asyncio.run(stopped(url, Notebook(tmp_path / "book")))
        (job,) = service.queue._jobs.values()
        assert job.cancel.is_set()


def test_errors_of_the_service_in_words(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="cannot be reached"):
        _make("http://127.0.0.1:9/fal", tmp_path)
    with serving(tmp_path / "data") as (url, _):
        with pytest.raises(RemoteError, match="does not know the key"):
            _make(url, tmp_path, key="wrong")
        with pytest.raises(RemoteError, match="request id is wrong or too old"):
            _make(url, tmp_path, request_id="0" * 36)
        with pytest.raises(InputError, match="is not a request id"):
            _make(url, tmp_path, request_id="../../x")
        loras = {"texture_lora_url": b""}
        small = Image.new("RGB", (2, 2))
        with pytest.raises(RemoteError, match="image_url") as caught:
            client = FalClient(KEY, url)
            asyncio.run(
                generate(client, Notebook(tmp_path), LORA, small, GenerationSettings(seed=1, resolution=512), loras=loras)
            )
        assert caught.value.fields[0][0] == "image_url"


class _Answers:
    """A server that gives what it is told to give, and notes what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        kind = {"initiate": "initiate", "status": "status", "cancel": "cancel"}.get(request.path.rsplit("/", 1)[-1])
        kind = kind or ("put" if request.method == "PUT" else "submit" if request.method == "POST" else "result")
        self.asked.append((kind, request.headers.get("Authorization")))
        given = self.answers[kind]
        given = given.pop(0) if isinstance(given, list) and len(given) > 1 else given[0] if isinstance(given, list) else given
        status, body, *headers = given
        if status == 0:
            request.transport.close()  # type: ignore[union-attr]
        return web.json_response(body, status=status or 200, headers=headers[0] if headers else None)


def _against(answers: _Answers, folder: Path) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answers)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        answers.answers.setdefault("initiate", (200, {"upload_url": f"{url}/put", "file_url": f"{url}/file"}))
        answers.answers.setdefault("put", (200, {}))
        book = Notebook(folder)
        try:
            client = FalClient(KEY, url)
            return await generate(client, book, PLAIN, _picture(), GenerationSettings(seed=1), base_url=url)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, {"detail": "User is locked. Reason: Exhausted balance. Top up your balance."}, "balance is used up"),
        (429, {"detail": "slow down"}, "asked too much"),
        (500, {"detail": f"oops Key {KEY}"}, "problem of its own"),
        (502, None, "problem of its own"),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Input should be less", "type": "x", "input": "secret"}]}, "seed"),
        (418, {"detail": {"odd": 1}}, "418"),
    ],
)
def test_refusals_in_words_and_submitted_once(tmp_path: Path, status: int, body: Any, said: str) -> None:
    answers = _Answers(submit=(status, body))
    with pytest.raises(RemoteError, match=said) as caught:
        _against(answers, tmp_path)
    assert [kind for kind, _ in answers.asked].count("submit") == 1
    assert KEY not in str(caught.value) and "secret" not in str(caught.value)


def test_a_connection_that_breaks_while_submitting_is_not_tried_again(tmp_path: Path) -> None:
    answers = _Answers(submit=(0, {}))
    with pytest.raises(RemoteError, match="may run, and be billed"):
        _against(answers, tmp_path)
    assert [kind for kind, _ in answers.asked].count("submit") == 1


def test_a_server_that_stumbles_is_asked_again_and_the_key_goes_only_to_it(tmp_path: Path) -> None:
    answers = _Answers(
        submit=(200, {"request_id": "a" * 36, "status_url": "http://evil.example/", "response_url": "http://evil.example/"}),
        status=[(503, {}), (0, {}), (200, {"status": "IN_PROGRESS", "logs": None}), (200, {"status": "COMPLETED", "logs": []})],
        result=[(502, {}), (200, {"model_glb": {"url": "http://10.0.0.1/a.glb"}})],
        cancel=(202, {}),
    )
    with pytest.raises(InputError, match="not a public host"):
        _against(answers, tmp_path)
    kinds = [kind for kind, _ in answers.asked]
    assert kinds.count("status") == 4 and kinds.count("result") == 2 and kinds.count("submit") == 1
    assert all((key is None) == (kind == "put") for kind, key in answers.asked)


DONE = (200, {"status": "COMPLETED", "logs": []})
MADE = (200, {"model_glb": {"url": "http://10.0.0.1/a.glb"}})


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"status": (503, {})}, "has not answered"),
        ({"status": (500, {})}, "has not answered"),
        ({"status": (429, {})}, "has not answered"),
        ({"status": (401, {"detail": "no"})}, "does not know the key"),
        ({"status": DONE, "result": MADE}, "not a public host"),
    ],
)  # fmt: skip
def test_what_may_still_be_there_is_asked_for_again_and_not_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Any, said: str
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    submit = (200, {"request_id": "a" * 36})
    with pytest.raises(InputError if "host" in said else RemoteError, match=said):
        _against(_Answers(submit=submit, **then), tmp_path)
    (kept,) = json.loads((tmp_path / "requests.json").read_text())["requests"].values()
    assert kept["id"] == "a" * 36


@pytest.mark.parametrize("status", [422, 500, 503, 504])
def test_a_job_that_failed_is_told_at_once_and_forgotten(tmp_path: Path, status: int) -> None:
    ended = (status, {"detail": "CUDA error: out of memory"}, {"x-fal-request-id": "a" * 36})
    answers = _Answers(submit=(200, {"request_id": "a" * 36}), status=DONE, result=ended)
    with pytest.raises(RemoteError, match="out of memory"):
        _against(answers, tmp_path)
    assert [kind for kind, _ in answers.asked].count("result") == 1
    assert json.loads((tmp_path / "requests.json").read_text())["requests"] == {}


def test_files_that_the_api_threw_away_are_sent_again(tmp_path: Path) -> None:
    gate = Gate()
    with serving(tmp_path / "data", gate) as (url, service):
        first = _make(url, tmp_path)
        for stored in list(service.store._files.values()):
            service.store.delete(stored)
        other = _make(url, tmp_path, settings=GenerationSettings(seed=9, resolution=512))
        assert other.glb == GLB and other.request_id != first.request_id and len(gate.seen) == 2


def test_keys_stay_with_their_server_and_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Notebook(tmp_path / "deep" / "book")
    assert book.key("") == "" and book.keyed() == []
    book.set_key("", "hosted")
    book.set_key("http://Box:8000/fal", "boxed")
    assert (book.key(""), book.key("http://box:8000/"), book.key("http://other:8000")) == ("hosted", "boxed", "")
    monkeypatch.setenv("FAL_KEY", "environment")
    assert book.key("") == "environment" and book.key("http://other:8000") == ""
    (file,) = (tmp_path / "deep" / "book").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    book.set_key("http://box:8000", "")
    assert book.keyed() == ["https://fal.ai"]
    file.write_text("{")
    assert book.key("http://box:8000") == ""


def test_secrets_are_taken_out_of_texts() -> None:
    text = scrub(f"GET /a?fal_jwt_token=abc&x=1 Key id:secret {KEY} ?signature=12.ab", KEY)
    assert not any(secret in text for secret in ("abc", "id:secret", KEY, "12.ab"))


def test_the_colour_texture_of_a_model() -> None:
    assert base_color(GLB) is None
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(buffer, "PNG")
    document = {
        "asset": {"version": "2.0"}, "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}], "images": [{"bufferView": 0}],
        "bufferViews": [{"byteOffset": 4, "byteLength": len(buffer.getvalue())}],
    }  # fmt: skip
    import struct

    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary = b"\0" * 4 + buffer.getvalue()
    binary += b"\0" * (-len(binary) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
    glb = head + struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    picture = base_color(glb)
    assert picture is not None and picture.getpixel((0, 0)) == (10, 20, 30)
