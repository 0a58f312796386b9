"""What the app on fal's machines does for one request, with stand-ins for fal's own package."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tests.helpers.fal_service import GLB, PIXELS, Gate  # noqa: E402


class _App:
    def __init_subclass__(cls, **_: Any) -> None:
        pass


class _HTTPException(Exception):
    def __init__(self, status_code: int, detail: Any) -> None:
        self.status_code, self.detail = status_code, detail


class _File:
    @classmethod
    def from_bytes(cls, data: bytes, content_type: str, file_name: str) -> Any:
        made = {"url": "https://v3.fal.media/x", "content_type": content_type, "file_name": file_name, "file_size": len(data)}
        return SimpleNamespace(model_dump=lambda: made)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_ins = {
        "fal": {"App": _App, "endpoint": lambda path: lambda method: method}, "fal.toolkit": {"File": _File},
        "fastapi": {"HTTPException": _HTTPException},
    }  # fmt: skip
    for name, content in stand_ins.items():
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.delitem(sys.modules, "trellis_core.fal.deploy_fal", raising=False)
    return importlib.import_module("trellis_core.fal.deploy_fal")


@pytest.mark.parametrize("endpoint", ["plain", "with_loras"])
def test_a_request_becomes_a_model_or_fields_that_are_wrong(module: Any, monkeypatch: Any, endpoint: str) -> None:
    gate = Gate()
    monkeypatch.setattr(module, "load_rembg", lambda: None)
    monkeypatch.setattr(module, "load_family", lambda weights: None)
    monkeypatch.setattr(module, "maker", lambda *_: gate)
    app = module.Trellis()
    app.setup()
    model = module.Plain if endpoint == "plain" else module.WithLoras
    made = getattr(app, endpoint)(model(image_url=PIXELS, seed=4))
    assert made["model_glb"]["file_size"] == len(GLB) and ("seed" in made) == (endpoint == "with_loras")
    assert gate.seen[0].settings.seed == 4
    with pytest.raises(_HTTPException) as caught:
        getattr(app, endpoint)(model(image_url="http://10.0.0.1/a.png"))
    assert caught.value.status_code == 422 and caught.value.detail[0]["loc"] == ["body", "image_url"]
