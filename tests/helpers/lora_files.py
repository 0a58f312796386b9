"""LoRA files in every format, of one random adapter, and what PEFT makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_core.weights.network_file import NetworkFile

WIDTH, RANK, ALPHA = 24, 4, 8.0
FLOW = {
    "resolution": 2, "in_channels": 4, "out_channels": 4, "model_channels": WIDTH, "cond_channels": 16, "num_blocks": 2,
    "num_heads": 2, "mlp_ratio": 2.0, "pe_mode": "rope", "share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True,
}  # fmt: skip
LAYERS = [
    f"blocks.{i}.{name}"
    for i in range(2)
    for name in ("self_attn.to_qkv", "self_attn.to_out", "cross_attn.to_q", "cross_attn.to_kv", "mlp.mlp.0", "mlp.mlp.2")
] + ["t_embedder.mlp.0", "out_layer"]


def network(name: str = "SLatFlowModel", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> nn.Module:
    """A small flow transformer with random weights everywhere."""
    model = NetworkFile(name, {**FLOW, **changes}, Path("x")).build().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.dtype = dtype
    for block in model.blocks:
        for layer in (m for m in block.modules() if isinstance(m, nn.Linear)):
            layer.to(dtype)
    return model.eval().requires_grad_(False)


def run(model: nn.Module, seed: int = 1) -> Tensor:
    """The network's answer to a fixed random question."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor([300.0, 800.0])
    cond = torch.randn(2, 5, 16, generator=generator)
    if type(model).__name__ == "SparseStructureFlowModel":
        return model(torch.randn(2, 4, 2, 2, 2, generator=generator), t, cond)
    coords = torch.tensor([[b, x, y, 1] for b in range(2) for x in range(3) for y in range(1 + b)], dtype=torch.int32)
    return model(torch.randn(len(coords), model.params.in_channels, generator=generator), coords, t, cond)


def factors(model: nn.Module, rank: int = RANK, seed: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> down [r, in], up [out, r]."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in LAYERS:
        out_width, in_width = model.get_submodule(layer).weight.shape
        found[layer] = (
            torch.randn(rank, in_width, generator=generator) * 0.2,
            torch.randn(out_width, rank, generator=generator) * 0.2,
        )
    return found


def by_peft(model: nn.Module, config: Any, state: Mapping[str, Tensor], name: str = "default") -> nn.Module:
    """The model with PEFT's own layers in it, holding these adapter tensors."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    inject_adapter_in_model(config, model, name)
    left = set_peft_model_state_dict(model, dict(state), name)
    assert not left.unexpected_keys
    return model.eval()


def peft_state(pairs: Mapping[str, tuple[Tensor, Tensor]], front: str = "base_model.model.", of: str = "") -> dict[str, Tensor]:
    state = {}
    for layer, (down, up) in pairs.items():
        state[f"{front}{layer}.lora_A{of}.weight"], state[f"{front}{layer}.lora_B{of}.weight"] = down, up
    return state


def write(path: Path, form: str, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float = ALPHA) -> Path:
    """A LoRA of these factors in one of `FORMATS`; returns the path to read."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / "lora.safetensors"
    rank = next(iter(pairs.values()))[0].shape[0]
    flat = {layer.replace(".", "_"): pair for layer, pair in pairs.items()}
    if form == "peft folder":
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(pairs)}
        (path / "adapter_config.json").write_text(json.dumps(config))
        save_file(peft_state(pairs), path / "adapter_model.safetensors")
        return path
    if form == "peft raw":
        (path / "lora.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha}))
        save_file(peft_state(pairs, of=".default"), file)
    elif form == "diffusers":
        notes = {"lora_adapter_metadata": json.dumps({"transformer.r": rank, "transformer.lora_alpha": alpha})}
        save_file(peft_state(pairs, "transformer."), file, notes)
    elif form == "diffusers old":
        scaled = {f"transformer.{k}.lora.down.weight": d for k, (d, _) in pairs.items()}
        save_file(scaled | {f"transformer.{k}_lora.up.weight": u * alpha / rank for k, (_, u) in pairs.items()}, file)
    elif form == "generic":
        save_file(_with_alpha({f"diffusion_model.{k}": p for k, p in pairs.items()}, alpha), file)
    elif form == "native":
        save_file(_with_alpha({f"diffusion_model.img2shape_512.{k}": p for k, p in pairs.items()}, alpha), file)
    elif form == "kohya":
        save_file(_with_alpha({f"lora_unet_{k}": p for k, p in flat.items()}, alpha), file)
    elif form == "kohya metadata":
        state = {f"lora_unet_{k}.lora_down.weight": d for k, (d, _) in flat.items()}
        state |= {f"lora_unet_{k}.lora_up.weight": u for k, (_, u) in flat.items()}
        save_file(state, file, {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})
    elif form == "lokr":  # a product is a Kronecker product with a 1 x 1 factor
        state = {}
        for k, (d, u) in flat.items():
            state[f"lycoris_{k}.lokr_w1"] = torch.ones(1, 1)
            state[f"lycoris_{k}.lokr_w2_a"], state[f"lycoris_{k}.lokr_w2_b"] = u, d
            state[f"lycoris_{k}.alpha"] = torch.tensor(alpha)
        save_file(state, file)
    elif form == "loha":  # and an entry-by-entry product with ones
        state = {}
        for k, (d, u) in flat.items():
            one = torch.zeros(rank)
            one[0] = 1
            state[f"lora_unet_{k}.hada_w1_a"], state[f"lora_unet_{k}.hada_w1_b"] = u, d
            state[f"lora_unet_{k}.hada_w2_a"] = one.repeat(len(u), 1)
            state[f"lora_unet_{k}.hada_w2_b"] = one[:, None].repeat(1, d.shape[1])
            state[f"lora_unet_{k}.alpha"] = torch.tensor(alpha)
        save_file(state, file)
    elif form == "difference":
        save_file({f"diffusion_model.{k}.diff": (alpha / rank * u) @ d for k, (d, u) in pairs.items()}, file)
    else:
        raise ValueError(form)
    return file


FORMATS = (
    "peft folder", "peft raw", "diffusers", "diffusers old", "generic", "native", "kohya", "kohya metadata", "lokr", "loha",
    "difference",
)  # fmt: skip


def _with_alpha(pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    state = {}
    for k, (down, up) in pairs.items():
        state[f"{k}.lora_down.weight"], state[f"{k}.lora_up.weight"] = down, up
        state[f"{k}.alpha"] = torch.tensor(alpha)
    return state
