"""The OpenAPI document tells the truth, and nothing that it allows or forbids makes the server fail."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tests.helpers.fal_service import KEY, PIXELS, serving  # noqa: E402
from trellis_core.fal.endpoints import ENDPOINTS, SERVED, payload_model  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402


def _document(url: str, app: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/openapi.json?endpoint_id={app}", timeout=20) as reply:
        return json.load(reply)


@pytest.mark.parametrize("app", SERVED)
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


@pytest.mark.parametrize("app", SERVED)
def test_every_answer_is_as_the_document_says_and_none_is_a_500(tmp_path: Path, app: str) -> None:
    """Requests that the document allows and ones that it forbids, for jobs that are there and ones that are not."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    key = {"Authorization": f"Key {KEY}"}
    checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
    with serving(tmp_path) as (url, _):
        schema = schemathesis.openapi.from_dict(_document(url, app))
        codes: dict[str, set[int]] = {}
        for operation in (found.ok() for found in schema.get_all_operations()):
            name = operation.definition.raw["operationId"]
            known = {"path_parameters": {"request_id": _finished(url, app, key)}} if "{" in operation.path else None
            for mode in GenerationMode:
                for more in filter(lambda entry: entry is not None, ({}, known)):

                    @settings(
                        max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    )  # fmt: skip
                    @given(case=operation.as_strategy(mode, **more))
                    def send(case: Any) -> None:
                        answer = case.call(base_url=url, headers=key, timeout=20)
                        assert answer.status_code < 500, (case.method, case.path, answer.text)
                        case.validate_response(answer, checks=checks)
                        codes.setdefault(name, set()).add(answer.status_code)  # noqa: B023

                    send()
    assert set(codes) == {"submit", "run", "status", "result", "cancel"}
    assert 200 in codes["submit"] and 422 in codes["run"] and {200, 404} <= codes["status"] and {400, 404} <= codes["cancel"]


def _finished(url: str, app: str, key: dict[str, str]) -> str:
    """A job that has ended."""
    body = json.dumps({"image_url": PIXELS}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/run/{app}", body, key), timeout=20) as reply:
        return reply.headers["x-fal-request-id"]
