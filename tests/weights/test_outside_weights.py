"""Configs and tables of contents from strangers: refused in words, before anything is built from them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.tiny_family import CONFIGS, ENCODER, make_family
from trellis_core.errors import WeightsError
from trellis_core.family import load_family
from trellis_core.weights.header import read_header
from trellis_core.weights.network_file import IMAGE_ENCODER, NetworkFile, described

FLOW, DECODER, STRUCTURE = (
    CONFIGS[role] for role in ("tex_slat_flow_model_512", "shape_slat_decoder", "sparse_structure_decoder")
)


def refusal(action: Any, *args: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        action(*args)
    assert len(str(caught.value)) < 800
    return str(caught.value)


@pytest.mark.parametrize(("network", "change", "reason"), [
    (FLOW, {"num_blocks": 10**9}, "less than or equal to 256"),
    (FLOW, {"num_blocks": -1}, "greater than or equal to 0"),
    (FLOW, {"model_channels": 2**31}, "less than or equal to 16384"),
    (FLOW, {"model_channels": -8}, "greater than or equal to 1"),
    (FLOW, {"model_channels": "24"}, "valid integer"),
    (FLOW, {"model_channels": {"a": 1}}, "valid integer"),
    (FLOW, {"model_channels": 25}, "a width of 25 cannot be shared out to 2 heads"),
    (FLOW, {"model_channels": 4, "num_heads": 1}, "no room for positions"),
    (FLOW, {"num_heads": 8}, "heads of 3 channels cannot be turned"),
    (FLOW, {"num_heads": None}, "cannot be shared out to 0 heads"),
    (FLOW, {"mlp_ratio": 1e9}, "less than or equal to 64"),
    (FLOW, {"mlp_ratio": 0}, "greater than 0"),
    (FLOW, {"dtype": "nn"}, "'float32', 'bfloat16' or 'float16'"),
    (FLOW, {"share_mod": "yes"}, "valid boolean"),
    (CONFIGS["sparse_structure_flow_model"], {"resolution": 65}, "less than or equal to 64"),
    (DECODER, {"model_channels": [16, 8]}, "2 widths for 3 levels"),
    (DECODER, {"model_channels": [12, 8, 8]}, "cannot lead from 12 to 8"),
    (DECODER, {"up_block_type": ["SparseResBlockC2S3d"]}, "1 blocks between 3 levels"),
    (DECODER, {"up_block_type": ["Conv"] * 2}, "SparseResBlockUpsample3d"),
    (DECODER, {"num_blocks": [1, 0, 300]}, '"num_blocks.2": input should be less than or equal to 256'),
    (DECODER, {"model_channels": []}, "at least 1 item"),
    (DECODER, {"voxel_margin": -1}, "greater than or equal to 0"),
    (STRUCTURE, {"norm_type": "group"}, "group norms need channels in groups of 32"),
    (STRUCTURE, {"channels": [8] * 9}, "at most 8 items"),
    ((IMAGE_ENCODER, ENCODER), {"num_channels": 4}, "should be 3"),
    ((IMAGE_ENCODER, ENCODER), {"hidden_size": 18}, "no 2 heads whose channels are a multiple of 4"),
    ((IMAGE_ENCODER, ENCODER), {"num_attention_heads": 0}, "greater than or equal to 1"),
    ((IMAGE_ENCODER, ENCODER), {"hidden_act": "silu"}, "another MLP"),
    ((IMAGE_ENCODER, ENCODER), {"layer_norm_eps": 0}, "greater than 0"),
])  # fmt: skip
def test_configs_beyond_all_sense(network: tuple[str, dict[str, Any]], change: dict[str, Any], reason: str) -> None:
    name, args = network
    text = refusal(NetworkFile(name, args | change, Path("net.safetensors")).build)
    assert text.startswith("The config of net does not describe a ") and reason in text


@pytest.mark.parametrize(
    "config", [{"name": ["a"], "args": {}}, {"name": {}, "args": {}}, {"args": {}}, {"name": "x", "args": 3}, []]
)
def test_configs_that_are_none(config: object) -> None:
    assert "net.json does not name a network" in refusal(described, config, "net.json", Path("x"))


def test_more_parameters_than_any_network_has(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    args = FLOW[1] | {"model_channels": 16384, "num_blocks": 256}
    assert "asks for 689 billion parameters, at most 16 are read" in refusal(
        NetworkFile(FLOW[0], args, tmp_path / "a.safetensors").check
    )


def table(file: Path, header: bytes | dict[str, Any], data: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return file


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(("header", "reason"), [
    (b"[" * 100_000, "nested 100000 deep"),
    (b'{"a": ' + b"9" * 5000 + b"}", "5000 characters"),
    (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": 3}', "is there twice"),
    ({"a": ONE | {"shape": [2, 2**63]}}, '"a.shape.1": input should be less than'),
    ({"a": ONE | {"shape": [-2]}}, "greater than or equal to 0"),
    ({"a": ONE | {"shape": [1] * 9}}, "at most 8 items"),
    ({"a": ONE | {"shape": ["2"]}}, "valid integer"),
    ({"a": ONE | {"shape": [2.0]}}, "valid integer"),
    ({"a": ONE | {"dtype": ["F32"]}}, "valid string"),
    ({"a": ONE | {"dtype": "F31"}}, "cannot take 8 bytes as F31"),
    ({"a": ONE | {"dtype": "F16"}}, "cannot take 8 bytes as F16"),
    ({"a": ONE | {"data_offsets": [8, 0]}}, "begins at byte 8"),
    ({"a": ONE | {"data_offsets": [0, 8, 8]}}, "at most 2 items"),
    ({"a": ONE, "b": ONE}, 'tensor "b" begins at byte 0, the one before ends at 8'),
    ({"a": ONE | {"shape": [1], "data_offsets": [0, 4]}}, "of which its header explains"),
    ({"a" * 513: ONE}, "at most 512 characters"),
    ({"a": ONE, "__metadata__": {"b": 3}}, "notes that are no texts"),
    ({"a": [1]}, "should be an object"),
    ({}, "of which its header explains"),
])  # fmt: skip
def test_tables_of_contents_beyond_all_sense(tmp_path: Path, header: bytes | dict[str, Any], reason: str) -> None:
    assert reason in refusal(read_header, table(tmp_path / "net.safetensors", header))


def test_every_tensor_kind_has_its_size(tmp_path: Path) -> None:
    kinds = {"F32": 4, "BF16": 2, "I8": 1, "F8_E4M3": 1, "I64": 8, "BOOL": 1}
    tensors, at = {}, 0
    for dtype, size in kinds.items():
        tensors[dtype] = {"dtype": dtype, "shape": [3], "data_offsets": [at, at + 3 * size]}
        at += 3 * size
    found = read_header(table(tmp_path / "net.safetensors", tensors, at))
    assert {key: stored.size for key, stored in found.items()} == {dtype: 3 * size for dtype, size in kinds.items()}


@pytest.mark.parametrize(("change", "reason"), [
    ({"models": []}, '"args.models"'),
    ({"models": {"shape_slat_decoder": ["ckpts/x"]}}, '"args.models.shape_slat_decoder": input should be a valid string'),
    ({"models": {"shape_slat_decoder": "ckpts/\0"}}, "no path of a file"),
    ({"models": {"shape_slat_decoder": "x" * 300}}, "no path of a file"),
    ({"image_cond_model": {"args": {"model_name": 3}}}, '"args.image_cond_model.args.model_name"'),
    ({"resolutions": {"512": {"image_size": 10**9, "structure_grid": 4, "output": 16}}}, "less than or equal to 4096"),
    ({"resolutions": {"9" * 5000: {"image_size": 32, "structure_grid": 4, "output": 16}}}, "match pattern"),
    ({"resolutions": {}}, 'lack "512"'),
    ({"shape_slat_sampler": {"args": {"sigma_min": "0"}}}, '"args.shape_slat_sampler.args.sigma_min"'),
    ({"shape_slat_sampler": {"params": {"steps": 10**6}}}, "less than or equal to 50"),
    ({"shape_slat_sampler": {"params": {"guidance_interval": [1, 0.5]}}}, "ends at 0.5, before it begins at 1.0"),
    ({"shape_slat_sampler": {"params": [3]}}, '"args.shape_slat_sampler.params"'),
    ({"tex_slat_normalization": {"mean": [0, 0, 0, 0], "std": [1, 1, 1, -1]}}, "greater than 0"),
    ({"default_pipeline_type": 512}, '"args.default_pipeline_type"'),
])  # fmt: skip
def test_pipelines_beyond_all_sense(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    root = make_family(tmp_path / "tiny")
    content = json.loads((root / "pipeline.json").read_text())
    content["args"] |= change
    (root / "pipeline.json").write_text(json.dumps(content))
    assert reason in refusal(load_family, root)
