"""What the endpoints take and give: fields as a checked model, result, OpenAPI document (docs/method/fal.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from ..settings import (
    LOCAL_FIELDS,
    LORA_FIELDS,
    MESH_FIELDS,
    SOURCE_FIELDS,
    STAGE_PREFIX,
    GenerationSettings,
    number_from_text,
)
from .body import MAX_JSON, Body, split
from .errors import FalError, validation_errors

PLAIN_ENDPOINT = "fal-ai/trellis-2"
LORA_ENDPOINT = "fal-ai/trellis-2-lora"
MULTI_ENDPOINT = "fal-ai/trellis-2/multi"
RETEXTURE_ENDPOINT = "fal-ai/trellis-2/retexture"
ONCE = "Idempotency-Key"
"""Header with a client's mark of a job: our service does not take a job twice that bears the same one."""
SERVED = (PLAIN_ENDPOINT, LORA_ENDPOINT)
"""The endpoints that our own service works off."""
_TEXTURE_SIZES = {"texture_size": (1024, 2048, 4096)}


@dataclass(frozen=True)
class Endpoint:
    """What one hosted endpoint takes: its fields, and where it differs from `GenerationSettings`.

    Attributes:
        prices: US dollars that fal.ai bills for one model, by resolution; empty where they are not published.
    """

    fields: tuple[str, ...]
    required: tuple[str, ...] = ("image_url",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    prices: Mapping[int, float] = field(default_factory=dict)


def _taking(*sources: str, without: Sequence[str]) -> tuple[str, ...]:
    """The fields of an endpoint that works on `sources`, with every setting but those it is `without`."""
    left_out = {*SOURCE_FIELDS, *LOCAL_FIELDS, *without}.difference(sources)
    return tuple(name for name in GenerationSettings.model_fields if name not in left_out)


_NOT_OF_TEXTURING = (
    *(
        n
        for n in GenerationSettings.model_fields
        if n.startswith((f"{STAGE_PREFIX['structure']}_", f"{STAGE_PREFIX['shape']}_"))
    ),
    *(*LORA_FIELDS, *MESH_FIELDS, "decimation_target"),
)

ENDPOINTS: Mapping[str, Endpoint] = {
    PLAIN_ENDPOINT: Endpoint(
        _taking("image_url", without=LORA_FIELDS),
        choices=_TEXTURE_SIZES,
        prices={512: 0.25, 1024: 0.30, 1536: 0.35},
    ),
    LORA_ENDPOINT: Endpoint(
        _taking("image_url", without=MESH_FIELDS),
        defaults={"resolution": 512},
        choices={"resolution": (512, 1024), **_TEXTURE_SIZES},
        prices={512: 0.25, 1024: 0.30},
    ),
    MULTI_ENDPOINT: Endpoint(
        _taking("image_urls", without=LORA_FIELDS),
        required=("image_urls",),
        choices=_TEXTURE_SIZES,
    ),
    RETEXTURE_ENDPOINT: Endpoint(
        _taking("image_url", "mesh_url", without=_NOT_OF_TEXTURING),
        required=("image_url", "mesh_url"),
        choices={"resolution": (512, 1024), **_TEXTURE_SIZES},
        prices={512: 0.20, 1024: 0.24},
    ),
}
"""Id of an endpoint -> what it takes."""


class File(BaseModel):
    """A file that was made."""

    url: str
    content_type: str
    file_name: str
    file_size: int


@lru_cache
def payload_model(app: str) -> type[BaseModel]:
    """The body that endpoint `app` takes: fields of `GenerationSettings` with the endpoint's own defaults and choices."""
    endpoint = ENDPOINTS[app]
    fields: dict[str, Any] = {}
    for name in endpoint.fields:
        known = GenerationSettings.model_fields[name]
        rules, default = tuple(known.metadata), endpoint.defaults.get(name, known.default)
        annotation: Any = known.annotation
        if name in endpoint.required:
            annotation, default = get_args(annotation)[0], ...  # without its None
        if name in endpoint.choices:
            annotation, rules = Literal[endpoint.choices[name]], (BeforeValidator(number_from_text),)
        if rules:
            annotation = Annotated[(annotation, *rules)]
        fields[name] = annotation, Field(default, description=known.description)
    title = "".join(part.capitalize() for part in re.split("[-/]", app)[2:]) + "Input"
    config = ConfigDict(extra="ignore", frozen=True, title=title)
    return create_model(title, __config__=config, **fields)


def check_payload(app: str, body: bytes | Body) -> tuple[GenerationSettings, list[str]]:
    """The settings in a request's body, and the names in it that mean nothing to the endpoint.

    Raises:
        FalError: 422 with every field that is wrong.
    """
    body = split(body) if isinstance(body, bytes) else body
    values = body.read(MAX_JSON)
    try:
        checked = payload_model(app).model_validate(values)
    except ValidationError as error:
        faults = [{**entry, "input": body.shown(entry["input"])} for entry in _plain(validation_errors(error))]
        raise FalError(422, faults) from None
    given = {name: getattr(checked, name) for name in checked.model_fields_set} | {
        name: getattr(checked, name) for name in ENDPOINTS[app].defaults
    }
    return GenerationSettings(**given), sorted(set(values) - set(type(checked).model_fields))


def result(app: str, settings: GenerationSettings, seed: int, file: Mapping[str, Any]) -> dict[str, Any]:
    """What endpoint `app` answers for a finished job."""
    made: dict[str, Any] = {"model_glb": dict(file)}
    if app == LORA_ENDPOINT:
        echoed = ("resolution", "decimation_target", "texture_size", *LORA_FIELDS)
        made |= {"seed": seed} | {name: getattr(settings, name) for name in echoed}
    return made


@lru_cache
def result_model(app: str) -> type[BaseModel]:
    """The type of `result`."""
    fields: dict[str, Any] = {"model_glb": (File, Field(description="The generated model, a binary glTF file."))}
    if app == LORA_ENDPOINT:
        fields |= dict.fromkeys(("seed", "resolution", "decimation_target", "texture_size"), (int, ...))
        fields |= {name: (str | None, None) for name in LORA_FIELDS}
    return create_model(payload_model(app).__name__.removesuffix("Input") + "Output", **fields)


def _plain(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With contexts that JSON can say."""
    return json.loads(json.dumps(errors, default=str))
