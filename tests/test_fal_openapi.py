"""The OpenAPI document tells the truth, and nothing that it allows or forbids makes the server fail."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tests.fal_service import KEY, serving  # noqa: E402
from trellis_core.fal.endpoints import payload_model  # noqa: E402
from trellis_core.settings import ENDPOINTS, GenerationSettings  # noqa: E402


def _document(url: str, app: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/openapi.json?endpoint_id={app}", timeout=20) as reply:
        return json.load(reply)


@pytest.mark.parametrize("app", ENDPOINTS)
def test_the_document_is_the_endpoints_own(tmp_path: Path, app: str) -> None:
    with serving(tmp_path) as (url, _):
        document = _document(url, app)
    assert document["servers"] == [{"url": url}] and f"/queue/{app}" in document["paths"]
    schema = document["components"]["schemas"][payload_model(app).__name__]
    assert tuple(schema["properties"]) == ENDPOINTS[app].fields and schema["required"] == ["image_url"]
    for name, entry in schema["properties"].items():
        assert entry["description"] == GenerationSettings.model_fields[name].description
        if name in ("resolution", "texture_size"):
            assert entry["type"] == "integer" and entry["enum"] == list(ENDPOINTS[app].choices.get(name, (512, 1024, 1536)))


@pytest.mark.parametrize("app", ENDPOINTS)
def test_no_request_makes_the_server_fail(tmp_path: Path, app: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    with serving(tmp_path) as (url, _):
        schema = schemathesis.openapi.from_dict(_document(url, app))
        tried = 0
        for operation in schema.get_all_operations():

            @settings(
                max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.ok().as_strategy())
            def send(case: Any) -> None:
                answer = case.call(base_url=url, headers={"Authorization": f"Key {KEY}"}, timeout=20)
                assert answer.status_code < 500, (case.method, case.path, answer.text)

            send()
            tried += 1
    assert tried == 5
