"""Layouts of weights in use beside the published one: timm's names, several encoders in a folder, two kinds of GGUF packs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.tiny_family import CONDITION, CONFIGS, ENCODER, RESOLUTIONS, make_family, random_tensors
from trellis_core.errors import WeightsError
from trellis_core.family import Family, Scale, load_family
from trellis_core.roles import IMAGE_ROLE
from trellis_core.weights import encoder_names
from trellis_core.weights import official as published
from trellis_core.weights.network_file import IMAGE_ENCODER, NetworkFile, image_encoder_file, network_file
from trellis_core.weights.repackaged import find_networks

peer = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny family passes for the published one, whose scales are not in its files."""
    scales = {key: Scale(**scale) for key, scale in RESOLUTIONS.items()}
    monkeypatch.setattr(published, "SCALES", scales)
    monkeypatch.setattr(published, "SHAPE_NORM", ((0.0,) * 4, (1.0,) * 4))
    monkeypatch.setattr(published, "TEXTURE_NORM", ((0.0,) * 4, (1.0,) * 4))
    monkeypatch.setattr(encoder_names, "HEAD_WIDTH", 8)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def in_timm(own: dict[str, Tensor], biases: bool) -> dict[str, Tensor]:
    """Tensors of our names under timm's, written down from timm's own list."""
    made = {
        "cls_token": own["embeddings.cls_token"], "reg_token": own["embeddings.register_tokens"],
        "patch_embed.proj.weight": own["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embeddings.bias"],
        "norm.weight": own["norm.weight"], "norm.bias": own["norm.bias"],
    }  # fmt: skip
    for i in range(ENCODER["num_hidden_layers"]):
        mine, theirs = f"layer.{i}.", f"blocks.{i}."
        made[f"{theirs}attn.qkv.weight"] = torch.cat([own[f"{mine}attention.{part}_proj.weight"] for part in "qkv"])
        for part in "qv" if biases else "":
            made[f"{theirs}attn.{part}_bias"] = own[f"{mine}attention.{part}_proj.bias"]
        for other, name in {
            "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj", "norm1": "norm1",
            "norm2": "norm2",
        }.items():  # fmt: skip
            made |= {f"{theirs}{other}.{kind}": own[f"{mine}{name}.{kind}"] for kind in ("weight", "bias")}
        for number in "12":
            made[f"{theirs}gamma_{number}"] = own[f"{mine}layer_scale{number}.lambda1"]
    return made


@pytest.mark.parametrize("biases", [False, True])
def test_an_encoder_is_the_same_under_both_names(tmp_path: Path, biases: bool) -> None:
    own = {key: value.float() for key, value in random_tensors(IMAGE_ENCODER, ENCODER, 1).items()}
    if not biases:
        own |= {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(("q_proj.bias", "v_proj.bias"))}
    for name, tensors, config in (("own", own, ENCODER), ("timm", in_timm(own, biases), {"architecture": "vit"})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = (image_encoder_file(tmp_path / name).load()(pixels) for name in ("own", "timm"))
    assert torch.equal(first, second)


def test_the_encoder_with_the_flows_width_is_taken(tmp_path: Path) -> None:
    for name, role, prefix in [
        ("diffusion_models/all", "sparse_structure_flow_model", "model.structure_model."),
        ("diffusion_models/shape", "shape_slat_flow_model_512", "model.img2shape_512."),
        ("diffusion_models/shape2", "shape_slat_flow_model_1024", "model.img2shape."),
        ("diffusion_models/texture", "tex_slat_flow_model_1024", "model.shape2txt."),
        ("vae/a", "shape_slat_decoder", "shape_dec."), ("vae/b", "tex_slat_decoder", "txt_dec."),
        ("vae/c", "sparse_structure_decoder", "struct_dec."),
    ]:  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tensors = {prefix + key: value for key, value in random_tensors(*CONFIGS[role], 0).items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "clip_vision").mkdir()
    for name, width in (("a_small", 8), ("b_right", CONDITION), ("c_large", 32)):
        tensors = random_tensors(IMAGE_ENCODER, ENCODER | {"hidden_size": width, "num_attention_heads": width // 8}, 0)
        save_file(tensors | {"naf.x": torch.zeros(2)}, tmp_path / "clip_vision" / f"{name}.safetensors")
    from trellis_core.weights import repackaged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repackaged, "STRUCTURE_LATENT_SIDE", 4)
        assert load_family(tmp_path).networks[IMAGE_ROLE].file.stem == "b_right"
        (tmp_path / "clip_vision" / "b_right.safetensors").unlink()
        with pytest.raises(WeightsError, match="condition is 16, image encoder output is 8"):
            load_family(tmp_path)


def write_gguf(file: Path, tensors: dict[str, Tensor], config: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = peer.GGUFWriter(file, "trellis2")
    if config:
        writer.add_string("trellis.config_json", config)
    for key, value in tensors.items():
        writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_four_axes(name: str, tensor: Tensor) -> Tensor:
    """What does not fit the format, as ilintar/trellis2-gguf joins it: taps of sparse convolutions, channels of dense ones."""
    if tensor.dim() < 5:
        return tensor
    return tensor.flatten(1, 3) if "Structure" not in name else tensor.flatten(0, 1)


def holds_the_same(family: Family, root: Path) -> None:
    for role, network in family.networks.items():
        if role == IMAGE_ROLE:
            continue
        wanted = load_file(root / "ckpts" / f"{role}.safetensors")
        state = network.load().state_dict()
        assert all(torch.equal(state[key], value.float()) for key, value in wanted.items()), role


def test_a_gguf_pack_with_configs_inside(tmp_path: Path) -> None:
    root, pack = make_family(tmp_path / "tiny"), tmp_path / "pack"
    for role, (name, args) in CONFIGS.items():
        args = args | {"resolution": 8} if role.endswith("_1024") else args  # as published: the grid tells the scale
        tensors = {key: of_four_axes(name, value) for key, value in load_file(root / "ckpts" / f"{role}.safetensors").items()}
        write_gguf(pack / f"{role[:9]}_{role[-9:]}.gguf", tensors, json.dumps({"name": name, "args": args}))
    own = {key: value.float() for key, value in load_file(root / "dino" / "model.safetensors").items()}
    write_gguf(pack / "dinov3.gguf", in_timm(own, True), json.dumps({"hidden_size": CONDITION}))
    write_gguf(pack / "birefnet.gguf", {"bb.x": torch.zeros(4, 4)})
    family = load_family(pack)
    assert family.resolutions == (512, 1024, 1536) and set(family.networks) == {*CONFIGS, IMAGE_ROLE}
    holds_the_same(family, root)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = NetworkFile(IMAGE_ENCODER, ENCODER, root / "dino" / "model.safetensors").load()
    assert torch.equal(family.networks[IMAGE_ROLE].load()(pixels), state(pixels))


def test_a_gguf_pack_in_folders(tmp_path: Path) -> None:
    root = make_family(tmp_path / "tiny")
    pack = tmp_path / "pack"
    folders = {"sparse_structure_flow_model": "refiner", "sparse_structure_decoder": "decoders/Stage1"}
    folders |= {"shape_slat_decoder": "decoders/Stage2", "tex_slat_decoder": "decoders/Stage2"}
    shutil.copytree(root / "dino", pack / "dino")
    shutil.copy(root / "pipeline.json", pack)
    for role in CONFIGS:
        home = pack / folders.get(role, "shape" if role.startswith("shape") else "texture")
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "ckpts" / f"{role}.json", home)
        tensors = load_file(root / "ckpts" / f"{role}.safetensors")
        if "flow" in role:
            write_gguf(home / f"{role}_Q8_0.gguf", tensors)
        else:
            save_file(tensors, home / f"{role}.safetensors")
    family = load_family(pack)
    assert family.networks["sparse_structure_flow_model"].file == pack / "refiner" / "sparse_structure_flow_model_Q8_0.gguf"
    holds_the_same(family, root)
    (pack / "refiner" / "sparse_structure_flow_model.json").unlink()
    with pytest.raises(WeightsError, match="no file .*refiner/sparse_structure_flow_model.json"):
        load_family(pack)


def test_axes_are_joined_and_never_swapped(tmp_path: Path) -> None:
    name, args = CONFIGS["tex_slat_flow_model_512"]
    tensors = random_tensors(name, args, 0)
    key = "blocks.0.mlp.mlp.0.weight"
    write_gguf(tmp_path / "net.gguf", tensors | {key: tensors[key].T.contiguous()}, json.dumps({"name": name, "args": args}))
    with pytest.raises(WeightsError, match=r"\[24, 48\], the config says \[48, 24\]"):
        network_file(tmp_path / "net").check()


@pytest.mark.parametrize(("config", "reason"), [
    ("[" * 500, "nested 500 deep"), ('{"name": 3, "args": {}}', "does not name a network"),
    ('{"name": "SLatFlowModel", "args": {"num_blocks": 1e9}}', "does not describe a SLatFlowModel"),
])  # fmt: skip
def test_a_config_inside_a_gguf_file_is_judged_like_any_other(tmp_path: Path, config: str, reason: str) -> None:
    write_gguf(tmp_path / "net.gguf", {"a": torch.zeros(4)}, config)
    with pytest.raises(WeightsError, match=reason):
        find_networks(tmp_path / "net.gguf")


def test_lists_of_a_gguf_file_are_counted_and_skipped(tmp_path: Path) -> None:
    from trellis_core.weights.gguf import read_file

    writer = peer.GGUFWriter(tmp_path / "a.gguf", "x")
    writer.add_array("numbers", list(range(500)))
    writer.add_array("texts", ["a"] * 300)
    writer.add_array("short", [1, 2, 3])
    writer.add_tensor("w", np.arange(8, dtype=np.float32).reshape(2, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    known, table = read_file(tmp_path / "a.gguf")
    assert known["numbers"] == "500 numbers" and known["texts"] == "300 texts" and known["short"] == [1, 2, 3]
    assert table["w"].shape == (2, 4)
