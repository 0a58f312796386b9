"""Every format against PEFT's own computation."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.lora_files import ALPHA, FORMATS, LAYERS, RANK, by_peft, factors, network, peft_state, run, write
from trellis_core.lora.apply import Use, attach, merge
from trellis_core.lora.read import read_lora

peft = pytest.importorskip("peft")
CLOSE = 1e-5


def config(**more):
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, init_lora_weights=False, **more)


@pytest.fixture(scope="module", params=["SparseStructureFlowModel", "SLatFlowModel"])
def case(request):
    """A network, an adapter for it, and PEFT's answer."""
    model = network(request.param)
    pairs = factors(model)
    answer = run(by_peft(copy.deepcopy(model), config(), peft_state(pairs)))
    assert (answer - run(model)).abs().max() > 0.1, "the adapter must matter"
    return model, pairs, answer


def answers(model, path, strength=1.0):
    """Ours at run time and merged; the network must come back unchanged."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = []
    for put_on in (attach, merge):
        on = put_on(model, [Use(adapter, strength) for adapter in read_lora(path).adapters])
        found.append(run(model))
        on.remove()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_pefts_answer(case, form, tmp_path):
    model, pairs, expected = case
    for answer in answers(model, write(tmp_path, form, pairs)):
        torch.testing.assert_close(answer, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("strength", [0.3, -1.0, 2.0])
def test_strengths_give_pefts_answer(case, strength, tmp_path):
    model, pairs, _ = case
    theirs = by_peft(copy.deepcopy(model), config(), peft_state(pairs))
    for layer in theirs.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", strength)
    for answer in answers(model, write(tmp_path, "generic", pairs), strength):
        torch.testing.assert_close(answer, run(theirs), atol=CLOSE, rtol=0)


def test_a_stack_is_the_sum_that_peft_makes(case, tmp_path):
    model, pairs, _ = case
    others = factors(model, rank=3, seed=9)
    theirs = by_peft(copy.deepcopy(model), config(), peft_state(pairs), "a")
    second = peft.LoraConfig(r=3, lora_alpha=3, target_modules=LAYERS, init_lora_weights=False)
    theirs = by_peft(theirs, second, peft_state(others), "b")
    for layer in theirs.modules():
        if hasattr(layer, "set_adapter"):
            layer.set_adapter(["a", "b"])
    uses = [
        Use(read_lora(write(tmp_path / form, form, p, alpha)).adapters[0], 1.0)
        for form, p, alpha in (("generic", pairs, ALPHA), ("kohya", others, 3.0))
    ]
    on = attach(model, uses)
    torch.testing.assert_close(run(model), run(theirs), atol=CLOSE, rtol=0)
    on.remove()


def test_dora(case, tmp_path):
    model, pairs, _ = case
    sizes = {k: model.get_submodule(k).weight.norm(dim=1) * torch.linspace(0.5, 1.5, len(u)) for k, (_, u) in pairs.items()}
    state = peft_state(pairs) | {f"base_model.model.{k}.lora_magnitude_vector": m for k, m in sizes.items()}
    expected = run(by_peft(copy.deepcopy(model), config(use_dora=True), state))
    notes = {"r": str(RANK), "lora_alpha": str(ALPHA)}
    save_file(state, tmp_path / "peft.safetensors", notes)
    for answer in answers(model, tmp_path / "peft.safetensors"):
        torch.testing.assert_close(answer, expected, atol=CLOSE, rtol=0)
    kohya = {f"lora_unet_{k.replace('.', '_')}.dora_scale": m[:, None] for k, m in sizes.items()}
    for k, (down, up) in pairs.items():
        name = f"lora_unet_{k.replace('.', '_')}"
        kohya |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    save_file(kohya, tmp_path / "kohya.safetensors")
    for answer in answers(model, tmp_path / "kohya.safetensors"):
        torch.testing.assert_close(answer, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("kind", ["LoKr", "LoHa"])
def test_pefts_other_kinds(case, kind, tmp_path):
    """Trained and saved by PEFT itself, read by us from the folder it writes."""
    model, _, _ = case
    theirs = copy.deepcopy(model)
    settings = {"r": RANK, "alpha": ALPHA, "target_modules": LAYERS[:8], "init_weights": False}
    wrapped = peft.get_peft_model(theirs, getattr(peft, f"{kind}Config")(**settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lokr" in name or "hada" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    wrapped.save_pretrained(tmp_path)
    expected = run(wrapped.base_model.model.eval())
    assert (expected - run(model)).abs().max() > 0.05
    for answer in answers(model, tmp_path):
        torch.testing.assert_close(answer, expected, atol=CLOSE, rtol=0)


def test_rank_stabilised_scale_and_patterns(case, tmp_path):
    model, _, _ = case
    theirs = copy.deepcopy(model)
    changes = {"use_rslora": True, "rank_pattern": {"to_out": 2}, "alpha_pattern": {"mlp.mlp.0": 5}}
    wrapped = peft.get_peft_model(theirs, config(**changes))
    wrapped.save_pretrained(tmp_path)
    for answer in answers(model, tmp_path):
        torch.testing.assert_close(answer, run(wrapped.base_model.model.eval()), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases(dtype, tmp_path):
    model = network(dtype=dtype)
    pairs = factors(model)
    expected = run(by_peft(copy.deepcopy(model), config(), peft_state(pairs)))
    unchanged = run(model)
    for answer in answers(model, write(tmp_path, "generic", pairs)):
        assert (answer - expected).norm() < 0.05 * (expected - unchanged).norm()
