"""Stages on disk: what comes back is what was saved, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trellis_core.errors import InputError
from trellis_core.stage_files import FORMAT, load_stage, save_stage
from trellis_core.values import Shape, Structure, Texture

RNG = torch.Generator().manual_seed(3).get_state()
COORDS = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [1, 0, 0, 7]], dtype=torch.int32)
VALUES = [
    Structure(COORDS, 8, 2, RNG),
    Shape(COORDS, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), 32, 2, RNG),
    Texture(torch.arange(6.0).reshape(3, 2)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_stage_comes_back_as_it_was(value: Structure | Shape | Texture, tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    save_stage(value, path)
    again = load_stage(path)
    assert type(again) is type(value)
    for name, entry in vars(value).items():
        other = getattr(again, name)
        assert torch.equal(entry, other) if isinstance(entry, torch.Tensor) else entry == other


def test_equal_stages_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_stage(VALUES[1], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_refuses_what_is_not_a_stage(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save_stage(VALUES[1], whole)
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-7])
    save_file({"feats": torch.zeros(2, 2)}, tmp_path / "weights")
    save_stage(Shape(COORDS, torch.zeros(2, 5), 32, 2, RNG), tmp_path / "rows")
    save_stage(Structure(COORDS, 4, 2, RNG), tmp_path / "outside")
    for name, phrase in {
        "none": "no file", "cut": "cut short", "weights": "not a stage file", "rows": "fit together", "outside": "fit together",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=phrase):
            load_stage(tmp_path / name)


@pytest.mark.parametrize(("change", "phrase"), [
    ({"note": "[" * 1000}, "nested 1000 deep"),
    ({"note": "[1]"}, "JSON object"),
    ({"stage": ["shape"]}, "'structure', 'shape' or 'texture'"),
    ({"grid": "8"}, "valid integer"),
    ({"grid": 1 << 40}, "less than or equal to 4096"),
    ({"grid": None}, "lacks a part of a stage, or has one too many: grid"),
    ({"samples": 3}, "fit together"),
    ({"made_with": 3}, "should be an object"),
    ({"rng": torch.zeros(2, 8, dtype=torch.uint8)}, "state of the noise is damaged"),
    ({"rng": torch.zeros(1, 5056, dtype=torch.uint8)}, "2 objects and noise for 1"),
    ({"rng": torch.zeros(2, 5056)}, "fit together"),
    ({"coords": COORDS.long()}, "fit together"),
    ({"coords": COORDS[:0]}, "fit together"),
    ({"other": COORDS + 1}, "one too many: other"),
])  # fmt: skip
def test_damage_inside_a_stage_is_told(change: dict, phrase: str, tmp_path: Path) -> None:
    tensors = {"coords": COORDS, "rng": RNG.expand(2, -1).contiguous()}
    note: dict = {"stage": "structure", "grid": 8, "samples": 2, "made_with": {}}
    for key, value in change.items():
        (tensors if isinstance(value, torch.Tensor) else note)[key] = value
    save_file(tensors, tmp_path / "a", {FORMAT: change.get("note", json.dumps(note))})
    with pytest.raises(InputError, match=phrase):
        load_stage(tmp_path / "a")
