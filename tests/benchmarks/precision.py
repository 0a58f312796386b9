"""What fewer bits cost a flow network: `python -m tests.benchmarks.precision [--golden DIR] [--json FILE]`.

Velocities with rounded layers against those in float32, on the networks of `flow_cases`, mean over times, with the picture
and without it: size of the difference beside the velocity's, and cosine. `LoRA` is the difference between what a LoRA does
to a rounded layer and what it does to the exact one, beside the latter.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from trellis_core.flow.slat import SLatFlowModel
from trellis_core.lora.apply import Use, attach
from trellis_core.lora.deltas import LowRank
from trellis_core.weights import gguf
from trellis_core.weights import quantised as coded
from trellis_core.weights.low_precision import lower, round_rows, rounded

from . import flow_cases

TIMES = (900.0, 500.0, 100.0)
GGUF = {"GGUF Q8_0": 8, "GGUF Q5_0": 6, "GGUF Q4_0": 2}
"""The format's number of a kind of which its own package can make codes."""


def as_bfloat16(model: SLatFlowModel) -> SLatFlowModel:
    """The layers in bfloat16, as published configs have it."""
    low = SLatFlowModel(model.params, dtype=torch.bfloat16).eval()
    low.load_state_dict(model.state_dict())
    return low


def as_rounded(precision: str) -> Callable[[SLatFlowModel], SLatFlowModel]:
    """`--precision`."""

    def make(model: SLatFlowModel) -> SLatFlowModel:
        low = copy.deepcopy(model)
        for name, layer in lower(low, precision).items():
            for part, value in rounded(name, model.get_parameter(name), precision).items():
                setattr(layer, part.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
        return low

    return make


def as_stored(store: Callable[[Tensor], Tensor]) -> Callable[[SLatFlowModel], SLatFlowModel]:
    """Weights of the layers after a way through a file of codes, then computed with as they come out."""

    def make(model: SLatFlowModel) -> SLatFlowModel:
        low = copy.deepcopy(model)
        for name in lower(copy.deepcopy(model), "int8"):
            low.get_parameter(name).copy_(store(model.get_parameter(name)))
        return low

    return make


def float8_file(weight: Tensor) -> Tensor:
    """float8 with one scale, as ComfyUI's scaled fp8 files."""
    codes, scale = round_rows(weight.flatten()[None], "fp8")
    return (codes.float() * scale).view(weight.shape)


def convrot_file(weight: Tensor) -> Tensor:
    """int8 after a rotation of groups of inputs, as ComfyUI's int8_convrot files; as large groups as fit."""
    group = max(4**n for n in range(5) if weight.shape[1] % 4**n == 0)
    turned = (weight.unflatten(1, (-1, group)) @ coded.hadamard(group)).flatten(1)
    codes, scale = round_rows(turned, "int8")
    parts = {"comfy_quant": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}, "weight_scale": scale}
    note = torch.tensor(list(json.dumps(parts["comfy_quant"]).encode()), dtype=torch.uint8)
    return coded.decode(codes, "weight", parts.__contains__, lambda name: note if name == "comfy_quant" else parts[name])


def gguf_file(number: int) -> Callable[[Tensor], Tensor]:
    """Blocks of 32 as the format's own package rounds them, read by our reader; other widths stay in half precision."""

    def store(weight: Tensor) -> Tensor:
        from gguf import GGMLQuantizationType, quants

        kind = gguf.KINDS[number]
        if weight.shape[1] % kind.numbers:
            return weight.half().float()
        codes = quants.quantize(weight.numpy(), GGMLQuantizationType(number))
        return torch.from_numpy(kind.decode(codes.view("uint8").reshape(-1, kind.bytes)).reshape(weight.shape))

    return store


def forms() -> dict[str, Callable[[SLatFlowModel], SLatFlowModel]]:
    """Name of a precision -> the network in it."""
    known = {"bfloat16": as_bfloat16, "int8": as_rounded("int8"), "fp8": as_rounded("fp8")}
    known |= {"fp8 file": as_stored(float8_file), "int8_convrot file": as_stored(convrot_file)}
    if find_spec("gguf") is not None:
        known |= {f"{name} file": as_stored(gguf_file(number)) for name, number in GGUF.items()}
    return known


def velocities(case: flow_cases.FlowCase, model: SLatFlowModel) -> Tensor:
    """[times and contexts, T, C]."""
    asked = [(torch.tensor([t]), c) for t in TIMES for c in (case.cond, torch.zeros_like(case.cond))]
    return torch.stack([model(case.rows, case.coords, t, c, case.known) for t, c in asked])


def lora_error(exact: SLatFlowModel, low: SLatFlowModel) -> float:
    """Of a LoRA's action on the first layer of the first MLP."""
    first, second = (model.blocks[0].mlp.mlp[0] for model in (exact, low))
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x, delta = (
        draw(64, first.in_features),
        LowRank(draw(8, first.in_features) / first.in_features**0.5, draw(first.out_features, 8), 0.5),
    )
    changes = []
    for model, layer in ((exact, first), (low, second)):
        before = layer(x)
        on = attach(model, [Use(SimpleNamespace(deltas={"blocks.0.mlp.mlp.0.weight": delta}, digest="0"), 1.0)])
        changes.append(layer(x) - before)
        on.remove()
    return float((changes[1] - changes[0]).norm() / changes[0].norm())


@torch.no_grad()
def measure(case: flow_cases.FlowCase) -> list[dict[str, Any]]:
    """Rows of the table for one network."""
    exact, rows = velocities(case, case.model), []
    for name, make in forms().items():
        low = make(case.model)
        found = velocities(case, low)
        pairs = list(zip(found.flatten(1), exact.flatten(1), strict=True))
        error = sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)
        cosine = sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs) / len(pairs)
        lora = math.nan if name == "bfloat16" else lora_error(case.model, low)
        rows.append(
            {
                "network": case.name,
                "precision": name,
                "error": error,
                "cosine": cosine,
                "lora": None if math.isnan(lora) else lora,
            }
        )
        print(f"{case.name:36} {name:20} {error:9.4%} {cosine:10.6f} {lora:9.1e}", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="folder with golden cases; without, networks of their size")
    parser.add_argument("--width", type=int, default=1024, help="of the wide network")
    parser.add_argument("--json", type=Path, help="write all rows here")
    options = parser.parse_args(argv)
    print(f"{'network':36} {'precision':20} {'error':>9} {'cosine':>10} {'LoRA':>9}")
    with torch.no_grad():
        cases = [*flow_cases.golden(options.golden), flow_cases.mini(), flow_cases.of_width(options.width, 6, 192, 257)]
    rows = [row for case in cases for row in measure(case)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
