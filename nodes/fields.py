"""Widgets made from the fields of `GenerationSettings`, and settings made from the values of widgets.

What a widget shows is what is used. What is not on a node, or is left to "recommended", is for those before it to say: the
settings nodes that are connected, then the preset, then the weights, then our defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from comfy_api.latest import io
from pydantic import ValidationError

from ..trellis_core.errors import InputError, TrellisError
from ..trellis_core.presets import RECOMMENDED
from ..trellis_core.settings import (
    FILE_FIELDS,
    ROUTE_FIELDS,
    SAMPLER_FIELDS,
    SURFACE_FIELDS,
    TEXTURE_FIELDS,
    GenerationSettings,
)
from . import host
from .sockets import Choice, advanced

ENDINGS = tuple(ending for endings in SAMPLER_FIELDS.values() for ending in endings)
"""A sampler's settings, without the stage's prefix."""

ROUTE, SURFACE, FILE = ROUTE_FIELDS[1:], SURFACE_FIELDS, FILE_FIELDS
TEXTURE = TEXTURE_FIELDS
BAKE = tuple(name for name in TEXTURE if name != "picture_detail")
"""Bake Textures is given no picture."""

_PLAIN = (
    "steps", "guidance_strength", "resolution", "decimation_target", "faces", "texture_size", "remesh", "normal_map",
    "occlusion_map", "alpha_mode", *FILE_FIELDS,
)  # fmt: skip
"""Endings of the fields that everybody sees; the others are folded away."""


def widgets(*names: str) -> list[Any]:
    """One input per field: range, default and words are the field's own."""
    return [widget(name, GenerationSettings.model_fields[name].description or "") for name in names]


def resolution(before: str) -> Any:
    """The resolution, or what others say of it; `before` tells who does, in words."""
    field = GenerationSettings.model_fields["resolution"]
    return Choice(
        "resolution",
        options=[RECOMMENDED, *map(str, get_args(field.annotation))],
        default=RECOMMENDED,
        optional=True,
        tooltip=f"{field.description} {RECOMMENDED}: {before}.",
    )


def widget(field_name: str, tooltip: str, name: str = "") -> Any:
    """The input of one field, under another name where one is given."""
    field = GenerationSettings.model_fields[field_name]
    limits = {key: getattr(rule, key) for rule in field.metadata for key in ("ge", "le", "lt") if hasattr(rule, key)}
    low, high = limits.get("ge"), limits.get("le")
    common = {"id": name or field_name, "tooltip": tooltip, "default": field.default, "optional": True}
    choices = get_args(field.annotation)
    if choices:
        common["default"] = str(field.default)
        made = Choice(options=[str(choice) for choice in choices], **common)
    elif field.annotation is bool:
        made = io.Boolean.Input(**common)
    elif field.annotation is int:
        made = io.Int.Input(min=low, max=2**31 - 1 if high is None else high, step=1, **common)
    else:
        low, high = limits["ge"], limits["le"]
        step = 0.01 if high == 1 or field_name in FILE_FIELDS else 1.0 if high > 10 else 0.05
        made = io.Float.Input(min=float(low), max=float(high), step=step, **common)
    return made if field_name.endswith(_PLAIN) else advanced(made)


def settings(
    values: Mapping[str, Any], connected: GenerationSettings | None = None, preset: GenerationSettings | None = None
) -> GenerationSettings:
    """What a node's widgets show, then what connected settings say, then a preset.

    Raises:
        InputError: a value is impossible; or the connected settings say something else than a widget of the node shows.
    """
    own = checked({name: value for name, value in values.items() if value != RECOMMENDED})
    if connected is not None:
        for name in sorted(own.model_fields_set & connected.model_fields_set):
            shown, said = getattr(own, name), getattr(connected, name)
            if shown != said:
                raise InputError(f"{name} is {shown} on this node and {said} in the connected settings: make them equal.")
        own = own.over(connected)
    return own if preset is None else own.over(preset)


def checked(values: Mapping[str, Any]) -> GenerationSettings:
    """Settings of values by name, all of them given.

    Raises:
        InputError: a value is impossible, or two do not go together, in words.
    """
    try:
        return GenerationSettings(**{name: _number(name, value) for name, value in values.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name} cannot be {first['input']}: {first['msg']}.") from error


def check(**values: Any) -> bool | str:
    """For the host's check before a run: True, or what is wrong with these values. Those that come over a link are None."""
    try:
        checked({key: value for key, value in values.items() if value is not None})
    except InputError as error:
        return str(error)
    return True


def check_finishing(**values: Any) -> bool | str:
    """The same, and whether the packages are there that finishing a model with these values takes."""
    from ..trellis_core.preflight import check_packages

    try:
        check_packages(checked({key: value for key, value in values.items() if value is not None}), host.context())
    except TrellisError as error:
        return str(error)
    return True


def _number(name: str, value: Any) -> Any:
    choices = get_args(GenerationSettings.model_fields[name].annotation)
    return type(choices[0])(value) if choices else value
