"""Settings nodes, which say more than the widgets of a node; and the switch between models made here and elsewhere.

Each adds its part to the settings it is given, so that they can be chained. Left out, the weights' recommendation holds.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.settings import STAGE_PREFIX, GenerationSettings
from . import fields
from .sockets import Choice, File3D, Settings, schema

ALL_STAGES = "all three"
_TOLD_BY = "shape_slat"
"""The stage whose defaults stand on Sampling Settings at first."""

_SAMPLER_TIPS = {
    "sampling_steps": "Steps of the sampler. More is slower and a little better.",
    "guidance_strength": "How closely the result keeps to the picture. 1 is off and fastest, 0 ignores the picture, too high "
    "makes artefacts.",
    "guidance_rescale": "Tames the overshoot of strong guidance. 0 leaves guidance as it is.",
    "guidance_interval_start": "Guidance acts while flow time (1 noise, 0 done) is at or above this.",
    "guidance_interval_end": "Guidance acts while flow time (1 noise, 0 done) is at or below this.",
    "rescale_t": "Spends more of the steps on the noisy start, where the large features are decided.",
}


def _chained(inputs: list[Any]) -> list[Any]:
    before = Settings.Input("settings", optional=True, tooltip="Other settings nodes, to go on from.")
    return [*inputs, before]


def _after(settings: GenerationSettings | None, values: dict[str, Any]) -> io.NodeOutput:
    own = fields.checked(values)
    return io.NodeOutput(own if settings is None else own.over(settings))


def _node(node_id: str, name: str, description: str, inputs: list[Any]) -> io.Schema:
    return schema(
        node_id,
        name,
        description,
        search_aliases=["trellis settings", "options"],
        inputs=_chained(inputs),
        outputs=[Settings.Output("settings_out", display_name="settings", tooltip="For nodes with a settings socket.")],
    )


class SamplingSettings(io.ComfyNode):
    """How one stage is sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        stages = Choice(
            "stage",
            options=[*STAGE_PREFIX, ALL_STAGES],
            default="structure",
            optional=True,
            tooltip="Which sampler this is for: structure the rough form, shape the surface, texture colour and material.",
        )
        own = [fields.widget(f"{_TOLD_BY}_{end}", _SAMPLER_TIPS[end], end) for end in fields.ENDINGS]
        return _node(
            "SamplingSettings",
            "TRELLIS.2 Sampling Settings",
            "Sets the sampler of a stage: exactly the values shown are used. A stage without such a node is sampled as its "
            "weights recommend; Load TRELLIS.2 shows those values.",
            [stages, *own],
        )

    @classmethod
    def validate_inputs(cls, guidance_interval_start: Any = None, guidance_interval_end: Any = None) -> bool | str:
        start, end = guidance_interval_start, guidance_interval_end
        return fields.check(ss_guidance_interval_start=start, ss_guidance_interval_end=end)

    @classmethod
    def execute(cls, stage: str = "structure", settings: Any = None, **values: Any) -> io.NodeOutput:
        shown = {end: GenerationSettings.model_fields[f"{_TOLD_BY}_{end}"].default for end in fields.ENDINGS} | values
        prefixes = STAGE_PREFIX.values() if stage == ALL_STAGES else [STAGE_PREFIX[stage]]
        return _after(settings, {f"{prefix}_{end}": value for prefix in prefixes for end, value in shown.items()})


def _complete(names: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of those that a prompt leaves out."""
    return {name: GenerationSettings.model_fields[name].default for name in names} | values


class MeshSettings(io.ComfyNode):
    """What becomes of the surface."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _node(
            "MeshSettings",
            "TRELLIS.2 Mesh Settings",
            "How many triangles the finished model has, and how its surface is cleaned.",
            fields.widgets(*fields.SURFACE),
        )

    @classmethod
    def execute(cls, settings: Any = None, **values: Any) -> io.NodeOutput:
        return _after(settings, _complete(fields.SURFACE, values))


class TextureSettings(io.ComfyNode):
    """Which maps are baked, and on what charts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _node(
            "TextureSettings",
            "TRELLIS.2 Texture Settings",
            "Size and kind of the baked textures, and how the surface is cut into charts for them.",
            fields.widgets(*fields.TEXTURE),
        )

    @classmethod
    def validate_inputs(cls, rasterizer: Any = None, unwrap: Any = None) -> bool | str:
        return fields.check_finishing(rasterizer=rasterizer, unwrap=unwrap)

    @classmethod
    def execute(cls, settings: Any = None, **values: Any) -> io.NodeOutput:
        return _after(settings, _complete(fields.TEXTURE, values))


class FileSettings(io.ComfyNode):
    """How the finished file is written."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _node(
            "FileSettings",
            "TRELLIS.2 File Settings",
            "Format and size of the finished file, and how the model stands in it.",
            fields.widgets(*fields.FILE),
        )

    @classmethod
    def validate_inputs(cls, image_format: Any = None, max_file_mb: Any = None) -> bool | str:
        return fields.check_finishing(image_format=image_format, max_file_mb=max_file_mb)

    @classmethod
    def execute(cls, settings: Any = None, **values: Any) -> io.NodeOutput:
        return _after(settings, _complete(fields.FILE, values))


class Switch(io.ComfyNode):
    """One of two models; the other is not made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Switch",
            "TRELLIS.2 Here or fal",
            "Hands on the model that is made here or the one that is made remotely; what leads to the other does not run.",
            search_aliases=["switch", "if"],
            inputs=[
                io.Boolean.Input("remote", default=False, tooltip="Off: the model made here. On: the one from fal."),
                File3D.Input("made_here", optional=True, lazy=True, tooltip="The model of Image to 3D."),
                File3D.Input("made_remotely", optional=True, lazy=True, tooltip="The model of Image to 3D (fal)."),
            ],
            outputs=[File3D.Output("glb", display_name="glb", tooltip="The chosen one.")],
        )

    @classmethod
    def check_lazy_status(cls, remote: bool, made_here: Any = None, made_remotely: Any = None) -> list[str]:
        name, value = ("made_remotely", made_remotely) if remote else ("made_here", made_here)
        return [name] if value is None else []

    @classmethod
    def execute(cls, remote: bool, made_here: Any = None, made_remotely: Any = None) -> io.NodeOutput:
        chosen = made_remotely if remote else made_here
        if chosen is None:
            raise InputError(f"Nothing is connected to {'made_remotely' if remote else 'made_here'}.")
        return io.NodeOutput(chosen)


NODES = [SamplingSettings, MeshSettings, TextureSettings, FileSettings, Switch]
