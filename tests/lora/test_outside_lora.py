"""LoRA files from strangers: refused in words, or calculated right however odd their numbers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trellis_core.errors import InputError, WeightsError
from trellis_core.lora import combine, read
from trellis_core.lora.apply import Use, change_of
from trellis_core.lora.deltas import Decomposed, Delta, Hadamard, Kronecker, LowRank
from trellis_core.lora.read import Adapter, read_lora
from trellis_core.lora.stack import Lora
from trellis_core.lora.write import save

LAYER = "blocks.0.self_attn.to_out"
KEY = f"base_model.model.{LAYER}"
generator = torch.Generator().manual_seed(0)
DOWN, UP = torch.randn(4, 24, generator=generator), torch.randn(24, 4, generator=generator)
PLAIN = {f"{KEY}.lora_A.weight": DOWN, f"{KEY}.lora_B.weight": UP}


def file(tmp_path: Path, changes: dict[str, Tensor] | None = None, notes: dict[str, str] | None = None) -> Path:
    save_file(
        {key: value.contiguous() for key, value in {**PLAIN, **(changes or {})}.items()}, tmp_path / "a.safetensors", notes
    )
    return tmp_path / "a.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_lora(path)
    assert len(str(caught.value)) < 800
    return str(caught.value)


@pytest.mark.parametrize(("config", "reason"), [
    ("[" * 1000, "nested 1000 deep"), ('{"r": ' + "9" * 5000 + "}", "5000 characters"), ("[3]", "a JSON object, not list"),
    ('{"lora_alpha": NaN}', "NaN is not a JSON number"), ('{"lora_alpha": "nan"}', "valid number"),
    ('{"lora_alpha": 1e30}', "less than or equal to 100000"), ('{"lora_alpha": [8]}', '"lora_alpha"'),
    ('{"lora_alpha": 8, "r": -4}', '"r": input should be greater than or equal to 0'),
    ('{"use_rslora": 3, "r": 4}', '"use_rslora"'),
    ('{"alpha_pattern": {"(a+)+x": 3}}', "repeats too much"), ('{"alpha_pattern": {".*.*.*.*x": 3}}', "repeats too much"),
    ('{"alpha_pattern": {"(": 3}}', "this is no pattern"), ('{"alpha_pattern": ["a"]}', '"alpha_pattern"'),
    ('{"rank_pattern": {"to_out": "four"}}', "valid integer"), ('{"auto_mapping": [1]}', '"auto_mapping"'),
])  # fmt: skip
def test_configs_beyond_all_sense(tmp_path: Path, config: str, reason: str) -> None:
    assert reason in refusal(file(tmp_path, notes={"adapter_config": config}))
    if config.startswith("{") and "lora_alpha" in config:
        (tmp_path / "a.json").write_text(config)
        assert reason in refusal(file(tmp_path))


@pytest.mark.parametrize("alpha", ["nan", "inf", "1e400", "eight"])
def test_texts_that_are_no_alpha(tmp_path: Path, alpha: str) -> None:
    assert '"lora_alpha"' in refusal(file(tmp_path, notes={"ss_network_alpha": alpha, "ss_network_dim": "4"}))


@pytest.mark.parametrize(("patterns", "alpha"), [
    ({"to_out": 2}, 2), ({"self_attn.to_out": 3, "to_out": 2}, 3), ({LAYER: 5}, 5),
    ({r"blocks\.[0-9]+\.self_attn\.to_out": 6}, 6),
    ({"attn.to_out": 2}, 9), ({"to_outer": 2}, 9), ({"to_q|to_out": 7}, 7), ({"out": 2}, 9),
])  # fmt: skip
def test_patterns_name_the_end_of_a_layer(tmp_path: Path, patterns: dict[str, float], alpha: float) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 9, "alpha_pattern": patterns}
    (adapter,) = read_lora(file(tmp_path, notes={"adapter_config": json.dumps(config)})).adapters
    assert adapter.alphas == {(float(alpha), "metadata adapter_config")}


def test_rank_stabilised_alpha_is_over_the_root(tmp_path: Path) -> None:
    for stabilised, scale in ((True, 4.0), (False, 2.0)):
        notes = {"adapter_config": json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": stabilised})}
        (adapter,) = read_lora(file(tmp_path, notes=notes)).adapters
        assert adapter.deltas[f"{LAYER}.weight"].scale == scale


@pytest.mark.parametrize(("changes", "reason"), [
    ({f"{KEY}.lora_A.weight": DOWN * 1e30}, "numbers as large as"),
    ({f"{KEY}.lora_A.weight": DOWN * float("nan")}, "NaN or infinite"),
    ({f"{KEY}.alpha": torch.tensor([1.0, 2.0])}, "do not fit each other"),
    ({f"{KEY}.alpha": torch.tensor(2e5)}, "alpha is 200000"),
    ({f"{KEY}.alpha": torch.zeros(0)}, "do not fit each other"),
    ({f"{KEY}.lora_B.weight": torch.zeros(24, 5)}, "ranks 4 and 5"),
    ({f"{KEY}.lora_B.weight": torch.zeros(24)}, "two axes"),
    ({f"{KEY}.lora_A.weight": torch.zeros(600, 24)}, "ranks from 1 to 512"),
    ({f"{KEY}.lora_A.weight": torch.zeros(0, 24)}, "ranks from 1 to 512"),
    ({f"{KEY}.lora_A.weight": DOWN.to(torch.int8)}, "stored as I8"),
    ({f"{KEY}.lora_magnitude_vector": torch.zeros(5)}, "5 magnitudes for 24 outputs"),
])  # fmt: skip
def test_tensors_beyond_all_sense(tmp_path: Path, changes: dict[str, Tensor], reason: str) -> None:
    assert reason in refusal(file(tmp_path, changes))


@pytest.mark.parametrize("factors", [
    {"lokr_w1": torch.ones(9000, 2), "lokr_w2": torch.ones(2, 9000)},
    {"lokr_w1_a": torch.ones(9000, 1), "lokr_w1_b": torch.ones(1, 9000), "lokr_w2": torch.ones(1, 1)},
])  # fmt: skip
def test_small_factors_of_a_giant_are_refused(tmp_path: Path, factors: dict[str, Tensor]) -> None:
    save_file(
        {f"lora_unet_{LAYER.replace('.', '_')}.{key}": value for key, value in factors.items()}, tmp_path / "a.safetensors"
    )
    assert "more than 67,108,864" in refusal(tmp_path / "a.safetensors")


def test_a_factor_of_three_axes_is_refused(tmp_path: Path) -> None:
    factors = {"lokr_w1": torch.ones(2, 2, 2), "lokr_w2": torch.ones(12, 12)}
    save_file(
        {f"lora_unet_{LAYER.replace('.', '_')}.{key}": value for key, value in factors.items()}, tmp_path / "a.safetensors"
    )
    assert "two axes" in refusal(tmp_path / "a.safetensors")


def test_numbers_of_blocks_that_no_network_has(tmp_path: Path) -> None:
    far = {key.replace("blocks.0", "blocks." + "9" * 400): value + 0 for key, value in PLAIN.items()}
    read_file = read_lora(file(tmp_path, far))
    assert set(read_file.adapters[0].deltas) == {f"{LAYER}.weight"} and len(read_file.skipped) == 1


def test_a_folder_is_held_to_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(PLAIN, tmp_path / "adapter_model.safetensors")
    monkeypatch.setattr(read, "MAX_BYTES", 100)
    assert "are not read" in refusal(tmp_path)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf"), 100.5, -1e30])
def test_strengths_are_numbers_within_limits(strength: float) -> None:
    with pytest.raises(InputError, match="between -100 and 100"):
        Lora(Path("a.safetensors"), strength)
    assert Lora(Path("a.safetensors"), -100).strength == -100


def test_rows_of_zeros_stay_zeros_with_a_magnitude() -> None:
    weight, up = torch.randn(24, 24, generator=generator), UP.clone()
    weight[3], up[3] = 0, 0
    dora = Decomposed(LowRank(DOWN, up, 0.5), torch.full((24,), 2.0))
    made = weight + dora.matrix(weight)
    lengths = made.norm(dim=1)
    assert lengths[3] == 0 and torch.allclose(lengths[torch.arange(24) != 3], torch.tensor(2.0))
    x = torch.randn(5, 24, generator=generator)
    assert torch.allclose(dora.acting_on(weight, 1.0)(x), x @ (made - weight).T, atol=1e-4)


def adapter(digest: str, delta: Delta) -> Adapter:
    return Adapter({f"{LAYER}.weight": delta}, None, None, frozenset({"x"}), frozenset(), digest)


def product(delta: Delta) -> Tensor:
    return delta.matrix(torch.zeros(delta.shape))


KINDS: dict[str, Delta] = {
    "low rank": LowRank(DOWN, UP, 0.5),
    "high rank": LowRank(torch.randn(30, 24, generator=generator), torch.randn(24, 30, generator=generator), 0.1),
    "loha": Hadamard(UP, DOWN, UP.flip(0), DOWN.flip(1), 0.2),
    "loha of rank 30": Hadamard(*[torch.randn(*s, generator=generator) for s in ((24, 30), (30, 24)) * 2], 0.1),
    "lokr": Kronecker(torch.randn(4, 6, generator=generator), torch.randn(6, 4, generator=generator), 0.3),
    "large and small": LowRank(DOWN * torch.tensor([1e5, 1.0, 1e-5, 1e-30])[:, None], UP, 1.0),
}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", ["low rank", "loha of rank 30", "lokr"])
def test_pressing_is_the_best_of_its_rank_for_every_kind(first: str, second: str) -> None:
    uses = [Use(adapter("a", KINDS[first]), 1.0), Use(adapter("b", KINDS[second]), -0.5)]
    exact = product(KINDS[first]).double() - 0.5 * product(KINDS[second]).double()
    (pressed,) = combine.scaled(uses, 3).values()
    assert pressed.rank == 3
    left = torch.linalg.svdvals(exact)[3:].norm()
    assert (product(pressed).double() - exact).norm() <= left * 1.001 + 1e-5 * exact.norm()


def test_without_a_rank_the_sum_is_exact() -> None:
    uses = [Use(adapter("a", KINDS["lokr"]), 1.0), Use(adapter("b", KINDS["loha"]), 2.0)]
    (made,) = combine.scaled(uses).values()
    weighted = [(KINDS["lokr"], 1.0), (KINDS["loha"], 2.0)]
    assert torch.allclose(product(made), change_of(torch.zeros(24, 24), weighted), atol=1e-5)


def test_the_surer_method_stands_in_where_the_quick_one_finds_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    uses = [Use(adapter("a", KINDS["high rank"]), 1.0)]
    (wanted,) = combine.scaled(uses, 2).values()

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    (made,) = combine.scaled(uses, 2).values()
    assert torch.allclose(product(made), product(wanted), atol=1e-4)
    huge = LowRank(torch.full((30, 24), float("inf")), KINDS["high rank"].up, 1.0)
    with pytest.raises(InputError, match="too large to be added up"):
        combine.scaled([Use(adapter("a", huge), 1.0)], 2)


def test_loras_of_other_networks_are_not_added_up() -> None:
    other = LowRank(torch.zeros(4, 16), torch.zeros(24, 4), 1.0)
    with pytest.raises(InputError, match=r"\[24, 24\] numbers, another \[24, 16\]"):
        combine.scaled([Use(adapter("a", KINDS["low rank"]), 1.0), Use(adapter("b", other), 1.0)])


def test_sums_larger_than_a_lora_may_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uses = [Use(adapter("a", KINDS["lokr"]), 1.0), Use(adapter("b", KINDS["loha"]), 2.0)]
    monkeypatch.setattr(combine, "MAX_BYTES", 2000)
    with pytest.raises(InputError, match="give a rank to press them to"):
        combine.scaled(uses)
    assert combine.scaled(uses, 2)


def test_a_structure_lora_keeps_its_place_in_a_file_of_several(tmp_path: Path) -> None:
    deltas = {f"{LAYER}.weight": KINDS["low rank"]}
    parts = {("structure", 512): deltas, ("texture", None): deltas, ("shape", 1024): deltas}
    keys = set(load_file(save(tmp_path / "a.safetensors", parts, "comfy", "fp32")))
    fronts = {key.removeprefix("diffusion_model.").split(".")[0] for key in keys}
    assert fronts == {"structure_model", "texture", "img2shape"}
    found = {(a.stage, a.resolution) for a in read_lora(tmp_path / "a.safetensors").adapters}
    assert found == {("structure", None), ("texture", None), ("shape", 1024)}
