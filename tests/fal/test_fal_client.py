"""Our own client against our own service: what it sends, what it does not, and what it says when things go wrong."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from PIL import Image  # noqa: E402

from tests.helpers.fal_service import GLB, KEY, Gate, serving  # noqa: E402
from trellis_core.errors import InputError  # noqa: E402
from trellis_core.fal import client as module  # noqa: E402
from trellis_core.fal.answers import RemoteError, scrub  # noqa: E402
from trellis_core.fal.client import FalClient  # noqa: E402
from trellis_core.fal.endpoints import ENDPOINTS  # noqa: E402
from trellis_core.fal.open_requests import Notebook  # noqa: E402
from trellis_core.fal.order import arguments_for, endpoint_for, order  # noqa: E402
from trellis_core.fal.remote import base_color, generate  # noqa: E402
from trellis_core.fal.wire import Pace  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402

PLAIN, LORA = "fal-ai/trellis-2", "fal-ai/trellis-2-lora"
QUICK = Pace(poll=0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INLINE", 0)
    monkeypatch.delenv("FAL_KEY", raising=False)


def _picture() -> Image.Image:
    picture = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    return picture


def _make(url: str, folder: Path, key: str = KEY, app: str = PLAIN, **more: Any) -> Any:
    settings = more.pop("settings", GenerationSettings(seed=3, resolution=512))
    wanted = order(app, settings, [more.pop("picture", _picture())], loras=more.pop("loras", None))
    return asyncio.run(generate(FalClient(key, url, QUICK), Notebook(folder / "book"), wanted, **more))


@pytest.mark.parametrize("app", ENDPOINTS)
def test_only_fields_of_the_endpoint_are_sent(app: str) -> None:
    everything = GenerationSettings(image_url="x", image_urls=("x", "y"), mesh_url="z", resolution=512).model_dump()
    sent = arguments_for(app, GenerationSettings(**everything))
    assert set(sent) <= set(ENDPOINTS[app].fields)
    assert arguments_for(app, GenerationSettings(image_url="x", resolution=1024))["resolution"] == 1024
    assert "seed" not in sent


def test_values_that_an_endpoint_lacks_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="512 or 1024"):
        arguments_for(LORA, GenerationSettings(resolution=1536))
    with pytest.raises(InputError, match="LoRA"):
        endpoint_for("trellis-2", loras=True)
    assert (endpoint_for("auto", loras=True), endpoint_for("auto")) == (LORA, PLAIN)
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


def test_our_service_says_that_it_takes_a_marked_job_once(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        assert asyncio.run(FalClient(KEY, url, QUICK).takes_once(PLAIN))
        assert not asyncio.run(FalClient(KEY, url, QUICK).takes_once("fal-ai/other"))
    assert not asyncio.run(FalClient(KEY, url, QUICK).takes_once(PLAIN)) and not asyncio.run(FalClient(KEY).takes_once(PLAIN))


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
            client, book, order(PLAIN, GenerationSettings(seed=1), [_picture()]),
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
        with pytest.raises(RemoteError, match="image_url") as caught:
            _make(url, tmp_path, app=LORA, picture=Image.new("RGB", (2, 2)), loras={"texture_lora_url": b""})
        assert caught.value.fields[0][0] == "image_url"


def test_files_that_the_api_threw_away_are_sent_again(tmp_path: Path) -> None:
    gate = Gate()
    with serving(tmp_path / "data", gate) as (url, service):
        first = _make(url, tmp_path)
        for stored in list(service.store._files.values()):
            service.store.delete(stored)
        other = _make(url, tmp_path, settings=GenerationSettings(seed=9, resolution=512))
        assert other.glb == GLB and other.request_id != first.request_id and len(gate.seen) == 2


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
