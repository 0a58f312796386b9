"""LoRAs on a family: who goes where, what is refused, and that nothing else changes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import make_family, picture
from trellis_core import stages
from trellis_core.errors import InputError, TrellisError, WeightsError
from trellis_core.family import load_family
from trellis_core.lora.apply import attach, merge
from trellis_core.lora.read import read_lora
from trellis_core.lora.stack import Lora, match, place
from trellis_core.settings import GenerationSettings

WIDTH, CONDITION, LATENT = 24, 16, 4
BLOCK = {"self_attn.to_qkv": (3 * WIDTH, WIDTH), "cross_attn.to_kv": (2 * WIDTH, CONDITION), "mlp.mlp.0": (48, WIDTH)}
STRUCTURE, SHAPE, TEXTURE = "sparse_structure_flow_model", "shape_slat_flow_model_512", "tex_slat_flow_model_512"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return load_family(make_family(tmp_path_factory.mktemp("family") / "tiny"))


def pairs(front="diffusion_model.", layers=None, rank=2, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (out_width, in_width) in (layers or {f"blocks.0.{k}": v for k, v in BLOCK.items()}).items():
        state[f"{front}{layer}.lora_down.weight"] = torch.randn(rank, in_width, generator=generator) * spread
        state[f"{front}{layer}.lora_up.weight"] = torch.randn(out_width, rank, generator=generator) * spread
    return state


def lora(path: Path, state=None, notes=None, **more) -> Lora:
    save_file(pairs() if state is None else state, path, notes)
    return Lora(path, **more)


def route(family, resolution=512):
    return family.route(resolution)


# Where a LoRA goes


def test_the_slot_wins_and_a_contradiction_warns(family, tmp_path):
    placed, (report,) = place(family, [lora(tmp_path / "my_texture_1024.safetensors", stage="shape")], route(family))
    assert set(placed.loras) == {SHAPE}
    assert any("although it is for texture" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("name", "notes", "front", "expected"),
    [
        ("x", None, "diffusion_model.structure_model.", STRUCTURE),
        ("x", None, "lora_unet_img2shape_512_", SHAPE),
        ("x", {"stage": "texture"}, "diffusion_model.", TEXTURE),
        ("x", {"modelspec.architecture": "trellis2/sparse_structure"}, "diffusion_model.", STRUCTURE),
        ("imgshape2tex_style", None, "diffusion_model.", TEXTURE),
        ("chair_geometry_512", None, "diffusion_model.", SHAPE),
        ("ss_lora", None, "diffusion_model.", STRUCTURE),
    ],
)
def test_the_stage_is_found(family, tmp_path, name, notes, front, expected):
    state = pairs(front)
    if front.startswith("lora_unet"):
        state = {k.replace("blocks.0.", "blocks_0_").replace("self_attn.", "self_attn_").replace("cross_attn.", "cross_attn_")
                 .replace("mlp.mlp.0", "mlp_mlp_0"): v for k, v in state.items()}  # fmt: skip
    placed, _ = place(family, [lora(tmp_path / f"{name}.safetensors", state, notes)], route(family))
    assert set(placed.loras) == {expected}


def test_the_only_network_that_fits_is_the_one(family, tmp_path):
    state = pairs(layers={"input_layer": (WIDTH, 2 * LATENT)})
    placed, (report,) = place(family, [lora(tmp_path / "x.safetensors", state)], route(family))
    assert set(placed.loras) == {TEXTURE} and report.origin.certainty == "certain"


def test_a_lora_of_blocks_alone_needs_a_stage(family, tmp_path):
    with pytest.raises(InputError, match="structure, shape, texture"):
        place(family, [lora(tmp_path / "x.safetensors")], route(family))


def test_magnitudes_tell_the_network(family, tmp_path):
    weights = load_file(family.networks[SHAPE].file)
    norms = weights["blocks.0.self_attn.to_qkv.weight"].float().norm(dim=1)
    state = {k: v for k, v in pairs().items() if "to_qkv" in k}
    state["diffusion_model.blocks.0.self_attn.to_qkv.dora_scale"] = (norms * 1.02)[:, None]
    placed, (report,) = place(family, [lora(tmp_path / "x.safetensors", state)], route(family))
    assert set(placed.loras) == {SHAPE} and "magnitudes" in report.origin.evidence


def test_one_file_for_several_stages(family, tmp_path):
    state = pairs("diffusion_model.structure_model.") | pairs("diffusion_model.shape2txt.", seed=1)
    both = lora(tmp_path / "both.safetensors", state)
    placed, reports = place(family, [both], route(family))
    assert set(placed.loras) == {STRUCTURE, TEXTURE} and len(reports) == 2
    assert set(place(family, [Lora(both.path, stage="texture")], route(family))[0].loras) == {TEXTURE}
    with pytest.raises(WeightsError, match="none for the shape"):
        place(family, [Lora(both.path, stage="shape")], route(family))


def test_in_a_cascade_a_lora_goes_to_the_pass_it_was_made_for(family, tmp_path):
    fine = lora(tmp_path / "shape.safetensors", stage="shape")
    assert set(place(family, [fine], route(family, 1024))[0].loras) == {"shape_slat_flow_model_1024"}
    placed, (report,) = place(family, [Lora(fine.path, stage="shape", resolution=512)], route(family, 1024))
    assert set(placed.loras) == {SHAPE} and any("512 pass only" in w for w in report.warnings)
    texture = lora(tmp_path / "texture_512.safetensors", stage="texture")
    placed, (report,) = place(family, [texture], route(family, 1024))
    assert set(placed.loras) == {"tex_slat_flow_model_1024"} and any("made for the 512" in w for w in report.warnings)


def test_the_report_says_what_matters(family, tmp_path):
    state = pairs() | {"diffusion_model.blocks.0.adaLN_modulation.1.diff": torch.zeros(144, WIDTH), "te.x.diff": torch.zeros(1)}
    (report,) = match(family, lora(tmp_path / "style.safetensors", state, stage="shape", strength=0.3))
    down, up = (
        state["diffusion_model.blocks.0.mlp.mlp.0.lora_down.weight"],
        state["diffusion_model.blocks.0.mlp.mlp.0.lora_up.weight"],
    )
    weight = load_file(family.networks[SHAPE].file)["blocks.0.mlp.mlp.0.weight"].float()
    delta = report.adapter.deltas["blocks.0.mlp.mlp.0.weight"]
    assert delta.norm(weight) == pytest.approx((up @ down).norm().item(), rel=1e-4)
    text = report.to_text()
    for words in (
        "style.safetensors",
        "rank 2",
        "alpha 2",
        "assumed",
        "strength    0.3",
        "applied     3",
        "skipped     2",
        "|dW|",
    ):
        assert words in text, text


# Strengths, stacks, precision


def test_strength_zero_changes_nothing(family, tmp_path):
    quiet, _ = place(family, [lora(tmp_path / "x.safetensors", stage="structure", strength=0.0)], route(family))
    settings = GenerationSettings(resolution=512, ss_sampling_steps=2)
    condition = stages.condition(family, picture(), settings)
    one, other = (_structure_latent(f, condition, settings) for f in (family, quiet))
    assert torch.equal(one, other)


def test_other_stages_stay_and_the_own_one_changes(family, tmp_path):
    changed, _ = place(family, [lora(tmp_path / "x.safetensors", stage="texture")], route(family))
    assert set(changed.loras) == {TEXTURE}
    settings = GenerationSettings(resolution=512, tex_slat_sampling_steps=2, shape_slat_sampling_steps=2)
    condition = stages.condition(family, picture(), settings)
    structure = _some_structure(family)
    shapes = [stages.sample_shape(f, condition, structure, settings) for f in (family, changed)]
    assert torch.equal(shapes[0].feats, shapes[1].feats)
    textures = [stages.sample_texture(f, condition, shapes[0], settings) for f in (family, changed)]
    assert (textures[0].feats - textures[1].feats).abs().max() > 1e-2


def test_the_order_of_a_stack_does_not_matter(family, tmp_path):
    loras = [
        lora(tmp_path / f"{i}.safetensors", pairs(seed=i), stage="shape", strength=s) for i, s in enumerate((0.7, -0.4, 1.3))
    ]
    with family.network(SHAPE) as model:
        results = []
        for order in ((0, 1, 2), (2, 0, 1)):
            placed, _ = place(family, [loras[i] for i in order], route(family))
            for put_on in (attach, merge):
                on = put_on(model, placed.loras[SHAPE])
                results.append(_answer(model))
                on.remove()
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_taking_it_off_gives_the_same_bits_back(family, tmp_path, dtype):
    state = pairs() | {
        "diffusion_model.blocks.0.norm2.diff": torch.ones(WIDTH),
        "diffusion_model.out_layer.diff_b": torch.ones(LATENT),
    }
    state["diffusion_model.blocks.0.modulation.diff"] = torch.ones(6 * WIDTH)
    placed, _ = place(family, [lora(tmp_path / "x.safetensors", state, stage="shape")], route(family))
    with family.network(SHAPE) as model:
        for block in model.blocks:
            block.mlp.to(dtype)
        before, answer = {k: v.clone() for k, v in model.state_dict().items()}, _parameters_and_mlp(model, dtype)
        for put_on in (attach, merge):
            on = put_on(model, placed.loras[SHAPE])
            assert not torch.equal(_parameters_and_mlp(model, dtype), answer)
            on.remove()
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            assert torch.equal(_parameters_and_mlp(model, dtype), answer)


def test_at_run_time_nothing_of_the_networks_size_is_made(family, tmp_path):
    placed, _ = place(family, [lora(tmp_path / "x.safetensors", stage="shape")], route(family))
    with family.network(SHAPE) as model:
        pointers = {k: v.data_ptr() for k, v in model.state_dict().items()}
        on = attach(model, placed.loras[SHAPE])
        assert {k: v.data_ptr() for k, v in model.state_dict().items()} == pointers
        on.remove()


def test_a_whole_run_by_settings(family, tmp_path, monkeypatch):
    (tmp_path / "loras").mkdir()
    lora(tmp_path / "loras" / "gold.safetensors")
    monkeypatch.chdir(tmp_path)
    sampled = {}
    for name in (None, "gold"):
        settings = GenerationSettings(resolution=512, texture_lora_url=name, seed=3, ss_sampling_steps=1)

        def keep(_mesh, voxels, *_args, name=name, **_more):
            sampled[name] = voxels
            raise InputError("far enough")

        monkeypatch.setattr("trellis_core.asset.asset.make_asset", keep)
        monkeypatch.setattr(stages, "sample_structure", lambda f, *_a, **_k: _some_structure(f))
        with pytest.raises(InputError, match="far enough"):
            stages.generate(family, picture(), settings)
    assert torch.equal(sampled[None].coords, sampled["gold"].coords)
    assert not torch.equal(sampled[None].attrs, sampled["gold"].attrs)


# Bad files


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_bad_files_say_what_is_wrong(tmp_path):
    good = pairs()
    save_file(good, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    bad = {k: v.clone() for k, v in good.items()}
    next(iter(bad.values()))[0, 0] = float("nan")
    cases = {
        "a.bin": (b"PK\x03\x04rest", "pickle"),
        "b.safetensors": (b"PK\x03\x04rest", "pickle"),
        "c.safetensors": (whole[:-40], "cut short"),
        "d.safetensors": (whole[:30], "cut short"),
        "e.safetensors": (b"", "empty"),
        "f.safetensors": (struct.pack("<Q", 2) + b"{}", "empty"),
        "g.safetensors": (b"<html>404 not found</html>" * 9, "safetensors"),
    }
    for name, (data, words) in cases.items():
        with pytest.raises(TrellisError, match=words):
            read_lora(written(tmp_path / name, data))
    for name, state, words in (
        ("nan", bad, "NaN"),
        ("rank0", pairs(rank=0), "rank 0"),
        ("rank10000", pairs(layers={"blocks.0.mlp.mlp.0": (8, 8)}, rank=10_000), "rank 10000"),
        ("flux", pairs("transformer.", {"single_transformer_blocks.0.attn.to_q": (8, 8)}), "Flux"),
        ("sdxl", pairs("lora_unet_", {"down_blocks_1_attentions_0_proj_in": (8, 8)}), "SDXL"),
        ("weights", {"blocks.0.mlp.mlp.0.weight": torch.zeros(4, 4)}, "whole network"),
        ("half", {k: v for k, v in good.items() if "down" in k}, "incomplete"),
        ("oft", {"diffusion_model.blocks.0.mlp.mlp.0.oft_blocks": torch.zeros(2, 4, 4)}, "not supported"),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(TrellisError, match=words):
            read_lora(tmp_path / f"{name}.safetensors")
    with pytest.raises(TrellisError, match="no LoRA"):
        read_lora(tmp_path / "not there.safetensors")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"blocks.0.self_attn.to_qkv": (3072, 1024)}, "TRELLIS 1"),
        ({"input_layer": (WIDTH, 2 * LATENT)}, "input_layer.weight"),
        ({"blocks.7.self_attn.to_qkv": (3 * WIDTH, WIDTH)}, "has 1 blocks"),
    ],
)
def test_what_cannot_fit_fails_before_a_network_is_read(family, tmp_path, monkeypatch, layers, words):
    monkeypatch.setattr("trellis_core.weights.network_file.NetworkFile.load", lambda *_: pytest.fail("a network was read"))
    with pytest.raises(WeightsError, match=words):
        place(family, [lora(tmp_path / "x.safetensors", pairs(layers=layers), stage="structure")], route(family))


def test_a_config_beside_one_of_many_files_is_not_for_all(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(pairs(), tmp_path / "a.safetensors")
    alphas = [read_lora(tmp_path / "a.safetensors").adapters[0].alphas]
    save_file(pairs(), tmp_path / "b.safetensors")
    alphas.append(read_lora(tmp_path / "a.safetensors").adapters[0].alphas)
    assert {alpha for alpha, _ in alphas[0]} == {8} and {alpha for alpha, _ in alphas[1]} == {2}


def _structure_latent(family, condition, settings):
    seen = []
    try:
        stages.sample_structure(family, condition, settings, 1, watch=lambda estimate: seen.append(estimate.latent))
    except TrellisError:
        pass  # random weights may leave it empty
    return seen[-1]


def _some_structure(family):
    from trellis_core.values import Structure

    coords = torch.tensor([[0, x, y, 1] for x in range(3) for y in range(3)], dtype=torch.int32)
    return Structure(coords, family.scales[512].structure_grid, 1, torch.Generator().manual_seed(0).get_state())


def _answer(model):
    generator = torch.Generator().manual_seed(5)
    coords = torch.tensor([[0, x, 0, 1] for x in range(4)], dtype=torch.int32)
    feats = torch.randn(4, LATENT, generator=generator)
    return model(feats, coords, torch.tensor([500.0]), torch.randn(1, 3, CONDITION, generator=generator))


def _parameters_and_mlp(model, dtype):
    """The loose parameters and one layer's answer, as one vector."""
    block = model.blocks[0]
    x = torch.linspace(-1, 1, WIDTH).to(dtype)
    return torch.cat([block.norm2.weight, block.modulation, model.out_layer.bias, block.mlp(x).float()]).clone()
