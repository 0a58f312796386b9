"""The published files as they are: full-size replicas without their numbers, held against the loader, `info` and `--plan`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from tests.helpers.published import HERE, hole_file, hugging_face_encoder, replica, tables
from trellis_core.cli.info import describe_family, describe_file
from trellis_core.cli.main import main
from trellis_core.errors import WeightsError
from trellis_core.family import Scale, load_family
from trellis_core.roles import IMAGE_ROLE, TEXTURE_DECODER, flow_role
from trellis_core.weights import official
from trellis_core.weights.network_file import image_encoder_file
from trellis_core.weights.repackaged import find_networks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files with holes take their whole size there")

BYTES = {
    "ckpts/ss_flow_img_dit_1_3B_64_bf16": 2_584_426_920,
    "ckpts/slat_flow_img2shape_dit_1_3B_512_bf16": 2_584_574_424,
    "ckpts/slat_flow_imgshape2tex_dit_1_3B_512_bf16": 2_584_672_728,
    "ckpts/shape_dec_next_dc_f16c32_fp16": 948_490_494,
    "ckpts/tex_dec_next_dc_f16c32_fp16": 948_458_812,
}
"""Published sizes."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replica(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_replicas_take_no_space_and_have_the_published_sizes(root: Path) -> None:
    for name, size in BYTES.items():
        assert abs((root / f"{name}.safetensors").stat().st_size - size) < 2048, name  # but for spaces in the header
    files = [file for file in root.parent.rglob("*.safetensors")]
    assert len(files) == 9 and sum(file.stat().st_blocks for file in files) * 512 < 4e6


def test_the_published_family_is_whole(root: Path) -> None:
    family = load_family(root)
    published = json.loads((HERE / "pipeline.json").read_text())["args"]
    assert family.resolutions == (512, 1024, 1536) and family.recommended == 1024
    assert family.scales == {
        512: Scale(image_size=512, structure_grid=32, output=512),
        1024: Scale(image_size=1024, structure_grid=64, output=1024),
        1536: Scale(image_size=1024, structure_grid=96, output=1536),
    }
    assert family.structure_side == 64 and family.upscale == 16
    for stage, key in {"structure": "sparse_structure", "shape": "shape_slat", "texture": "tex_slat"}.items():
        sampler, entry = family.samplers[stage], published[f"{key}_sampler"]
        params = {**sampler.params, "guidance_interval": list(sampler.params["guidance_interval"])}
        assert params == entry["params"] and sampler.sigma_min == entry["args"]["sigma_min"]
    for norm, key in ((family.shape_norm, "shape_slat"), (family.texture_norm, "tex_slat")):
        numbers = published[f"{key}_normalization"]
        assert torch.equal(norm.mean, torch.tensor(numbers["mean"])) and torch.equal(norm.std, torch.tensor(numbers["std"]))


def test_what_repackaged_files_leave_out_is_what_the_published_pipeline_says() -> None:
    published = json.loads((HERE / "pipeline.json").read_text())["args"]
    for known, key in ((official.SHAPE_NORM, "shape_slat"), (official.TEXTURE_NORM, "tex_slat")):
        numbers = published[f"{key}_normalization"]
        assert [list(part) for part in known] == [numbers["mean"], numbers["std"]]


def test_info_names_all_nine_networks(root: Path) -> None:
    text = "\n".join(describe_family(load_family(root)))
    assert "whole and matching" in text and text.count("1,292,") == 5 and "474,231,463 parameters" in text
    assert "73,671,201 parameters" in text and "303,129,600 parameters" in text
    for stem in (root / "ckpts").glob("*.json"):
        assert "matches its config" in "\n".join(describe_file(stem.with_suffix("")))


def test_info_names_encoders_and_the_texturing_pipeline(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "shape_slat_encoder" not in "\n".join(describe_family(load_family(root)))
    stem = root / "ckpts" / "shape_enc_next_dc_f16c32_fp16"
    decoder = json.loads((HERE / "shape_dec_next_dc_f16c32_fp16.json").read_text())["args"]
    args = {"resolution": 256, "in_channels": 6, "latent_channels": 32, "model_channels": [64, 128, 256, 512, 1024]}
    args |= {"num_blocks": decoder["num_blocks"][::-1], "down_block_type": ["SparseResBlockS2C3d"] * 4, "use_fp16": True}
    stem.with_suffix(".json").write_text(json.dumps({"name": "FlexiDualGridVaeEncoder", "args": args}))
    hole_file(stem.with_suffix(".safetensors"), tables()["ckpts/shape_enc_next_dc_f16c32_fp16"])
    models = {
        "shape_slat_encoder": "ckpts/shape_enc_next_dc_f16c32_fp16",
        "tex_slat_decoder": "ckpts/tex_dec_next_dc_f16c32_fp16",
    }
    pipeline = root / "texturing_pipeline.json"
    pipeline.write_text(json.dumps({"name": "Trellis2TexturingPipeline", "args": {"models": models}}))
    try:
        assert main(["info", str(pipeline)]) == 0
        text = capsys.readouterr().out
        assert "shape_slat_encoder" in text and "354,385,392 parameters" in text
        assert "texturing_pipeline.json: Trellis2TexturingPipeline, 2 networks, all there" in text
        stem.with_suffix(".safetensors").unlink()
        main(["info", str(root)])
        assert "2 networks, of which shape_slat_encoder is not there" in capsys.readouterr().out
    finally:
        for file in (pipeline, stem.with_suffix(".json")):
            file.unlink()


def test_plan_of_the_published_family(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Path(__file__).parents[2] / "examples" / "icon_duck.png"
    call = ["generate", str(picture), "-o", str(tmp_path / "a.glb"), "--weights", str(root), "--plan"]
    assert main([*call, "--resolution", "512", "--memory-budget", "24"]) == 0
    assert "sparse_structure_flow_model" in capsys.readouterr().out


def test_the_encoder_with_timm_names(root: Path) -> None:
    home, timm = root.parent, root.parent / "vit_large_patch16_dinov3.lvd1689m"
    own, hidden = home / "dinov3-vitl16-pretrain-lvd1689m", home / "away"
    hole_file(timm / "model.safetensors", tables()["dinov3/model"])
    (timm / "config.json").write_text(json.dumps({"architecture": "vit_large_patch16_dinov3", "num_classes": 0}))
    own.rename(hidden)
    try:
        network = load_family(root).networks[IMAGE_ROLE]
        assert network.file.parent == timm and network.args["num_hidden_layers"] == 24
        assert network.args["num_attention_heads"] == 16 and not network.args["query_bias"]
        shutil.rmtree(timm)
        with pytest.raises(WeightsError, match="vit_large_patch16_dinov3.lvd1689m"):
            load_family(root)
    finally:
        hidden.rename(own)
        shutil.rmtree(timm, ignore_errors=True)


def test_comfyuis_encoder_files(tmp_path: Path) -> None:
    own = hugging_face_encoder()
    upsampler = {f"naf.image_encoder.{i}.weight": ("F32", (64, 64)) for i in range(4)}
    network = find_networks(hole_file(tmp_path / "dino_v3_L_naf_fp32.safetensors", own | upsampler))[IMAGE_ROLE]
    assert set(network.header()) == set(own) and network.check().hidden_size == 1024
    assert "image_cond_model: DinoV3Encoder, 303,129,600 parameters" in "\n".join(describe_file(network.file))


def test_every_published_config_tells_its_role() -> None:
    from trellis_core.weights.network_file import described
    from trellis_core.weights.repackaged import role_of

    roles = {}
    for file in sorted(HERE.glob("*_*.json")):
        roles[file.stem] = role_of(described(json.loads(file.read_text()), file.name, Path(file.stem)))
    assert roles == {
        "shape_dec_next_dc_f16c32_fp16": "shape_slat_decoder",
        "slat_flow_img2shape_dit_1_3B_1024_bf16": flow_role("shape", 1024),
        "slat_flow_img2shape_dit_1_3B_512_bf16": flow_role("shape", 512),
        "slat_flow_imgshape2tex_dit_1_3B_1024_bf16": flow_role("texture", 1024),
        "slat_flow_imgshape2tex_dit_1_3B_512_bf16": flow_role("texture", 512),
        "ss_dec_conv3d_16l8_fp16": "sparse_structure_decoder",
        "ss_enc_conv3d_16l8_fp16": None,
        "ss_flow_img_dit_1_3B_64_bf16": "sparse_structure_flow_model",
        "tex_dec_next_dc_f16c32_fp16": TEXTURE_DECODER,
    }


def test_an_encoder_without_its_patches_is_told(tmp_path: Path) -> None:
    table = {key: entry for key, entry in tables()["dinov3/model"].items() if key != "blocks.0.mlp.fc1.weight"}
    hole_file(tmp_path / "model.safetensors", table)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="how large the picture encoder is: 'layer.0.mlp.up_proj.weight'"):
        image_encoder_file(tmp_path)
    assert prod(table["reg_token"][1]) == 4096 and os.path.getsize(tmp_path / "model.safetensors") > 1e9
