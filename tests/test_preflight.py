"""What can be known before a run is said before it, to everybody who starts one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.tiny_family import picture
from trellis_core import stages
from trellis_core.cli.main import main
from trellis_core.context import RunContext
from trellis_core.errors import OutOfBudgetError, TrellisError
from trellis_core.fal.service.inputs import Inputs
from trellis_core.fal.service.local import maker
from trellis_core.family import Family, load_family
from trellis_core.settings import GenerationSettings

SETTINGS = GenerationSettings(resolution=512, texture_size=1024)


@pytest.fixture
def untouched() -> Family:
    """A family of which no network may be read."""
    return replace(load_family("mini"), hold=lambda *_: pytest.fail("a network was read"))


def refused(family: Family, phrase: str, ctx: RunContext | None = None, **settings: Any) -> None:
    with pytest.raises(TrellisError, match=phrase):
        stages.generate_all(family, picture(), SETTINGS.model_copy(update=settings), ctx=ctx or RunContext())


def missing(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_packages_that_finishing_needs(untouched: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "fast_simplification")
    refused(untouched, "pip install fast-simplification")


def test_the_rasteriser_that_is_asked_for(untouched: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "nvdiffrast", "nvdiffrast.torch")
    refused(untouched, 'rasterizer to "torch"', rasterizer="nvdiffrast")
    monkeypatch.setitem(sys.modules, "nvdiffrast", SimpleNamespace(torch=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", SimpleNamespace())
    refused(untouched, "NVIDIA GPUs only", rasterizer="nvdiffrast")


def test_a_texture_format_that_pillow_lacks(untouched: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "webp")
    refused(untouched, "cannot write webp", image_format="webp")


def test_memory_of_textures_and_maps(untouched: Family) -> None:
    refused(untouched, "'unwrap'.*texture_size", RunContext(memory_budget=400_000_000), texture_size=4096)
    budget = RunContext(memory_budget=700_000_000)
    refused(untouched, "'detail'.*texture_size", budget, texture_size=4096, normal_map=True)


def test_a_batch_needs_no_more_memory_than_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects go through each network one after another."""
    rows: list[int] = []
    family = load_family("mini")
    original = Family.network
    monkeypatch.setattr(Family, "network", lambda self, *args: rows.append(args[-1]) or original(self, *args))
    quick = SETTINGS.model_copy(update={"ss_sampling_steps": 1, "shape_slat_sampling_steps": 1, "tex_slat_sampling_steps": 1})
    counts = []
    for pictures in ([picture()], [picture()] * 3):
        rows.clear()
        stages.sample_structure(family, stages.condition(family, pictures, quick), quick, 1)
        counts.append(list(rows))
    assert counts[0] == counts[1]


def test_command_line_and_service_ask_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    asked: list[GenerationSettings] = []

    def refuse(_family: Family, settings: GenerationSettings, *_: object) -> None:
        asked.append(settings)
        raise OutOfBudgetError("not today")

    monkeypatch.setattr(stages, "check_run", refuse)
    monkeypatch.setattr(stages, "condition", lambda *_, **__: pytest.fail("the run began"))
    picture().save(tmp_path / "disc.png")
    assert main(["generate", str(tmp_path / "disc.png"), "-o", str(tmp_path / "disc.glb"), "--texture-size", "1024"]) == 1
    assert "not today" in capsys.readouterr().err
    with pytest.raises(OutOfBudgetError):
        maker(load_family("mini"), None)(Inputs(SETTINGS, picture(), {}), RunContext())
    assert [settings.texture_size for settings in asked] == [1024, 1024]


def test_all_pictures_of_a_batch_become_assets_in_order() -> None:
    seen: list[int] = []
    told: list[float] = []
    family, quick = load_family("mini"), {"ss_sampling_steps": 2, "shape_slat_sampling_steps": 2, "tex_slat_sampling_steps": 1}
    settings = SETTINGS.model_copy(update={**quick, "decimation_target": 5000, "remesh": False})
    ctx = RunContext(on_progress=lambda fraction, _: told.append(fraction))
    small = picture().resize((32, 32))
    made = stages.generate_all(
        family, [picture(), small], settings, seed=3, on_condition=lambda c: seen.append(len(c.pictures)), ctx=ctx
    )
    assert seen == [2] and len(made) == 2
    assert told == sorted(told) and told[-1] == 1.0
    again = stages.generate_all(family, [picture(), small], settings, seed=3)
    assert [asset.glb for asset in again] == [asset.glb for asset in made]
