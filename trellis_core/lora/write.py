"""Writing LoRAs in other formats.

What is written has alpha equal to its rank in every layer, so that programs that know alpha, programs that guess it and
services that take no strength all apply it in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import InputError, WeightsError
from ..files import write_whole
from ..roles import flow_role
from .combine import Parts
from .deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank, Replacement
from .names import DTYPES, FORMATS

_DTYPES: Mapping[str, torch.dtype] = dict(zip(DTYPES, (torch.float16, torch.bfloat16, torch.float32), strict=True))

SUBMODELS = {
    ("structure", None): "structure_model",
    ("shape", 512): "img2shape_512",
    ("shape", 1024): "img2shape",
    ("texture", 512): flow_role("texture", 512),
    ("texture", 1024): "shape2txt",
}
"""Stage and resolution -> its sub-model, for files that hold several."""


def save(
    path: Path,
    parts: Parts,
    form: str = "peft",
    dtype: str = "fp16",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write adapters to one file.

    Args:
        path: ends in .safetensors; or with `form` "peft" a folder, which gets PEFT's two files.
        parts: (stage, resolution) -> deltas; one part is written without a sub-model's name, several each under its own.
        dtype: of `DTYPES`; form: of `FORMATS`. Full differences and LoKr keep the generic keys that all programs share.

    Returns:
        The file that holds the tensors.
    """
    if form not in FORMATS:
        raise InputError(f'There is no LoRA format "{form}"; choose one of {", ".join(FORMATS)}.')
    state: dict[str, Tensor] = {}
    for (stage, resolution), deltas in parts.items():
        inner = f"{_submodel(stage, resolution)}." if len(parts) > 1 else ""
        for name, delta in deltas.items():
            state |= _tensors(inner + name, delta, form)
    described = {"stage": ",".join(sorted({str(s) for s, _ in parts if s})), **dict(notes or {})}
    resolutions = {r for _, r in parts if r}
    if len(resolutions) == 1:
        described.setdefault("resolution", str(resolutions.pop()))
    ranks = sorted({d.rank for deltas in parts.values() for d in deltas.values() if d.rank})
    config = {"peft_type": "LORA", "r": ranks[-1] if ranks else 0, "lora_alpha": ranks[-1] if ranks else 0}
    config["rank_pattern"] = config["alpha_pattern"] = _patterns(parts, config["r"])
    config["target_modules"] = sorted({n.removesuffix(".weight") for deltas in parts.values() for n in deltas})
    whole = form == "peft" and all(
        isinstance(getattr(d, "inner", d), LowRank) for deltas in parts.values() for d in deltas.values()
    )
    if whole:
        described["adapter_config"] = json.dumps(config)
    state = {key: value.to(_DTYPES[dtype], copy=True).contiguous() for key, value in state.items()}
    if bad := next((key for key, value in state.items() if not value.isfinite().all()), None):
        raise InputError(f'"{bad}" is too large for {dtype}: write fp32.')
    if path.suffix != ".safetensors":
        if not whole:
            raise InputError("PEFT's folder form holds plain LoRA only: give a name that ends in .safetensors.")
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
        path = path / "adapter_model.safetensors"
    _write(path, state, {key: value for key, value in described.items() if value})
    return path


def _write(path: Path, state: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """A safetensors file with its notes in order: the library's own order changes from run to run."""
    data = to_bytes(dict(state), dict(notes))
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    table["__metadata__"] = dict(sorted(notes.items()))
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    write_whole(path, len(head).to_bytes(8, "little") + head + data[end:])


def _tensors(name: str, delta: Delta, form: str) -> dict[str, Tensor]:
    """Tensors of a parameter's change under a format's keys."""
    layer = name.removesuffix(".weight")
    generic = f"diffusion_model.{layer}"
    if isinstance(delta, Decomposed):
        return _tensors(name, delta.inner, form) | _magnitude(layer, delta, form)
    if isinstance(delta, LowRank):
        up = delta.scale * delta.up.float()
        if form == "peft":
            front = f"base_model.model.{layer}"
            return {f"{front}.lora_A.weight": delta.down, f"{front}.lora_B.weight": up}
        front = generic if form == "comfy" else f"lora_unet_{layer.replace('.', '_')}"
        state = {f"{front}.lora_down.weight": delta.down, f"{front}.lora_up.weight": up}
        return state | {f"{front}.alpha": torch.tensor(float(delta.rank))}
    if isinstance(delta, Hadamard):
        return _tensors(name, delta.as_low_rank(), form)
    if isinstance(delta, Kronecker):
        return {f"{generic}.lokr_w1": delta.scale * delta.first.float(), f"{generic}.lokr_w2": delta.second}
    bias = name.endswith(".bias")
    if isinstance(delta, Difference):
        return {f"diffusion_model.{name.removesuffix('.bias')}.diff_b" if bias else f"{generic}.diff": delta.value}
    if isinstance(delta, Replacement) and not bias:
        return {f"{generic}.set_weight": delta.value}
    raise WeightsError(f"{name} is replaced as a whole, which this format cannot say.")


def _magnitude(layer: str, delta: Decomposed, form: str) -> dict[str, Tensor]:
    """Lengths of rows or columns, under the key of the form that stands beside them."""
    low_rank = isinstance(delta.inner, (LowRank, Hadamard))
    if form == "peft" and low_rank:
        if delta.over_inputs:
            raise WeightsError(f"{layer} is a DoRA over the layer's inputs, which PEFT does not know: write comfy or kohya.")
        return {f"base_model.model.{layer}.lora_magnitude_vector": delta.magnitude}
    front = f"lora_unet_{layer.replace('.', '_')}" if form == "kohya" and low_rank else f"diffusion_model.{layer}"
    return {f"{front}.dora_scale": delta.magnitude[None] if delta.over_inputs else delta.magnitude[:, None]}


def _patterns(parts: Parts, usual: int) -> dict[str, int]:
    """Layers whose rank is not the usual one."""
    deltas = [pair for part in parts.values() for pair in part.items()]
    return {n.removesuffix(".weight"): d.rank for n, d in deltas if d.rank and d.rank != usual}


def _submodel(stage: str | None, resolution: int | None) -> str:
    if stage is None:
        raise InputError("A file for several networks needs a stage for each of them: choose the stages.")
    return SUBMODELS.get((stage, resolution)) or {"shape": "geometry"}.get(stage) or SUBMODELS.get((stage, None)) or stage
