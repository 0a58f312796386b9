"""A LoRA on a flow transformer of the official size, 1.3 billion parameters in bfloat16: time and memory, by hand.

    python -m tests.benchmarks.lora

Takes about 4 GB and half a minute of CPU. Weights are constants: nothing that is measured depends on their values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trellis_core.lora.apply import Use, attach, merge
from trellis_core.lora.deltas import LowRank
from trellis_core.lora.read import Adapter
from trellis_core.weights.network_file import NetworkFile

OFFICIAL = {
    "resolution": 32, "in_channels": 32, "out_channels": 32, "model_channels": 1536, "cond_channels": 1024, "num_blocks": 30,
    "num_heads": 12, "mlp_ratio": 5.3334, "pe_mode": "rope", "share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True,
    "dtype": "bfloat16",
}  # fmt: skip
RANK = 32


def network() -> nn.Module:
    """The shape flow with constant weights."""
    model = NetworkFile("SLatFlowModel", OFFICIAL, Path("x")).build().to("meta")
    model.dtype = torch.bfloat16
    for block in model.blocks:
        for layer in (m for m in block.modules() if isinstance(m, nn.Linear)):
            layer.to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    return model.eval().requires_grad_(False)


def adapter(model: nn.Module) -> Adapter:
    """A LoRA on every linear map of the blocks."""
    deltas = {}
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            deltas[f"blocks.{name}.weight"] = LowRank(
                torch.randn(RANK, columns).half() * 0.01, torch.randn(rows, RANK).half() * 0.01, 1.0
            )
    return Adapter(deltas, None, None, frozenset({"LoRA"}), frozenset(), "digest")


def resident() -> float:
    """GB of memory that this process takes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e9


def timed(what: str, action: Callable[[], object]) -> object:
    """Run and say the CPU-seconds and what memory it left taken."""
    before, started = resident(), time.process_time()
    result = action()
    print(f"{what:<24} {time.process_time() - started:6.2f} CPU-s   {resident() - before:+.2f} GB")
    return result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lora", description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    model = timed("network", network)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} G parameters, {resident():.2f} GB resident")
    uses = [Use(timed("LoRA", lambda: adapter(model)), 0.8)]
    coords = torch.zeros(args.tokens, 4, dtype=torch.int32)
    coords[:, 1] = torch.arange(args.tokens)
    feats, cond = torch.randn(args.tokens, 32), torch.randn(1, 64, 1024)

    def forward() -> float:
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            model(feats, coords, torch.tensor([500.0]), cond)
            best = min(best, time.process_time() - started)
        return best

    base = forward()
    on = timed("apply at run time", lambda: attach(model, uses))
    beside = forward()
    timed("take off", on.remove)
    timed("merge", lambda: merge(model, uses, keep=False))
    merged = forward()
    ways = ", ".join(f"{way} {s:.2f} ({s / base - 1:+.1%})" for way, s in (("run time", beside), ("merged", merged)))
    print(f"step of {args.tokens} tokens: base {base:.2f}, {ways}")


if __name__ == "__main__":
    main()
