"""LoRAs under the host's memory manager, in a process without a server; prints what came of it as JSON.

Run by test_lora.py with the host's folder on the path: inside_lora.py PACK BASE LORA [PRECISION]
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

PACK, BASE, LORA = map(Path, sys.argv[1:4])
PRECISION = sys.argv[4] if len(sys.argv) > 4 else None
STRENGTHS = (0.0, 1.0, 1.0, -0.5, 0.0)


def main() -> None:
    sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    import nodes  # noqa: F401  # as in a host that has started

    spec = importlib.util.spec_from_file_location("the_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    sys.modules["the_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["the_pack"])
    core = "the_pack.trellis_core"
    host = importlib.import_module("the_pack.nodes.host")
    stack, weights = importlib.import_module(f"{core}.lora.stack"), importlib.import_module(f"{core}.weights.network_file")
    host.add_weights_folder()
    family = host.open_family("mini", PRECISION)
    plain = importlib.import_module(f"{core}.family").load_family("mini", precision=PRECISION)
    role = "shape_slat_flow_model_512"
    read, load = [], weights.NetworkFile.load
    weights.NetworkFile.load = lambda self, *more: read.append(self.name) or load(self, *more)

    def answer(which: Any, strength: float) -> torch.Tensor:
        placed, _ = stack.place(which, [stack.Lora(LORA, strength, "shape")], which.route(512))
        with placed.network(role, rows=4) as model, torch.no_grad():
            width, seen = model.params.in_channels, model.params.cond_channels
            generator = torch.Generator().manual_seed(0)
            coords = torch.tensor([[0, x, 0, 1] for x in range(4)], dtype=torch.int32)
            feats, cond = torch.randn(4, width, generator=generator), torch.randn(1, 5, seen, generator=generator)
            return model(feats, coords, torch.tensor([500.0]), cond).clone()

    theirs = [answer(family, strength) for strength in STRENGTHS]
    times_read = len(read)
    ours = [answer(plain, strength) for strength in STRENGTHS]
    print(
        json.dumps(
            {
                "times read": times_read,
                "errors": [(a - b).abs().max().item() for a, b in zip(theirs, ours, strict=True)],
                "effect": (theirs[1] - theirs[0]).abs().max().item(),
                "restored": torch.equal(theirs[0], theirs[-1]),
                "repeated": torch.equal(theirs[1], theirs[2]),
            }
        )
    )


if __name__ == "__main__":
    main()
