"""What our client asks of each endpoint, and what it refuses before anything is sent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
from PIL import Image  # noqa: E402

from tests.helpers.fal_faults import Faulty, faulty, glb  # noqa: E402
from trellis_core.errors import InputError  # noqa: E402
from trellis_core.fal import client as module  # noqa: E402
from trellis_core.fal.client import FalClient  # noqa: E402
from trellis_core.fal.endpoints import (  # noqa: E402
    ENDPOINTS,
    LORA_ENDPOINT,
    MULTI_ENDPOINT,
    PLAIN_ENDPOINT,
    RETEXTURE_ENDPOINT,
    payload_model,
)
from trellis_core.fal.open_requests import Notebook  # noqa: E402
from trellis_core.fal.order import SHORT_NAMES, Order, endpoint_for, mesh_file, order, price  # noqa: E402
from trellis_core.fal.remote import generate  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402

SCHEMAS = json.loads((Path(__file__).parents[1] / "host" / "object_info.json").read_text())
SETTINGS = GenerationSettings(seed=5, resolution=512, ss_sampling_steps=7, tex_slat_sampling_steps=3, texture_size=1024)


def _pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGBA", (8, 8), (index, 0, 0, 255)) for index in range(count)]


def _made(server: Faulty, folder: Path, wanted: Order) -> dict[str, Any]:
    """The body that the server got, which the endpoint's own model accepts."""
    asyncio.run(generate(FalClient("key", server.url), Notebook(folder), wanted))
    payload_model(wanted.app).model_validate(server.bodies[-1])
    assert set(server.bodies[-1]) <= set(ENDPOINTS[wanted.app].fields)
    return server.bodies[-1]


def test_several_views_go_to_multi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INLINE", 0)
    with faulty() as server:
        body = _made(server, tmp_path, order(MULTI_ENDPOINT, SETTINGS, _pictures(3)))
        assert len(set(body["image_urls"])) == 3 and "image_url" not in body
        assert body["ss_sampling_steps"] == 7 and body["resolution"] == 512 and body["seed"] == 5
        _made(server, tmp_path, order(MULTI_ENDPOINT, SETTINGS, _pictures(3)))
        assert len(server.accepted) == 1 and server.asked["put"] == 3
        _made(server, tmp_path, order(MULTI_ENDPOINT, SETTINGS, _pictures(3)[::-1]))
        assert len(server.accepted) == 2 and server.asked["put"] == 3  # another order of views, but the same files


def test_a_mesh_goes_to_retexture(tmp_path: Path) -> None:
    with faulty() as server:
        wanted = order(RETEXTURE_ENDPOINT, SETTINGS, _pictures(1), mesh=mesh_file(glb(), "GLB"))
        body = _made(server, tmp_path, wanted)
        assert body["mesh_url"].startswith(server.url) and body["image_url"].startswith("data:")
        assert body["tex_slat_sampling_steps"] == 3 and body["texture_size"] == 1024
        assert not any(name.startswith(("ss_", "shape_", "remesh", "decimation")) for name in body)


def test_status_of_an_endpoint_with_a_path_is_asked_without_it() -> None:
    assert FalClient("key")._job(RETEXTURE_ENDPOINT, "an-id") == "https://queue.fal.run/fal-ai/trellis-2/requests/an-id"
    assert FalClient("key")._job(LORA_ENDPOINT, "an-id") == "https://queue.fal.run/fal-ai/trellis-2-lora/requests/an-id"


@pytest.mark.parametrize(
    ("given", "app"),
    [
        ({}, PLAIN_ENDPOINT),
        ({"loras": True}, LORA_ENDPOINT),
        ({"views": 4}, MULTI_ENDPOINT),
        ({"mesh": True}, RETEXTURE_ENDPOINT),
    ],
)
def test_auto_takes_what_fits(given: dict[str, Any], app: str) -> None:
    assert endpoint_for("auto", **given) == endpoint_for(app.removeprefix("fal-ai/"), **given) == app


@pytest.mark.parametrize(
    ("choice", "given", "said"),
    [
        (
            "trellis-2-lora",
            {"views": 2, "loras": True},
            "one picture.*2 views.*trellis-2/multi, and without",
        ),
        ("auto", {"views": 2, "loras": True}, "trellis-2-lora takes one picture of an object"),
        ("trellis-2", {"views": 3}, "one picture.*3 views"),
        ("trellis-2/multi", {}, "2 to 8 pictures of one object, not 1"),
        ("trellis-2/multi", {"views": 9}, "2 to 8 pictures of one object, not 9"),
        ("trellis-2/multi", {"views": 2, "loras": True}, "takes no LoRAs"),
        ("trellis-2/retexture", {}, "connect one to mesh"),
        ("auto", {"mesh": True, "loras": True}, "takes no LoRAs"),
        ("auto", {"mesh": True, "views": 2}, "trellis-2/retexture takes one picture"),
        ("trellis-2", {"mesh": True}, "takes no mesh"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_sent(choice: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        endpoint_for(choice, **given)


def test_values_and_files_that_an_endpoint_lacks() -> None:
    with pytest.raises(InputError, match="512 or 1024, not 1536"):
        order(RETEXTURE_ENDPOINT, GenerationSettings(resolution=1536), _pictures(1), mesh=mesh_file(b"", "obj"))
    with pytest.raises(InputError, match="not as fbx: convert"):
        mesh_file(b"", ".FBX")


def test_prices() -> None:
    assert price(RETEXTURE_ENDPOINT, SETTINGS, "") == "about $0.20 at fal.ai"
    assert price(PLAIN_ENDPOINT, GenerationSettings(resolution=1536), "") == "about $0.35 at fal.ai"
    assert "fal.ai/models/fal-ai/trellis-2/multi" in price(MULTI_ENDPOINT, SETTINGS, "")
    assert price(PLAIN_ENDPOINT, SETTINGS, "http://box/fal") == ""


def test_a_request_is_the_same_wherever_its_files_are_and_however_they_are_packed() -> None:
    one, other = (order(PLAIN_ENDPOINT, SETTINGS, _pictures(1)) for _ in range(2))
    assert one.fingerprint("server") == other.fingerprint("server") != one.fingerprint("elsewhere")
    different = [
        order(PLAIN_ENDPOINT, SETTINGS.model_copy(update={"seed": 6}), _pictures(1)),
        order(PLAIN_ENDPOINT, SETTINGS, _pictures(2)[1:]),
        order(MULTI_ENDPOINT, SETTINGS, _pictures(2)),
        order(LORA_ENDPOINT, SETTINGS, _pictures(1), loras={"texture_lora_url": b"a"}),
        order(LORA_ENDPOINT, SETTINGS, _pictures(1), loras={"texture_lora_url": b"b"}),
        order(LORA_ENDPOINT, SETTINGS, _pictures(1), loras={"geometry_lora_url": b"b"}),
    ]
    assert len({wanted.fingerprint("server") for wanted in (one, *different)}) == 7


@pytest.mark.parametrize("node", ["TrellisCoreFalGenerate", "TrellisCoreFalApi"])
def test_the_nodes_offer_every_endpoint(node: str) -> None:
    assert SCHEMAS[node]["inputs"]["endpoint"]["options"] == ["auto", *SHORT_NAMES]
