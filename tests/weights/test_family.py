from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import CONFIGS, RESOLUTIONS, make_family, random_tensors
from trellis_core.errors import InputError, WeightsError
from trellis_core.family import Family, Normalization, Route, Scale, load_family
from trellis_core.weights.network_file import IMAGE_ENCODER


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_family(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def change(root: Path, edit) -> None:
    config = json.loads((root / "pipeline.json").read_text())
    edit(config["args"])
    (root / "pipeline.json").write_text(json.dumps(config))


def refusal(path: Path | str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_family(path)
    return str(caught.value)


def test_official_folder(root: Path) -> None:
    family = load_family(root)
    assert family.name == "tiny" and family.resolutions == (512, 1024, 1536) and family.upscale == 4
    assert {k: vars(s) for k, s in family.scales.items()} == {int(k): v for k, v in RESOLUTIONS.items()}
    assert family.samplers["shape"].params == {"steps": 3} and family.samplers["structure"].params == {}
    assert load_family(root / "pipeline.json").networks == family.networks


def test_routes(root: Path) -> None:
    family = load_family(root)
    assert family.route(512) == Route(None, 512, 512)
    assert family.route(1024, cascade=False) == Route(None, 1024, 1024)
    assert family.route(1024) == Route(512, 1024, 1024)
    assert family.route(1536) == Route(512, 1024, 1536)
    with pytest.raises(InputError, match="1536 is reached by a cascade only"):
        family.route(1536, cascade=False)


def test_direct_sampling_needs_a_structure_as_fine_as_its_grid(tmp_path: Path) -> None:
    family = load_family(make_family(tmp_path / "coarse", sparse_structure_decoder={"channels": [8]}))
    assert family.structure_side == 4 and family.route(1024) == Route(512, 1024, 1024)
    with pytest.raises(InputError, match="by the cascade only: leave it on"):
        family.route(1024, cascade=False)


def test_a_family_may_lack_a_scale(root: Path) -> None:
    change(root, lambda args: [args["models"].pop(f"{k}_slat_flow_model_1024") for k in ("shape", "tex")])
    family = load_family(root)
    assert family.resolutions == (512,)
    with pytest.raises(InputError, match="cannot make resolution 1024. Choose one of: 512"):
        family.route(1024)
    change(root, lambda args: args["models"].pop("tex_slat_flow_model_512"))
    assert "no pair of shape and texture flows" in refusal(root)


def test_networks_live_only_as_long_as_asked(root: Path) -> None:
    family = load_family(root)
    with family.network("shape_slat_decoder") as decoder:
        assert next(decoder.parameters()).device.type == "cpu"
    assert next(decoder.parameters()).is_meta


def test_roles_of_a_route_in_the_order_of_use(root: Path) -> None:
    family = load_family(root)
    assert family.roles(family.route(512)) == (
        "image_cond_model", "sparse_structure_flow_model", "sparse_structure_decoder", "shape_slat_flow_model_512",
        "shape_slat_decoder", "tex_slat_flow_model_512", "tex_slat_decoder",
    )  # fmt: skip
    assert [r for r in family.roles(family.route(1536)) if "flow_model_" in r] == [
        "shape_slat_flow_model_512", "shape_slat_flow_model_1024", "tex_slat_flow_model_1024",
    ]  # fmt: skip


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    assert "mini" in refusal("no-such-family")
    (tmp_path / "empty").mkdir()
    assert "no TRELLIS.2 weights" in refusal(tmp_path / "empty")


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    assert "pickle" in refusal(tmp_path / "model.pth")


@pytest.mark.parametrize(("role", "args", "reason"), [
    ("sparse_structure_decoder", {"latent_channels": 8}, "sparse_structure_flow_model output is 4, its decoder's input is 8"),
    ("shape_slat_decoder", {"latent_channels": 6}, "shape normalisation is 4, shape decoder input is 6"),
    ("tex_slat_decoder", {"out_channels": 4}, "texture decoder output is 4, PBR channels is 6"),
    ("tex_slat_decoder", {"pred_subdiv": True}, "texture decoder predicting subdivision"),
    ("tex_slat_decoder", {"model_channels": [16, 8], "num_blocks": [1, 0]}, "texture decoder levels is 2"),
    ("tex_slat_flow_model_1024", {"in_channels": 4}, "tex_slat_flow_model_1024 input is 4"),
    ("shape_slat_flow_model_512", {"cond_channels": 32}, "condition is 32, image encoder output is 16"),
    ("tex_slat_flow_model_512", {"cond_channels": 8}, "tex_slat_flow_model_512 condition is 8"),
    ("sparse_structure_flow_model", {"cond_channels": 8}, "sparse_structure_flow_model condition is 8"),
    ("sparse_structure_flow_model", {"in_channels": 8}, "sparse_structure_flow_model input is 8"),
    ("shape_slat_flow_model_1024", {"out_channels": 8}, "shape_slat_flow_model_1024 output is 8"),
    ("shape_slat_flow_model_1024", {"in_channels": 8}, "1024 input is 8, its latent and what it knows is 4"),
    ("tex_slat_flow_model_1024", {"in_channels": 12}, "1024 input is 12, its latent and what it knows is 8"),
    ("tex_slat_decoder", {"latent_channels": 6}, "texture normalisation is 4, texture decoder input is 6"),
    ("shape_slat_decoder", {"out_channels": 6}, "shape decoder output is 6, channels of a dual grid is 7"),
    ("shape_slat_decoder", {"pred_subdiv": False}, "shape decoder predicting subdivision is False, its part is True"),
])  # fmt: skip
def test_parts_of_different_families_are_told_apart(tmp_path: Path, role: str, args: dict, reason: str) -> None:
    text = refusal(make_family(tmp_path / "mixed", **{role: args}))
    assert "do not belong together" in text and reason in text


@pytest.mark.parametrize(("key", "changes", "reason"), [
    ("512", {"structure_grid": 5, "output": 20}, "structure of 8 over the 512 grid, rest is 3, needed is 0"),
    ("512", {"image_size": 33}, "image size at 512 over patches, rest is 1, needed is 0"),
    ("1024", {"image_size": 36}, "image size at 1024 over patches, rest is 4"),
    ("1024", {"output": 33}, "output at 1024 is 33, grid times decoder upscale is 32"),
    ("1536", {"structure_grid": 13}, "output at 1536 is 48, grid times decoder upscale is 52"),
])  # fmt: skip
def test_every_scale_must_fit_the_networks(root: Path, key: str, changes: dict[str, int], reason: str) -> None:
    change(root, lambda args: args["resolutions"][key].update(changes))
    assert reason in refusal(root)


def test_larger_grids_need_not_divide_the_structure(root: Path) -> None:
    change(root, lambda args: args["resolutions"]["1536"].update(structure_grid=11, output=44))
    assert load_family(root).scales[1536].structure_grid == 11


def test_grids_must_fit_the_networks(root: Path) -> None:
    change(root, lambda args: args["resolutions"]["512"].update(output=32))
    assert "output at 512 is 32, grid times decoder upscale is 16" in refusal(root)
    change(root, lambda args: args["resolutions"].pop("512"))
    assert '"512"' in refusal(root)
    change(root, lambda args: args.update(resolutions={"512": {"size": 3}}))
    assert '"args.resolutions.512.image_size": field required' in refusal(root)


@pytest.mark.parametrize("norm", [
    {"mean": [0.0] * 4}, {"mean": [0.0] * 4, "std": [1.0] * 3}, {"mean": [0.0] * 4, "std": [1, 1, 0, 1]},
    {"mean": ["a"] * 4, "std": [1.0] * 4}, {"mean": [float("nan")] * 4, "std": [1.0] * 4},
])  # fmt: skip
def test_bad_normalisation(root: Path, norm: dict) -> None:
    change(root, lambda args: args.update(tex_slat_normalization=norm))
    assert '"args.tex_slat_normalization' in refusal(root) or "NaN is not a JSON number" in refusal(root)


def test_incomplete_pipeline(root: Path) -> None:
    change(root, lambda args: args["models"].pop("tex_slat_decoder"))
    assert "no tex_slat_decoder" in refusal(root)
    change(root, lambda args: args.pop("image_cond_model"))
    assert '"args.image_cond_model": field required' in refusal(root)
    (root / "pipeline.json").write_text("{}")
    assert "does not describe a pipeline" in refusal(root)


def test_damage_is_found_before_anything_is_read(root: Path) -> None:
    file = root / "ckpts" / "tex_slat_decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "tex_slat_decoder.safetensors is cut short" in refusal(root)
    file.unlink()
    assert "There is no file" in refusal(root)


def test_hub_references_resolve_to_folders_beside_it(root: Path) -> None:
    change(root, lambda args: args["models"].update(sparse_structure_decoder="someone/first-edition/ckpts/ss"))
    assert 'refers to "someone/first-edition/ckpts/ss"' in refusal(root)
    beside = root.parent / "first-edition" / "ckpts"
    beside.mkdir(parents=True)
    for suffix in (".json", ".safetensors"):
        shutil.copy(root / "ckpts" / f"sparse_structure_decoder{suffix}", beside / f"ss{suffix}")
    assert load_family(root).networks["sparse_structure_decoder"].file == beside / "ss.safetensors"


def test_hub_references_resolve_to_the_local_cache(root: Path, empty_cache: Path) -> None:
    cached = empty_cache / "models--someone--encoder"
    for commit in ("aaa", "bbb"):
        shutil.copytree(root / "dino", cached / "snapshots" / commit)
    change(root, lambda args: args["image_cond_model"]["args"].update(model_name="someone/encoder"))
    assert "aaa" in str(load_family(root).networks["image_cond_model"].file)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("bbb\n")
    assert "bbb" in str(load_family(root).networks["image_cond_model"].file)


def test_family_by_its_name_in_the_local_cache(root: Path, empty_cache: Path) -> None:
    shutil.copytree(root, empty_cache / "models--someone--tiny" / "snapshots" / "abc")
    assert load_family("someone/tiny").resolutions == (512, 1024, 1536)


def published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny family pass for the published one, whose scales are not in its files."""
    from trellis_core.weights import encoder_names, repackaged
    from trellis_core.weights import official as published

    monkeypatch.setattr(published, "SCALES", {key: Scale(**scale) for key, scale in RESOLUTIONS.items()})
    monkeypatch.setattr(published, "SHAPE_NORM", ((0.0,) * 4, (1.0,) * 4))
    monkeypatch.setattr(published, "TEXTURE_NORM", ((0.0,) * 4, (1.0,) * 4))
    monkeypatch.setattr(repackaged, "STRUCTURE_LATENT_SIDE", 4)
    monkeypatch.setattr(encoder_names, "HEAD_WIDTH", 8)


def comfy_models(root: Path) -> Path:
    parts = {
        "diffusion_models/trellis_2": {
            "sparse_structure_flow_model": "model.structure_model.", "shape_slat_flow_model_512": "model.img2shape_512.",
            "shape_slat_flow_model_1024": "model.img2shape.", "tex_slat_flow_model_1024": "model.shape2txt.",
        },
        "vae/shape": {"shape_slat_decoder": "shape_dec.", "sparse_structure_decoder": "struct_dec."},
        "vae/texture": {"tex_slat_decoder": "txt_dec."},
    }  # fmt: skip
    for stem, roles in parts.items():
        tensors = {}
        for role, prefix in roles.items():
            tensors |= {prefix + k: v for k, v in random_tensors(*CONFIGS[role], 0).items()}
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, root / f"{stem}.safetensors")
    (root / "clip_vision").mkdir()
    from tests.helpers.tiny_family import ENCODER

    save_file(random_tensors(IMAGE_ENCODER, ENCODER, 0), root / "clip_vision" / "dino.safetensors")
    return root


@pytest.mark.parametrize("start", ["", "diffusion_models/trellis_2.safetensors"])
def test_repackaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    published_sizes(monkeypatch)
    root = comfy_models(tmp_path / "models")
    save_file({"lora.weight": torch.zeros(2)}, root / "vae" / "another.safetensors")
    family = load_family(root / start)
    assert isinstance(family, Family) and family.resolutions == (1024, 1536)
    assert family.route(1024) == Route(512, 1024, 1024)
    with family.network("shape_slat_decoder") as decoder:
        assert decoder.params.pred_subdiv


def test_repackaged_files_with_a_part_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published_sizes(monkeypatch)
    root = comfy_models(tmp_path / "models")
    (root / "vae" / "texture.safetensors").unlink()
    assert "no tex_slat_decoder" in refusal(root)


def test_normalisation_goes_there_and_back() -> None:
    norm = Normalization(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    z = torch.tensor([[1.5, 2.0], [0.0, -2.0]])
    assert norm.apply(z).tolist() == [[1.0, 1.0], [-2.0, 0.0]]
    assert torch.equal(norm.undo(norm.apply(z)), z)


def test_a_changed_weight_file_is_noticed_on_load(root: Path) -> None:
    family = load_family(root)
    file = root / "ckpts" / "shape_slat_decoder.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "from_latent.bias"}, file)
    with pytest.raises(WeightsError, match="from_latent.bias"), family.network("shape_slat_decoder"):
        pass
