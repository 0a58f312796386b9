"""Every form of a layer's change with everything that may stand beside it, held to formulas written here by themselves.

The formulas are those of the papers and of LyCORIS: LoRA (Hu 2021), LoHa and LoKr (Yeh 2023), DoRA (Liu 2024) over outputs
and, as LyCORIS writes it, over inputs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trellis_core.errors import WeightsError
from trellis_core.lora.deltas import Delta
from trellis_core.lora.read import read_lora

LAYER = "blocks.0.self_attn.to_out"
FRONT = f"diffusion_model.{LAYER}"
FORMS = ("lora", "loha", "lokr", "lokr_product", "lokr_products", "full")
EXTRAS = (
    "none",
    "alpha",
    "dora_outputs",
    "dora_inputs",
    "dora_flat",
    "diff_b",
    "alpha_dora_inputs",
    "alpha_dora_outputs_diff_b",
)


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) * 0.5


def change(
    form: str, outputs: int, inputs: int, rank: int, alpha: float | None, g: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a form, and the difference that they mean."""
    scale = 1.0 if alpha is None else alpha / rank
    if form == "lora":
        up, down = drawn(g, outputs, rank), drawn(g, rank, inputs)
        return {"lora_up.weight": up, "lora_down.weight": down}, scale * (up @ down)
    if form == "loha":
        a, b, c, d = drawn(g, outputs, rank), drawn(g, rank, inputs), drawn(g, outputs, rank), drawn(g, rank, inputs)
        return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, scale * (a @ b) * (c @ d)
    if form == "full":
        value = drawn(g, outputs, inputs)
        return {"diff": value}, value
    first_a, first_b = drawn(g, 2, rank), drawn(g, rank, 2)
    second_a, second_b = drawn(g, outputs // 2, rank), drawn(g, rank, inputs // 2)
    first, second = first_a @ first_b, second_a @ second_b
    state = {"lokr_w1_a": first_a, "lokr_w1_b": first_b} if form == "lokr_products" else {"lokr_w1": first}
    state |= {"lokr_w2": second} if form == "lokr" else {"lokr_w2_a": second_a, "lokr_w2_b": second_b}
    scale = 1.0 if form == "lokr" else scale  # a LoKr without a product has no rank to divide alpha by
    blocks = [torch.cat([first[i, j] * second for j in range(2)], 1) for i in range(2)]
    return state, scale * torch.cat(blocks, 0)


def lengths(changed: Tensor, extra: str, g: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Magnitudes as they are written, and the whole weight that they mean."""
    outputs, inputs = changed.shape
    if "dora" not in extra:
        return None
    if "inputs" in extra:
        wanted = torch.rand(1, inputs, generator=g) + 0.5
        return wanted, torch.stack([column / column.norm() * wanted[0, j] for j, column in enumerate(changed.T)], 1)
    wanted = torch.rand(outputs, generator=g) + 0.5
    rows = torch.stack([row / row.norm() * wanted[i] for i, row in enumerate(changed)])
    return (wanted if "flat" in extra else wanted[:, None]), rows


def only(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Delta], tuple[str, ...]]:
    save_file({f"{FRONT}.{end}": value.contiguous() for end, value in state.items()}, path)
    file = read_lora(path)
    return dict(file.adapters[0].deltas), file.skipped


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    half_out=st.integers(1, 5),
    half_in=st.integers(1, 5),
    square=st.booleans(),
    rank=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_every_form_with_every_extra(
    tmp_path: Path, form: str, extra: str, half_out: int, half_in: int, square: bool, rank: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    outputs, inputs = 2 * half_out, 2 * (half_out if square else half_in)
    alpha = 0.5 + seed % 5 if "alpha" in extra else None
    state, difference = change(form, outputs, inputs, rank, alpha, g)
    weight = drawn(g, outputs, inputs) + 0.1
    if alpha is not None:
        state["alpha"] = torch.tensor(alpha)
    if (found := lengths(weight + difference, extra, g)) is not None:
        state["dora_scale"], whole = found
        difference = whole - weight
    if "diff_b" in extra:
        state["diff_b"] = drawn(g, outputs)
    deltas, skipped = only(tmp_path / "a.safetensors", state)
    made = deltas.pop(f"{LAYER}.weight")
    torch.testing.assert_close(made.matrix(weight), difference, atol=2e-5, rtol=1e-4)
    x = drawn(g, 3, inputs)
    for strength in (1.0, -0.5):
        torch.testing.assert_close(made.acting_on(weight, strength)(x), strength * x @ difference.T, atol=1e-4, rtol=1e-3)
    if "diff_b" in extra:
        torch.testing.assert_close(deltas.pop(f"{LAYER}.bias").matrix(torch.zeros(outputs)), state["diff_b"])
    assert not deltas
    unused = [f"{FRONT}.alpha"] if form == "full" and alpha is not None else []
    assert [reason.split(":")[0] for reason in skipped] == unused, "every tensor acts, or is named"


def lora(outputs: int = 6, inputs: int = 6) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return change("lora", outputs, inputs, 2, None, g)[0]


@pytest.mark.parametrize("end", ["hada_w1_a", "lokr_w1_b"])
def test_what_belongs_to_no_form_is_named(tmp_path: Path, end: str) -> None:
    deltas, skipped = only(tmp_path / "a.safetensors", lora() | {end: torch.ones(2, 2)})
    assert set(deltas) == {f"{LAYER}.weight"}
    assert [reason.split(":")[0] for reason in skipped] == [f"{FRONT}.{end}"] and "beside a LoRA" in skipped[0]


def test_a_full_factor_wins_over_its_product_by_name(tmp_path: Path) -> None:
    state, _ = change("lokr", 6, 6, 2, None, torch.Generator().manual_seed(0))
    _, skipped = only(tmp_path / "a.safetensors", state | {"lokr_w1_a": torch.ones(2, 1), "lokr_w1_b": torch.ones(1, 2)})
    assert {reason.split(".")[-1].split(":")[0] for reason in skipped} == {"lokr_w1_a", "lokr_w1_b"}


def test_shares_of_a_bias_add_up(tmp_path: Path) -> None:
    state = lora() | {"lora_up.bias": torch.full((6,), 1.0), "diff_b": torch.full((6,), 2.0), "alpha": torch.tensor(4.0)}
    deltas, skipped = only(tmp_path / "a.safetensors", state)
    assert deltas[f"{LAYER}.bias"].matrix(torch.zeros(6)).tolist() == [4 / 2 * 1.0 + 2.0] * 6 and not skipped


def test_a_table_of_contents_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    """640 bytes of table make a safetensors file begin like a pickle of protocol 2."""
    state = {f"{FRONT}.{end}": value for end, value in lora().items()}
    for length in range(500):
        save_file(state, tmp_path / "a.safetensors", {"note": "x" * length})
        if (tmp_path / "a.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    assert read_lora(tmp_path / "a.safetensors").adapters


REFUSED = {
    "two adapters": lora() | {"diff": torch.ones(6, 6)},
    "two adapters ": lora() | {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3)},
    "incomplete": {"lora_down.weight": torch.ones(2, 6), "diff_b": torch.ones(6)},
    "only lokr_w1": {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(3, 1)},
    "5 magnitudes for 6 outputs": lora() | {"dora_scale": torch.ones(5, 1)},
    "4 magnitudes for 6 outputs": lora(inputs=4) | {"dora_scale": torch.ones(4, 1)},
    "changed and replaced": lora() | {"diff_b": torch.ones(6), "bias": torch.ones(6)},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        only(tmp_path / "a.safetensors", REFUSED[words])
    assert words.strip() in str(caught.value).replace("lokr_w1, lokr_w2_a", "lokr_w1")
