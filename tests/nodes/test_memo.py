"""What is handed out again, and what is not."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest

from trellis_core.family import load_family
from trellis_core.lora.source import BUNDLED
from trellis_core.lora.stack import Lora, place
from trellis_core.settings import GenerationSettings

from .test_node_pictures import load


@pytest.fixture
def memo() -> ModuleType:
    module = load("memo")
    module._kept.clear()
    return module


def test_the_same_inputs_give_the_same_result(memo: ModuleType) -> None:
    one, other = [1], [1]
    first = memo.remembered("node", 1, (one,), object)
    assert memo.remembered("node", 1, (one,), object) is first
    assert memo.remembered("node", 1, (other,), object) is not first, "equal is not the same"
    assert memo.remembered("node", 1, (one,), object) is not first, "only the last one is kept"
    second = memo.remembered("node", 2, (one,), object)
    assert memo.remembered("other", 2, (one,), object) is not second


def test_few_results_are_kept(memo: ModuleType) -> None:
    for number in range(memo.KEPT + 5):
        memo.remembered(number, 0, (), object)
    assert len(memo._kept) == memo.KEPT


def test_a_stage_does_not_care_for_the_loras_and_settings_of_others(memo: ModuleType) -> None:
    family, settings = load_family("mini"), GenerationSettings(resolution=512)
    polished = [
        place(family, [Lora(next(BUNDLED.glob("polished*")), strength)], family.route(512))[0] for strength in (1.0, 0.5)
    ]
    for stage in ("structure", "shape"):
        assert memo.stage_key(polished[0], stage, settings) == memo.stage_key(polished[1], stage, settings)
    assert memo.stage_key(polished[0], "texture", settings) != memo.stage_key(polished[1], "texture", settings)
    painted = GenerationSettings(resolution=512, tex_slat_sampling_steps=3)
    assert memo.stage_key(family, "shape", painted) == memo.stage_key(family, "shape", settings)
    formed = GenerationSettings(resolution=512, shape_slat_sampling_steps=3)
    assert memo.stage_key(family, "shape", formed) != memo.stage_key(family, "shape", settings)
    assert memo.stage_key(family, "shape", settings, ["resolution"]) != memo.stage_key(
        family, "shape", GenerationSettings(resolution=1024), ["resolution"]
    )


def test_a_folder_that_the_editor_cannot_find_is_told(caplog: pytest.LogCaptureFixture) -> None:
    pack = load("__init__")
    for name, told in (("trellis2-core", 0), ("TRELLIS 2", 1), ("trellis(2)", 1), ("[x]", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pack._look_at_folder(name)
        assert len(caplog.records) == told, name
