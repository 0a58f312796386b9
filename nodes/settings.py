"""Settings for several nodes at once, and the switch between models made here and elsewhere."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.settings import GenerationSettings
from . import fields
from .sample import seed_input
from .sockets import File3D, schema

Settings = io.Custom("TRELLISCORE_SETTINGS")
NAMES = ("resolution", *(n for names in fields.SAMPLERS.values() for n in names), *fields.MESH, *fields.ATLAS)
"""What every endpoint and the local node have in common."""


def widgets() -> list[Any]:
    """The widgets of all these."""
    return fields.widgets(*NAMES)


def settings_input() -> Any:
    """For nodes whose widgets a settings node can stand in for."""
    return Settings.Input("settings", optional=True, tooltip="From Settings: stands in for the widgets that it has.")


def chosen(values: dict[str, Any], settings: GenerationSettings | None) -> GenerationSettings:
    """What the widgets say, where a connected settings node does not say it."""
    own = fields.settings(values)
    if settings is None:
        return own
    given = own.model_fields_set.difference(NAMES) | settings.model_fields_set
    shared = {name: getattr(settings, name) for name in NAMES}
    return GenerationSettings.model_construct(given, **{**own.model_dump(), **shared})


class GenerationSettingsNode(io.ComfyNode):
    """All settings in one value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Settings",
            "TRELLIS.2 Settings",
            "Seed, sampling and mesh settings for several nodes: the same for Image to 3D here and at fal.ai.",
            inputs=[seed_input(), *widgets()],
            outputs=[
                Settings.Output("settings", display_name="settings"),
                io.Int.Output("seed_out", display_name="seed"),
            ],
        )

    @classmethod
    def validate_inputs(cls, ss_guidance_interval_start: float, ss_guidance_interval_end: float) -> bool | str:
        start, end = ss_guidance_interval_start, ss_guidance_interval_end
        return fields.check(ss_guidance_interval_start=start, ss_guidance_interval_end=end)

    @classmethod
    def execute(cls, seed: int, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(fields.settings(values), seed)


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
                File3D.Input("made_here", optional=True, lazy=True),
                File3D.Input("made_remotely", optional=True, lazy=True),
            ],
            outputs=[File3D.Output("glb", display_name="glb")],
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


NODES = [GenerationSettingsNode, Switch]
