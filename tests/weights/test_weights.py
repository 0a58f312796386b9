from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import CONFIGS, ENCODER, random_tensors
from trellis_core.context import RunContext
from trellis_core.errors import WeightsError
from trellis_core.weights import network_file as weights
from trellis_core.weights.header import read_header
from trellis_core.weights.network_file import IMAGE_ENCODER, image_encoder_file, network_file
from trellis_core.weights.repackaged import find_networks

ROLE = "shape_slat_flow_model_512"
KEY = "blocks.0.mlp.mlp.0.weight"


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    name, args = CONFIGS[ROLE]
    (tmp_path / "net.json").write_text(json.dumps({"name": name, "args": {**args, "use_checkpoint": True}}))
    save_file(random_tensors(name, args, 0), tmp_path / "net.safetensors")
    return tmp_path / "net"


def edit(stem: Path, **changes: torch.Tensor | None) -> None:
    file = stem.with_suffix(".safetensors")
    tensors = load_file(file) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def refusal(stem: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        network_file(stem).load()
    return str(caught.value)


def test_values_are_copied_into_the_compute_dtype(stem: Path) -> None:
    stored = load_file(stem.with_suffix(".safetensors"))
    model = network_file(stem).load(RunContext(dtype=torch.bfloat16))
    state = model.state_dict()
    assert set(state) == set(stored) and not model.training
    assert state[KEY].dtype == torch.bfloat16 and torch.equal(state[KEY], stored[KEY].bfloat16())
    assert state["input_layer.weight"].dtype == torch.float32
    assert torch.equal(state["input_layer.weight"], stored["input_layer.weight"].float())
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_cpu_computes_in_float32_unless_asked(stem: Path) -> None:
    config = json.loads(stem.with_suffix(".json").read_text())
    config["args"]["dtype"] = "bfloat16"
    stem.with_suffix(".json").write_text(json.dumps(config))
    assert network_file(stem).load().state_dict()[KEY].dtype == torch.float32


def test_recomputable_buffers_are_ignored(stem: Path) -> None:
    edit(stem, **{"rope_phases": torch.zeros(8, 6, dtype=torch.complex64), "pos_emb": torch.zeros(4)})
    network_file(stem).load()


def test_missing_and_unexpected_tensors_are_named(stem: Path) -> None:
    edit(stem, **{KEY: None, "blocks.7.surprise": torch.zeros(2)})
    text = refusal(stem)
    assert "net.safetensors" in text and f'missing 1 tensors ("{KEY}")' in text and '"blocks.7.surprise"' in text


def test_wrong_shape_is_named(stem: Path) -> None:
    edit(stem, **{KEY: torch.zeros(5, 7)})
    assert f'"{KEY}" is [5, 7], the config says [48, 24]' in refusal(stem)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(stem: Path, value: float) -> None:
    tensor = load_file(stem.with_suffix(".safetensors"))[KEY]
    tensor[3, 1] = value
    edit(stem, **{KEY: tensor})
    text = refusal(stem)
    assert KEY in text and "net.safetensors" in text and "NaN" in text


def test_every_cut_of_a_file_is_reported(stem: Path) -> None:
    file = stem.with_suffix(".safetensors")
    whole = file.read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        text = refusal(stem)
        assert "net.safetensors" in text and "cut short" in text
        if length > len(whole) // 3:
            assert 'tensor "' in text


@pytest.mark.parametrize("header", [b"not json at all", b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2]}}'])
def test_malformed_headers_are_reported(stem: Path, header: bytes) -> None:
    stem.with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "header is damaged" in refusal(stem)


def test_header_that_lies_about_a_size_is_reported(stem: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 8]}}'
    stem.with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert '"a" of shape [5] cannot take 8 bytes' in refusal(stem)


def test_header_is_read_again_when_the_file_changed(stem: Path) -> None:
    file = stem.with_suffix(".safetensors")
    before = set(read_header(file))
    edit(stem, extra=torch.zeros(64))
    assert set(read_header(file)) - before == {"extra"}


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.ckpt", "net.bin", "net.pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="pickle"):
        network_file(tmp_path / name)


def test_pickle_that_took_its_place_is_named(stem: Path) -> None:
    stem.with_suffix(".safetensors").unlink()
    torch.save({}, stem.with_suffix(".pt"))
    assert "net.pt beside it is a Python pickle" in refusal(stem)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_by_content(stem: Path, zipped: bool) -> None:
    file = stem.with_suffix(".safetensors")
    if zipped:
        torch.save({KEY: torch.zeros(2)}, file)
    else:
        file.write_bytes(pickle.dumps({"weight": [0.0]}))
    assert "is a Python pickle" in refusal(stem)


@pytest.mark.parametrize(("content", "reason"), [
    ('{"name": "SLatFlowModel", "args": {}}', "does not describe a SLatFlowModel"),
    ('{"name": "Unet", "args": {}}', "Unet"),
    ('{"name": "SLatFlowModel"}', "does not name a network"),
    ("[]", "JSON object"),
    ("{", "cannot be read as JSON"),
])  # fmt: skip
def test_bad_configs(stem: Path, content: str, reason: str) -> None:
    stem.with_suffix(".json").write_text(content)
    assert reason in refusal(stem)


def test_every_published_class_is_registered() -> None:
    for name in {name for name, _ in CONFIGS.values()}:
        assert weights.ALIASES.get(name, name) in weights.NETWORKS


def test_image_encoder_may_lack_what_it_never_uses(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ENCODER))
    tensors = random_tensors(IMAGE_ENCODER, ENCODER, 1)
    unused = {"norm.weight", "norm.bias", "embeddings.mask_token"}
    assert unused <= set(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = image_encoder_file(tmp_path).load()(pixels)
    save_file({k: v for k, v in tensors.items() if k not in unused}, tmp_path / "model.safetensors")
    model = image_encoder_file(tmp_path).load(RunContext(dtype=torch.bfloat16))
    assert torch.equal(model(pixels), whole), "the encoder stays in float32 whatever the torso's dtype"
    assert not any(p.is_meta for p in model.parameters())
    save_file({k: v for k, v in tensors.items() if "q_proj" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="q_proj"):
        image_encoder_file(tmp_path).check()


def repackage(file: Path, parts: dict[str, str]) -> dict[str, dict[str, torch.Tensor]]:
    """Write the networks of `parts` (role -> prefix) into one file, as ComfyUI does."""
    held, merged = {}, {}
    for seed, (role, prefix) in enumerate(parts.items()):
        name, args = (IMAGE_ENCODER, ENCODER) if role == "image_cond_model" else CONFIGS[role]
        held[role] = random_tensors(name, args, seed)
        merged |= {prefix + key: tensor.bfloat16() for key, tensor in held[role].items()}
    save_file(merged, file)
    return held


def test_repackaged_networks_get_their_configs_from_shapes(tmp_path: Path) -> None:
    parts = {
        "shape_slat_flow_model_512": "model.img2shape_512.", "shape_slat_flow_model_1024": "model.img2shape.",
        "tex_slat_flow_model_1024": "model.shape2txt.", "sparse_structure_flow_model": "model.structure_model.",
        "shape_slat_decoder": "shape_dec.", "sparse_structure_decoder": "struct_dec.", "tex_slat_decoder": "txt_dec.",
    }  # fmt: skip
    held = repackage(tmp_path / "all.safetensors", parts)
    found = find_networks(tmp_path / "all.safetensors")
    assert set(found) == set(parts)
    for role, network in found.items():
        name, args = CONFIGS[role]
        for key, value in args.items():
            if key in network.args and key not in ("resolution", "mlp_ratio", "use_fp16"):
                assert network.args[key] == value, (role, key)
        state = network.load().state_dict()
        assert set(state) == set(held[role])
        assert all(torch.equal(state[k], v.bfloat16().float()) for k, v in held[role].items())


def test_repackaged_image_encoder(tmp_path: Path) -> None:
    args = {**ENCODER, "hidden_size": 128, "num_attention_heads": 2}
    save_file(random_tensors(IMAGE_ENCODER, args, 0), tmp_path / "dino.safetensors")
    network = find_networks(tmp_path / "dino.safetensors")["image_cond_model"]
    assert {k: network.args[k] for k in args} == args
    network.check()


def test_pixal3d_is_told_apart(tmp_path: Path) -> None:
    prefix = "model.img2shape."
    repackage(tmp_path / "p.safetensors", {"shape_slat_flow_model_1024": prefix})
    edit(tmp_path / "p", **{f"{prefix}blocks.0.cross_attn.proj_linear.weight": torch.zeros(2, 2)})
    with pytest.raises(WeightsError, match="Pixal3D"):
        find_networks(tmp_path / "p.safetensors")


def test_quantised_file_is_told_apart(tmp_path: Path) -> None:
    prefix = "model.img2shape."
    repackage(tmp_path / "q.safetensors", {"shape_slat_flow_model_1024": prefix})
    edit(tmp_path / "q", **{prefix + KEY: torch.zeros(48, 12, dtype=torch.uint8)})  # two codes a byte
    with pytest.raises(WeightsError, match="quantised"):
        find_networks(tmp_path / "q.safetensors")
