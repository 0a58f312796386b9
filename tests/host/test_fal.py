"""The fal node and the fal routes in the real host, against servers of this machine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
import aiohttp  # noqa: E402
import torch  # noqa: E402

from tests.helpers.fal_faults import faulty  # noqa: E402
from tests.helpers.fal_service import GLB, KEY, Gate, serving  # noqa: E402
from trellis_core.lora.read import read_lora  # noqa: E402
from trellis_core.lora.source import BUNDLED  # noqa: E402

from .conftest import Host, workflow  # noqa: E402


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def remote(tmp_path: Path, gate: Gate) -> Iterator[tuple[str, Any]]:
    with serving(tmp_path / "data", gate) as (url, service):
        yield url, service
        gate.open()


def _post(url: str, body: Any) -> tuple[int, Any]:
    async def send() -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
            return reply.status, json.loads(await reply.read() or b"null")

    return asyncio.run(send())


def _set_key(host: Host, url: str, key: str = KEY) -> None:
    status, answer = _post(f"{host.url}/trellis2/fal_keys", {"server": url, "key": key})
    assert status == 200, answer


SHARED = ("image", "mask", "preset", "resolution", "background", "mask_shows")
"""Inputs that Image to 3D has here and for fal."""


def _prompt(url: str, seed: int, **inputs: Any) -> dict[str, Any]:
    """Picture, the fal node, Save GLB."""
    prompt = workflow("one_node")
    values = {k: v for k, v in prompt["3"]["inputs"].items() if k in SHARED}
    values |= {"endpoint": "auto", "base_url": url, "request_id": "", "seed": seed, **inputs}
    return {"1": prompt["1"], "3": {"class_type": "TrellisCoreFalGenerate", "inputs": values}, "4": prompt["4"]}


def test_a_model_comes_from_a_server_and_the_key_is_nowhere(host: Host, remote: tuple[str, Any], gate: Gate) -> None:
    url, service = remote
    _set_key(host, url)
    done = host.client.run(_prompt(url, 5))
    assert done.how == "success", done.message()
    saved = host.client.download(done.files()[0])
    assert saved[:4] == GLB[:4]
    (inputs,) = gate.seen
    assert inputs.settings.seed == 5 and inputs.settings.resolution == 512 and inputs.picture.mode == "RGBA"
    assert "request" in done.outputs["3"]["text"][0] and "$" not in done.outputs["3"]["text"][0]
    for place in (f"/history/{done.prompt_id}", "/object_info/TrellisCoreFalGenerate", "/trellis2/fal_keys", "/settings"):
        assert KEY not in json.dumps(host.client.get(place))
    assert KEY.encode() not in saved and KEY not in host.log.read_text()
    kept = list((host.base / "user").rglob("client.sqlite3"))
    assert len(kept) == 1 and kept[0].stat().st_mode & 0o077 == 0 and "__" in str(kept[0])

    again = host.client.run(_prompt(url, 5))
    assert "3" in again.cached

    request_id = done.outputs["3"]["text"][0].split()[1]
    resumed = host.client.run(_prompt(url, 6, request_id=request_id))
    assert resumed.how == "success", resumed.message()
    assert request_id in resumed.outputs["3"]["text"][0] and len(gate.seen) == 1


def test_loras_are_sent_with_their_strengths(host: Host, remote: tuple[str, Any], gate: Gate) -> None:
    url, _ = remote
    _set_key(host, url)
    prompt = _prompt(url, 9, loras=["9", 0])
    lora = next(name for name in _lora_names(host) if "polished-gold" in name)
    prompt["9"] = {"class_type": "TrellisCoreLoadLora", "inputs": {"lora": lora, "stage": "texture", "strength": 0.5}}
    done = host.client.run(prompt)
    assert done.how == "success", done.message()
    text = done.outputs["3"]["text"][0]
    assert "polished-gold.safetensors at 0.5" in text and "trellis-2-lora" in text
    (sent,) = (read_lora(path) for path in gate.seen[0].loras.values())
    whole = read_lora(BUNDLED / "polished-gold.safetensors")
    name, delta = next(iter(whole.adapters[0].deltas.items()))
    nothing = torch.empty(0)
    torch.testing.assert_close(sent.adapters[0].deltas[name].matrix(nothing), delta.matrix(nothing) / 2, atol=1e-3, rtol=1e-2)


def _lora_names(host: Host) -> list[str]:
    (options, *_rest) = host.client.get("/object_info/TrellisCoreLoadLora")["TrellisCoreLoadLora"]["input"]["required"]["lora"]
    return options if isinstance(options, list) else _rest[0]["options"]


def test_views_and_meshes_go_to_endpoints_of_their_own(host: Host) -> None:
    with faulty() as server:
        _set_key(host, server.url)
        prompt = _prompt(server.url, 11, batch_is="views of one object")
        prompt["2"] = {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["1", 0]}}
        views = prompt["3"]["inputs"]
        views["image"] = ["2", 0]
        views.pop("mask", None)
        texture = {**views, "image": ["1", 0], "batch_is": "several objects", "mesh": ["3", 0], "seed": 12}
        prompt["5"] = {"class_type": prompt["3"]["class_type"], "inputs": texture}
        prompt["4"]["inputs"]["glb"] = ["5", 0]
        done = host.client.run(prompt)
        assert done.how == "success", done.message()
        assert "trellis-2/multi" in done.outputs["3"]["text"][0] and "trellis-2/retexture" in done.outputs["5"]["text"][0]
        first, second = server.bodies
        assert len(first["image_urls"]) == 2 and first["seed"] == 11
        assert second["mesh_url"].startswith(server.url) and "image_url" in second and "ss_sampling_steps" not in second

        views["endpoint"] = "trellis-2-lora"
        failed = host.client.run(prompt)
        assert failed.how == "error" and "takes one picture of an object" in failed.error["exception_message"], failed.message()
        assert len(server.accepted) == 2


def test_stop_cancels_the_remote_job(host: Host, tmp_path: Path) -> None:
    gate = Gate(closed=True)
    with serving(tmp_path, gate) as (url, service):
        _set_key(host, url)
        stopped = host.client.run(_prompt(url, 7), interrupt_at=("3", 0.0))
        assert stopped.how == "interrupted", stopped.message()
        deadline = time.monotonic() + 20
        while (job := next(iter(service.queue._jobs.values()))).status != "COMPLETED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert job.error_type == "client_cancelled"


def test_errors_in_plain_words(host: Host, remote: tuple[str, Any]) -> None:
    url, _ = remote
    for key, base, more, said in (
        ("", "", {}, "no fal.ai key"),
        ("not-the-key", url, {}, "does not know the key"),
        (KEY, "http://127.0.0.1:9/fal", {}, "cannot be reached"),
        (KEY, "file:///etc", {}, "must be an address like"),
        (KEY, url, {"request_id": "0" * 36}, "does not have"),
        (KEY, url, {"endpoint": "trellis-2-lora", "resolution": "1536"}, "512 or 1024"),
    ):
        if base.startswith("http"):
            _set_key(host, base, key)
        failed = host.client.run(_prompt(base, 8, **more))
        assert failed.how == "error" and said in failed.error["exception_message"], failed.message()
        assert not key or key not in failed.message()


def test_keys_can_be_set_and_not_read(host: Host) -> None:
    assert _post(f"{host.url}/trellis2/fal_keys", {"server": "http://box:1/fal", "key": "k" * 20})[0] == 200
    assert host.client.get("/trellis2/fal_keys")["keyed"].count("http://box:1") == 1
    assert _post(f"{host.url}/trellis2/fal_keys", {"server": "http://box:1", "key": ""})[1]["keyed"].count("http://box:1") == 0
    for wrong in ({}, [], {"key": 3}, {"key": "a b"}, {"server": "file:///", "key": "x"}):
        assert _post(f"{host.url}/trellis2/fal_keys", wrong)[0] == 400


def test_pages_of_other_sites_neither_set_keys_nor_start_jobs(host: Host) -> None:
    import urllib.error
    import urllib.request

    before = host.client.get("/trellis2/fal_keys")["keyed"]
    for path, body in (("/trellis2/fal_keys", b'{"key": "k"}'), ("/fal/queue/fal-ai/trellis-2", b'{"image_url": ""}')):
        for header, value in (
            ("Origin", "null"), ("Origin", "file://"), ("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-site"),
            ("Content-Type", "text/plain"), ("Content-Encoding", "gzip"),
        ):  # fmt: skip
            headers = {"Content-Type": "application/json"} | {header: value}
            request = urllib.request.Request(host.url + path, body, headers, method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=20)
            assert refused.value.code in (400, 403, 415), (path, header, value)
    assert host.client.get("/trellis2/fal_keys")["keyed"] == before


def test_the_host_itself_serves_the_api_through_its_own_queue(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    fal_client = pytest.importorskip("fal_client")
    import fal_client.client as module

    url = f"{host.url}/fal"
    for name, value in {
        "RUN_URL_FORMAT": f"{url}/run/", "QUEUE_URL_FORMAT": f"{url}/queue/",
        "REST_URL": f"{url}/rest", "CDN_URL": f"{url}/cdn",
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    client = fal_client.SyncClient(key="none is needed on the own machine")
    picture = client.upload_file(str(host.base / "input" / "icon_tree.png"))
    steps = {f"{stage}_sampling_steps": 4 for stage in ("ss", "shape_slat", "tex_slat")}
    arguments = {"image_url": picture, "resolution": 512, "texture_size": 1024, "seed": 3, **steps}
    first, second, third = (client.submit("fal-ai/trellis-2-lora", arguments) for _ in range(3))
    second.cancel()
    _post(f"{host.url}/queue", {"delete": [_prompt_of(host, third.request_id)]})  # as with the cross in the host's own list
    made = first.get()
    assert made["seed"] == 3 and made["model_glb"]["file_size"] > 10_000
    for taken_back in (second, third):
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            taken_back.get()
        assert caught.value.status_code == 499
    history = host.client.get("/history")
    assert any(first.request_id in json.dumps(entry["prompt"]) for entry in history.values())
    assert not any(second.request_id in json.dumps(entry["prompt"]) for entry in history.values())


def _prompt_of(host: Host, request_id: str) -> str:
    """The host's id of the waiting prompt that works off a request."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for _, prompt_id, prompt, *_rest in host.client.get("/queue")["queue_pending"]:
            if request_id in json.dumps(prompt):
                return prompt_id
        time.sleep(0.05)
    raise AssertionError("the request is not in the host's queue")


def test_one_switch_changes_where_it_is_made(host: Host, remote: tuple[str, Any], gate: Gate) -> None:
    url, _ = remote
    _set_key(host, url)
    prompt = workflow("here_or_fal")
    ids = {node["class_type"]: key for key, node in prompt.items()}
    prompt[ids["TrellisCoreFalGenerate"]]["inputs"]["base_url"] = url
    prompt[ids["TrellisCoreSwitch"]]["inputs"]["remote"] = True
    there = host.client.run(prompt)
    assert there.how == "success", there.message()
    assert ids["TrellisCoreGenerate"] not in there.executed and len(gate.seen) == 1
    assert gate.seen[0].settings.seed == prompt[ids["PrimitiveInt"]]["inputs"]["value"]
