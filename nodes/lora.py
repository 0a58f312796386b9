"""LoRAs: files that change the style of a stage."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.lora.names import DTYPES, FORMATS
from . import host
from .sockets import Choice, Family, Loras, advanced, schema

STAGES: dict[str, tuple[str | None, int | None]] = {
    "all it has weights for": (None, None),
    "structure": ("structure", None),
    "shape": ("shape", None),
    "texture": ("texture", None),
    "shape 512": ("shape", 512),
}
"""Choice on the node -> stage and resolution."""


def changed(family: Any, loras: Any, route: Any) -> Any:
    """The family with a stack of Load LoRA nodes on it, for what `route` makes."""
    from ..trellis_core.lora.stack import place

    return place(family, loras, route)[0] if loras else family


def _file_input() -> Any:
    return Choice("lora", options=host.lora_names(), tooltip="A .safetensors file in models/loras, or a bundled one.")


def _stage_input() -> Any:
    return Choice(
        "stage",
        options=list(STAGES),
        default=next(iter(STAGES)),
        tooltip="What it changes: structure the rough form, shape the surface, texture colour and material; shape 512 the "
        "first pass of a cascade.",
    )


def _family_input() -> Any:
    return Family.Input("family", optional=True, tooltip="Connected, the report tells how the LoRA fits these weights.")


def _report(family: Any, lora: Any) -> str:
    from ..trellis_core.lora.detect import origin_of
    from ..trellis_core.lora.report import describe
    from ..trellis_core.lora.stack import match, read_cached

    if family is not None:
        return "\n".join(report.to_text() for report in match(family, lora))
    file = read_cached(lora.path)
    return describe(file, [origin_of(file, adapter) for adapter in file.adapters])


def _lora(name: str, stage: str, strength: float) -> Any:
    from ..trellis_core.lora.stack import Lora

    return Lora(host.lora_path(name), strength, *STAGES[stage])


class LoadLora(io.ComfyNode):
    """One more LoRA on a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadLora",
            "TRELLIS.2 Load LoRA",
            "Puts a LoRA on a stack for the samplers, and shows how it matches. Nodes can be chained.",
            search_aliases=["trellis lora", "style"],
            inputs=[
                _file_input(),
                _stage_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="0 leaves it out, 1 is as trained, negative turns its effect around.",
                ),
                Loras.Input("loras", optional=True, tooltip="The stack to put it on."),
                _family_input(),
            ],
            outputs=[
                Loras.Output("loras_out", display_name="loras", tooltip="The stack, for samplers."),
                io.String.Output("report", display_name="report", tooltip="What it changes, how strongly, and warnings."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: Any) -> str:
        return host.lora_stamp(lora)

    @classmethod
    def execute(cls, lora: str, stage: str, strength: float, loras: Any = None, family: Any = None) -> io.NodeOutput:
        one = _lora(lora, stage, strength)
        text = _report(family, one)
        return io.NodeOutput((*(loras or ()), one), text, ui=host.shown(cls, text))


class LoraInfo(io.ComfyNode):
    """What a LoRA file is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoraInfo",
            "TRELLIS.2 LoRA Info",
            "Says what a LoRA file is: stage, kind, rank, alpha and where that was found, and what of it fits the weights.",
            search_aliases=["lora report", "inspect lora"],
            is_output_node=True,
            inputs=[_file_input(), _stage_input(), _family_input()],
            outputs=[io.String.Output("report", display_name="report", tooltip="What the file is, in words.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: Any) -> str:
        return host.lora_stamp(lora)

    @classmethod
    def execute(cls, lora: str, stage: str, family: Any = None) -> io.NodeOutput:
        text = _report(family, _lora(lora, stage, 1.0))
        return io.NodeOutput(text, ui=host.shown(cls, text))


class SaveLora(io.ComfyNode):
    """A stack as files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SaveLora",
            "TRELLIS.2 Save Merged LoRA",
            "Writes a stack of LoRAs as one file for each stage, with the strengths baked in: for services that take no "
            "strength, such as fal.",
            search_aliases=["merge lora", "scale lora", "export lora"],
            is_output_node=True,
            inputs=[
                Loras.Input("loras", tooltip="The stack, from Load LoRA."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/TRELLIS2",
                    tooltip="Below the output folder; the stage and a number are put behind it.",
                ),
                Choice("format", options=list(FORMATS), default=FORMATS[0], tooltip="Keys of the new files."),
                advanced(Choice("dtype", options=list(DTYPES), default=DTYPES[0], tooltip="Numbers of the new files.")),
                advanced(
                    io.Int.Input(
                        "rank",
                        default=0,
                        min=0,
                        max=512,
                        tooltip="Press the sum to this rank, which makes smaller files. 0 keeps it exact.",
                    )
                ),
            ],
            outputs=[
                io.String.Output(
                    "paths", display_name="paths", is_output_list=True, tooltip="The files, below the output folder."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str) -> bool | str:
        return host.check_prefix(filename_prefix)

    @classmethod
    def execute(cls, loras: Any, filename_prefix: str, format: str, dtype: str, rank: int) -> io.NodeOutput:
        from ..trellis_core.lora.combine import parts_of
        from ..trellis_core.lora.write import save

        parts = parts_of(loras, rank or None)
        if len(parts) > 1 and any(stage is None for stage, _ in parts):
            raise InputError("It is not known for which stage one of the LoRAs is: choose it on its Load LoRA node.")
        paths = []
        for (stage, resolution), deltas in parts.items():
            path, entry = host.output_file(f"{filename_prefix}_{stage}" if stage else filename_prefix, ".safetensors")
            save(path, {(stage, resolution): deltas}, format, dtype)
            paths.append(host.below(entry))
        return io.NodeOutput(paths, ui=host.shown(cls, "\n".join(paths)))


NODES = [LoadLora, LoraInfo, SaveLora]
