"""Which network a LoRA was made for: every kind of evidence alone, and which one wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trellis_core.lora.deltas import Decomposed, Difference, LowRank
from trellis_core.lora.detect import CERTAIN, GUESSED, TOLD, by_magnitude, magnitude_names, origin_of
from trellis_core.lora.read import Adapter, LoraFile
from trellis_core.lora.scales import AdapterConfig, Config

BLOCK = {"blocks.0.self_attn.to_out.weight": (1536, 1536)}


def lora(
    name: str = "mine.safetensors",
    shapes: dict[str, tuple[int, int]] = BLOCK,
    stage: str | None = None,
    resolution: int | None = None,
    notes: dict[str, str] | None = None,
    **config: object,
) -> tuple[LoraFile, Adapter]:
    deltas = {key: LowRank(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0) for key, (rows, columns) in shapes.items()}
    adapter = Adapter(deltas, stage, resolution, frozenset({"LoRA"}), frozenset(), "")
    return LoraFile(Path(name), (adapter,), (), notes or {}, Config(AdapterConfig(**config))), adapter


def found(*args: object, fitting: tuple[str, ...] = ("structure", "shape", "texture"), **more: object) -> tuple:
    file, adapter = lora(*args, **more)
    origin = origin_of(file, adapter, fitting)
    return origin.stages, origin.resolution, origin.certainty


ALL = ("structure", "shape", "texture")


def test_nothing_known() -> None:
    assert found() == (ALL, None, "")
    assert found(fitting=("shape", "texture")) == (("shape", "texture"), None, "")


@pytest.mark.parametrize(("name", "stages", "resolution"), [
    ("ss_style.safetensors", ("structure",), None), ("sparse-structure.safetensors", ("structure",), None),
    ("glass.safetensors", ALL, None), ("imgshape2tex_512.safetensors", ("texture",), 512),
    ("pbr.safetensors", ("texture",), None),
    ("geometry_1024.safetensors", ("shape",), 1024), ("shape5120.safetensors", ("shape",), None),
    ("Structure.safetensors", ("structure",), None), ("texture/adapter_model.safetensors", ("texture",), None),
])  # fmt: skip
def test_names_of_files(name: str, stages: tuple[str, ...], resolution: int | None) -> None:
    assert found(name) == (stages, resolution, GUESSED if len(stages) == 1 else "")


@pytest.mark.parametrize(("shape", "stages"), [
    ((1536, 8), ("structure",)), ((1536, 32), ("shape",)), ((1536, 64), ("texture",)), ((1536, 16), ALL), ((24, 8), ALL),
])  # fmt: skip
def test_widths_of_the_input_tell_at_the_official_width_only(shape: tuple[int, int], stages: tuple[str, ...]) -> None:
    assert found(shapes={**BLOCK, "input_layer.weight": shape}) == (stages, None, CERTAIN if len(stages) == 1 else "")


def test_width_of_the_output() -> None:
    assert found(shapes={"out_layer.weight": (8, 1536)})[0] == ("structure",)
    assert found(shapes={"out_layer.weight": (32, 1536)})[0] == ALL
    assert found(shapes={"out_layer.weight": (8, 24)})[0] == ALL


def test_what_is_told() -> None:
    assert found(notes={"stage": "texture"}) == (("texture",), None, TOLD)
    assert found(notes={"modelspec.architecture": "trellis2-shape-512/lora"}) == (("shape",), 512, TOLD)
    assert found(notes={"resolution": "1024"}) == (ALL, 1024, "")
    assert found(base_model_name_or_path="ckpts/ss_flow_img_dit") == (("structure",), None, TOLD)
    assert found(auto_mapping={"base_model_class": "SparseStructureFlowModel"}) == (("structure",), None, TOLD)
    assert found(auto_mapping={"base_model_class": "ElasticSLatFlowModel"}) == (("shape", "texture"), None, "")
    assert found(notes={"stage": "shape"}, stage="texture") == (("texture",), None, CERTAIN)
    assert found(notes={"other": "texture"}) == (ALL, None, "")


def test_what_wins() -> None:
    told = {"stage": "shape"}
    shapes = {"input_layer.weight": (1536, 64)}
    assert found("ss.safetensors", stage="shape", shapes=shapes, notes={"stage": "texture"})[::2] == (("shape",), CERTAIN)
    assert found("ss.safetensors", shapes=shapes, notes=told)[::2] == (("texture",), CERTAIN)
    assert found("ss.safetensors", notes=told, fitting=("texture",))[::2] == (("texture",), CERTAIN)
    assert found("ss.safetensors", notes=told)[::2] == (("shape",), TOLD)
    assert found("texture.safetensors", auto_mapping={"a": "SLatFlowModel"})[::2] == (("texture",), GUESSED)
    assert found("ss.safetensors", auto_mapping={"a": "SLatFlowModel"})[::2] == (("shape", "texture"), "")
    assert found("a_512.safetensors", resolution=1024)[1] == 1024
    assert found("a_512.safetensors", notes={"resolution": "1024"})[1] == 1024


def test_magnitudes_near_the_weights_tell_and_others_do_not() -> None:
    first, second = torch.rand(24) + 1, torch.rand(24) + 3
    dora = Decomposed(LowRank(torch.zeros(1, 24), torch.zeros(24, 1), 1.0), first * 1.01)
    plain = Adapter({"a": dora, "b": Difference(torch.zeros(2))}, None, None, frozenset({"DoRA"}), frozenset(), "")
    assert magnitude_names(plain) == ["a"]
    assert by_magnitude(plain, {"one": {"a": first}, "two": {"a": second}}) == "one"
    assert by_magnitude(plain, {"one": {"a": second}, "two": {"a": first}}) == "two"
    assert by_magnitude(plain, {"one": {"a": first}}) == "one"
    assert by_magnitude(plain, {"one": {"a": first}, "two": {"a": first * 1.018}}) is None
    assert by_magnitude(plain, {}) is None
