"""LoRAs: files that change the style of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import host
from .sockets import Loras, schema

STAGES = {
    "all it has weights for": ("structure", "shape", "texture"),
    "structure": ("structure",),
    "shape": ("shape",),
    "texture": ("texture",),
}
"""Choice on the node -> the stages it means."""


@dataclass(frozen=True)
class Lora:
    """One entry of a stack: a file, the stages it is for, and how strongly it acts."""

    name: str
    file: Path
    stages: tuple[str, ...]
    strength: float


class LoadLora(io.ComfyNode):
    """One more LoRA on a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadLora",
            "TRELLIS.2 Load LoRA",
            "Puts a LoRA on a stack for the samplers. Nodes can be chained.",
            inputs=[
                io.Combo.Input("lora", options=host.lora_names(), tooltip="A .safetensors file in models/loras."),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default=next(iter(STAGES)),
                    tooltip="What it changes: structure the rough form, shape the surface, texture colour and material.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="0 leaves it out, 1 is as trained, negative turns its effect around.",
                ),
                Loras.Input("loras", optional=True, tooltip="The stack to put it on."),
            ],
            outputs=[Loras.Output("loras_out", display_name="loras")],
        )

    @classmethod
    def execute(cls, lora: str, stage: str, strength: float, loras: Any = None) -> io.NodeOutput:
        return io.NodeOutput((*(loras or ()), Lora(lora, host.lora_path(lora), STAGES[stage], strength)))


NODES = [LoadLora]
