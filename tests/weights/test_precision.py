"""Fewer bits: rounded layers, published codes, GGUF files; LoRAs on top stay what they are."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import make_family
from trellis_core.context import QUIET
from trellis_core.errors import InputError, WeightsError
from trellis_core.family import load_family
from trellis_core.lora.apply import Use, applied
from trellis_core.lora.deltas import LowRank
from trellis_core.lora.read import Adapter
from trellis_core.memory.plan import plan_run
from trellis_core.settings import GenerationSettings
from trellis_core.weights import gguf
from trellis_core.weights import quantised as coded
from trellis_core.weights.low_precision import LowLinear, lower, round_rows
from trellis_core.weights.network_file import network_file

ROLE = "shape_slat_flow_model_512"
WEIGHT = "blocks.0.mlp.mlp.0.weight"


@pytest.mark.parametrize(("precision", "worst"), [("int8", 0.5 / 127), ("fp8", 2**-4)])
def test_rows_are_rounded_to_their_own_scale(precision: str, worst: float) -> None:
    x = torch.randn(6, 32) * torch.logspace(-6, 4, 6)[:, None]
    codes, scale = round_rows(x, precision)
    largest = x.abs().amax(1, keepdim=True)
    assert ((codes.float() * scale - x).abs() <= worst * largest * 1.001).all()
    zero, _ = round_rows(torch.zeros(1, 4), precision)
    assert not zero.float().any()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_a_rounded_family_makes_nearly_the_same_in_less_memory(precision: str, tmp_path: Path) -> None:
    root = make_family(tmp_path / "family")
    exact, low = load_family(root), load_family(root, precision=precision)
    coords = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(3)] * 3), (1, 0)).int()
    x, cond, t = torch.randn(27, 4), torch.randn(1, 5, 16), torch.tensor([500.0])
    with exact.network(ROLE) as a, low.network(ROLE) as b:
        assert isinstance(b.blocks[0].mlp.mlp[0], LowLinear) and type(b.out_layer) is torch.nn.Linear
        expected, found = (m(x, coords, t, cond) for m in (a, b))
        assert 1e-5 < (found - expected).norm() / expected.norm() < {"int8": 0.02, "fp8": 0.15}[precision]
    settings = GenerationSettings(resolution=512)
    weights = [{s.role: s.weights for s in plan_run(f, settings, QUIET).steps}[ROLE] for f in (exact, low)]
    assert weights[1] < 0.8 * weights[0], "half, but for the small parts outside of the layers"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_a_lora_on_rounded_layers_changes_them_exactly(precision: str, tmp_path: Path) -> None:
    family = load_family(make_family(tmp_path / "family"), precision=precision)
    delta = LowRank(torch.randn(2, 24), 0.01 * torch.randn(48, 2), 1.5)
    x = torch.randn(7, 24)
    with family.network(ROLE) as model:
        layer = model.blocks[0].mlp.mlp[0]
        before = layer(x)
        with applied(model, [Use(Adapter({WEIGHT: delta}, None, None, frozenset({"LoRA"}), frozenset(), "0"), 0.5)]):
            change = layer(x) - before
        assert torch.equal(layer(x), before)
    assert torch.allclose(change, 0.5 * x @ delta.matrix(torch.zeros(48, 24)).T, atol=1e-5)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8, fp8"):
        load_family("mini", precision="fp4")
    with pytest.raises(InputError, match="int8, fp8"):
        lower(torch.nn.Linear(2, 2), "int3")


def coded_like_comfy(weight: torch.Tensor, layout: str) -> dict[str, torch.Tensor]:
    """A weight as repackagings store it."""
    if layout == "convrot":
        weight = (weight.unflatten(1, (-1, 4)) @ coded.hadamard(4)).flatten(1)
        codes, scale = round_rows(weight, "int8")
        note = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 4}
        return {"weight": codes, "weight_scale": scale, "comfy_quant": _bytes(note)}
    if layout == "int8":
        codes, scale = round_rows(weight.flatten()[None], "int8")
        return {
            "weight": codes.view(weight.shape),
            "weight_scale": scale[0, 0],
            "comfy_quant": _bytes({"format": "int8_tensorwise"}),
        }
    if layout == "scaled fp8":
        codes, scale = round_rows(weight.flatten()[None], "fp8")
        return {"weight": codes.view(weight.shape), "scale_weight": scale[0, 0], "scale_input": torch.ones(())}
    return {"weight": weight.to(torch.float8_e4m3fn)}


def _bytes(note: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(("layout", "error"), [("convrot", 0.02), ("int8", 0.02), ("scaled fp8", 0.05), ("fp8", 0.05)])
def test_published_codes_are_read(layout: str, error: float, tmp_path: Path) -> None:
    stem = make_family(tmp_path / "family") / "ckpts" / ROLE
    file = stem.with_suffix(".safetensors")
    tensors = load_file(file)
    expected = tensors.pop(WEIGHT).float()
    for name, part in coded_like_comfy(expected, layout).items():
        tensors[WEIGHT.removesuffix("weight") + name] = part.contiguous()
    save_file(tensors, file)
    found = network_file(stem).load().get_parameter(WEIGHT)
    assert 0 < (found - expected).norm() / expected.norm() < error
    load_family(stem.parents[1])


def test_the_rotation_is_its_own_inverse_and_of_powers_of_four_only() -> None:
    matrix = coded.hadamard(64)
    assert torch.allclose(matrix @ matrix, torch.eye(64), atol=1e-6) and torch.equal(matrix, matrix.T)
    with pytest.raises(ValueError, match="power of 4"):
        coded.hadamard(32)


def test_codes_without_a_scale_or_of_an_unknown_format_are_refused(tmp_path: Path) -> None:
    stem = make_family(tmp_path / "family") / "ckpts" / ROLE
    file = stem.with_suffix(".safetensors")
    tensors = load_file(file)
    tensors[WEIGHT] = torch.ones_like(tensors[WEIGHT], dtype=torch.int8)
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="no scale"):
        network_file(stem).check()
    tensors[WEIGHT + "_scale"] = torch.ones(())
    tensors[WEIGHT.replace("weight", "comfy_quant")] = _bytes({"format": "nvfp4"})
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="nvfp4"):
        network_file(stem).load()


def write_gguf(path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], version: int = 3) -> None:
    """A GGUF file of (kind, shape, bytes), with a few facts in front."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("trellis")
    head += text("sizes") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 1, 2)
    body = b""
    for name, (kind, shape, data) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def q8_0(weight: np.ndarray) -> bytes:
    blocks = weight.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    codes = np.round(blocks / np.maximum(scale, 1e-12)).astype(np.int8)
    return b"".join(np.float16(s).tobytes() + c.tobytes() for s, c in zip(scale[:, 0], codes, strict=True))


def test_a_gguf_network_is_found_and_read(tmp_path: Path) -> None:
    root = make_family(tmp_path / "family", **{ROLE: {"model_channels": 32}})
    stem = root / "ckpts" / ROLE
    expected = load_file(stem.with_suffix(".safetensors"))
    stored = {}
    for name, tensor in expected.items():
        numbers = tensor.float().numpy()
        whole = tensor.dim() > 1 and tensor.shape[1] % 32 == 0
        stored[name] = (8, numbers.shape, q8_0(numbers)) if whole else (1, numbers.shape, numbers.astype(np.float16).tobytes())
    stem.with_suffix(".safetensors").unlink()
    write_gguf(stem.with_name(f"{ROLE}_Q8_0.gguf"), stored)
    model = load_family(root).networks[ROLE].load()
    for name, tensor in model.state_dict().items():
        assert (tensor - expected[name].float()).norm() <= 0.01 * expected[name].float().norm(), name
    write_gguf(stem.with_name(f"{ROLE}_Q4_0.gguf"), stored)
    with pytest.raises(WeightsError, match="Keep one"):
        network_file(stem)


def test_damaged_gguf_files_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    good = {"w": (0, (2, 4), np.arange(8, dtype=np.float32).tobytes())}
    write_gguf(path, good)
    whole = path.read_bytes()
    assert torch.equal(gguf.read_tensor(path, gguf.read_table(path)["w"]), torch.arange(8.0).view(2, 4))
    for damaged in (whole[:20], whole[:70], whole[:-8], b"GGML" + whole[4:], whole[:32] + b"\xff" * 8 + whole[40:]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="a.gguf"):
            gguf.read_table(path)
    write_gguf(path, {"w": (19, (2, 256), b"\0" * 132)})
    with pytest.raises(WeightsError, match="type 19"):
        gguf.read_table(path)


def test_every_kind_decodes_as_the_format_s_own_package(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    for code, kind in gguf.KINDS.items():
        raw = rng.integers(0, 256, (4, 512 // kind.numbers * kind.bytes), dtype=np.uint8)
        halves = {12: (0, 2), 13: (0, 2), 14: (208,)}.get(code, (0, 2) if kind.name.endswith("_1") else (0,))
        if kind.numbers > 1:  # scales that are numbers
            blocks = raw.reshape(-1, kind.bytes)
            for place in halves:
                blocks[:, place : place + 2] = np.frombuffer(np.float16(0.013).tobytes(), np.uint8)
        else:
            floats = rng.standard_normal((4, 512)).astype(np.float32)
            raw = package.quants.quantize(floats, package.GGMLQuantizationType(code)).view(np.uint8)
        expected = package.quants.dequantize(raw, package.GGMLQuantizationType(code))
        write_gguf(tmp_path / "a.gguf", {"w": (code, (4, 512), raw.tobytes())})
        found = gguf.read_tensor(tmp_path / "a.gguf", gguf.read_table(tmp_path / "a.gguf")["w"])
        assert np.array_equal(found.numpy(), expected.astype(np.float32)), kind.name


@pytest.mark.parametrize(("note", "reason"), [
    (b"[" * 500, "nested 500 deep"), (b"\xff", "not UTF-8"), (b"[1]", "JSON object, not list"),
    (b'{"format": ["int8_tensorwise"]}', "'int8_tensorwise', 'float8_e4m3fn' or 'float8_e5m2'"),
    (b'{"convrot": 3}', "valid boolean"), (b'{"convrot": true, "convrot_groupsize": 0}', "greater than or equal to 1"),
    (b'{"convrot": true, "convrot_groupsize": "4"}', "valid integer"),
    (b'{"convrot": true, "convrot_groupsize": 7}', "groups of 7"),
    (b'{"convrot": true, "convrot_groupsize": 8}', "no power of 4"),
])  # fmt: skip
def test_notes_on_codes_are_judged(note: bytes, reason: str) -> None:
    text = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    for shaped in (text, text[None], text[:, None]):
        tensors = {"a.weight": torch.ones(4, 8, dtype=torch.int8), "a.comfy_quant": shaped}
        with pytest.raises(ValueError, match=reason):
            coded.decode(tensors["a.weight"], "a.weight", tensors.__contains__, tensors.__getitem__)


def test_a_note_in_numbers_is_none() -> None:
    tensors = {"a.weight": torch.ones(4, 8, dtype=torch.int8), "a.comfy_quant": torch.ones(3)}
    with pytest.raises(ValueError, match="not a short text in bytes"):
        coded.decode(tensors["a.weight"], "a.weight", tensors.__contains__, tensors.__getitem__)
