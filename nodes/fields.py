"""Widgets made from the fields of `GenerationSettings`, and settings made from the values of widgets."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.settings import FINISH_FIELDS, LOCAL_FIELDS, MESH_FIELDS, SAMPLER_FIELDS, STAGE_PREFIX, GenerationSettings
from .sockets import advanced

SAMPLERS = {
    stage: tuple(f"{prefix}_{ending}" for endings in SAMPLER_FIELDS.values() for ending in endings)
    for stage, prefix in STAGE_PREFIX.items()
}
"""Stage -> its sampler's fields."""

ROUTE = ("resolution", "cascade", "max_num_tokens")
MESH = ("decimation_target", *(name for name in MESH_FIELDS if name.startswith("remesh") and name not in LOCAL_FIELDS))
ATLAS = ("texture_size", *(name for name in MESH_FIELDS if name.startswith("uv_unwrap")))
_FIRST = ("alpha_mode", "image_format")  # older than the others, so before them in saved workflows
FINISH = (*_FIRST, *(name for name in FINISH_FIELDS if name not in (*_FIRST, "faces")))
BAKER = ("rasterizer",)
CACHING = ("step_caching",)

_PLAIN = ("steps", "guidance_strength", "resolution", "decimation_target", "texture_size", "remesh")
"""Endings of the fields that everybody sees; the others are folded away."""

_FOLLOWS = " Left at its default it follows what the weights recommend."


def widgets(*names: str) -> list[Any]:
    """One input per field: range, default and words are the field's own."""
    return [_widget(name) for name in names]


def settings(values: dict[str, Any]) -> GenerationSettings:
    """Settings of what widgets say. A value left at its default counts as not given, so a family's own one holds.

    Raises:
        InputError: two values do not go together, in words.
    """
    given = {key: _number(key, value) for key, value in values.items()}
    try:
        complete = GenerationSettings(**given)
    except ValueError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name} cannot be {first['input']}: {first['msg']}.") from error
    defaults = GenerationSettings()
    changed = {key for key in given if getattr(complete, key) != getattr(defaults, key)}
    return GenerationSettings.model_construct(changed, **complete.model_dump())


def check(**values: Any) -> bool | str:
    """For the host's check before a run: True, or what is wrong with these values. Those that come over a link are None."""
    try:
        settings({key: value for key, value in values.items() if value is not None})
    except InputError as error:
        return str(error)
    return True


def _widget(name: str) -> Any:
    field = GenerationSettings.model_fields[name]
    limits = {key: getattr(rule, key) for rule in field.metadata for key in ("ge", "le", "lt") if hasattr(rule, key)}
    low, high = limits.get("ge"), limits.get("le")
    tip = field.description + (_FOLLOWS if name.startswith(tuple(STAGE_PREFIX.values())) else "")
    common = {"id": name, "tooltip": tip, "default": field.default, "optional": name in (*FINISH_FIELDS, *BAKER, *CACHING)}
    choices = get_args(field.annotation)
    if choices:
        common["default"] = str(field.default)
        widget = io.Combo.Input(options=[str(choice) for choice in choices], **common)
    elif field.annotation is bool:
        widget = io.Boolean.Input(**common)
    elif field.annotation is int:
        widget = io.Int.Input(min=low, max=2**31 - 1 if high is None else high, step=1, **common)
    else:
        step = 0.01 if high == 1 or name in FINISH_FIELDS else 1.0 if high > 10 else 0.05
        widget = io.Float.Input(min=float(low), max=float(high), step=step, **common)
    return widget if name.endswith(_PLAIN) else advanced(widget)


def _number(name: str, value: Any) -> Any:
    choices = get_args(GenerationSettings.model_fields[name].annotation)
    return type(choices[0])(value) if choices else value
