"""What is asked of the API: an endpoint, its settings, and the files that go with them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import InputError
from ..settings import LORA_FIELD, LORA_FIELDS, MOST_VIEWS, GenerationSettings
from .endpoints import ENDPOINTS, LORA_ENDPOINT, MULTI_ENDPOINT, PLAIN_ENDPOINT, RETEXTURE_ENDPOINT

if TYPE_CHECKING:
    from ..lora.stack import Lora

MESH_TYPES = {
    "glb": "model/gltf-binary",
    "obj": "model/obj",
    "ply": "application/octet-stream",
    "stl": "model/stl",
}
"""Kinds of model files that can be textured anew, and their media types."""
SHORT_NAMES = tuple(app.removeprefix("fal-ai/") for app in ENDPOINTS)


@dataclass(frozen=True)
class Attachment:
    """A file that is sent along.

    Attributes:
        mark: what tells it from others; the hash of its content unless given.
    """

    data: bytes
    name: str
    content_type: str
    mark: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Order:
    """One job: the endpoint's id, its settings, and the files by the field that names them."""

    app: str
    settings: GenerationSettings
    files: Mapping[str, tuple[Attachment, ...]] = field(default_factory=dict)

    def fingerprint(self, server: str) -> str:
        """The same for the same job at the same server, wherever its files are uploaded to."""
        marks = {name: [file.mark or file.digest for file in files] for name, files in self.files.items()}
        return _hash([server, self.app, self.arguments({}), marks])

    def old_fingerprint(self, base_url: str, addresses: Mapping[str, str | Sequence[str]]) -> str:
        """What notes of earlier versions call it, once its files have addresses."""
        return _hash([base_url, self.app, self.arguments(addresses)])

    def arguments(self, addresses: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
        """The body of the request, when its files have these addresses."""
        return arguments_for(self.app, self.settings.model_copy(update=dict(addresses)))


def order(
    app: str,
    settings: GenerationSettings,
    pictures: Sequence[Image.Image],
    *,
    mesh: Attachment | None = None,
    loras: Mapping[str, bytes] | None = None,
) -> Order:
    """A job for an endpoint.

    Args:
        pictures: one, or for trellis-2/multi several of one object. Their alpha shows the subject, if they have any.
        mesh: the model that trellis-2/retexture works on; see `mesh_file`.
        loras: from `lora_files`.

    Raises:
        InputError: the endpoint does not take these together, or lacks a value; nothing was sent.
    """
    endpoint, files = ENDPOINTS[app], {}
    field = "image_urls" if app == MULTI_ENDPOINT else "image_url"
    files[field] = tuple(_picture_file(picture, index) for index, picture in enumerate(pictures))
    if mesh is not None:
        files["mesh_url"] = (mesh,)
    for name, data in (loras or {}).items():
        files[name] = (Attachment(data, f"{name.removesuffix('_url')}.safetensors", "application/octet-stream"),)
    _check(app, len(pictures), mesh is not None, bool(loras))
    made = Order(app, settings, {name: files[name] for name in endpoint.fields if name in files})
    made.arguments({})
    return made


def endpoint_for(choice: str, *, loras: bool = False, views: int = 1, mesh: bool = False) -> str:
    """The endpoint's id for "auto" or for its short name.

    Args:
        views: pictures of one object.

    Raises:
        InputError: the endpoint does not take what is connected, or there is none for it.
    """
    name = choice
    if choice == "auto":
        fitting = RETEXTURE_ENDPOINT if mesh else LORA_ENDPOINT if loras else MULTI_ENDPOINT if views > 1 else PLAIN_ENDPOINT
        name = fitting.removeprefix("fal-ai/")
    app = f"fal-ai/{name}"
    _check(app, views, mesh, loras)
    return app


def _check(app: str, views: int, mesh: bool, loras: bool) -> None:
    name, fields = app.removeprefix("fal-ai/"), ENDPOINTS[app].fields
    if loras and LORA_FIELDS[0] not in fields:
        raise InputError(f"{name} takes no LoRAs: choose trellis-2-lora, or take the LoRAs away.")
    if mesh and "mesh_url" not in fields:
        raise InputError(f"{name} takes no mesh: choose trellis-2/retexture, or take the mesh away.")
    if not mesh and "mesh_url" in fields:
        raise InputError(f"{name} paints a model that exists: connect one to mesh.")
    if views > 1 and "image_urls" not in fields:
        more = ", and without LoRAs" if loras else ""
        raise InputError(
            f"{name} takes one picture of an object, and there are {views} views of it: choose trellis-2/multi{more}, or leave "
            "one picture."
        )
    if "image_urls" in fields and not 2 <= views <= MOST_VIEWS:
        raise InputError(f"{name} takes 2 to {MOST_VIEWS} pictures of one object, not {views}.")


def arguments_for(app: str, settings: GenerationSettings) -> dict[str, Any]:
    """What is sent for these settings: fields that the endpoint has, where they were given or its default is another one.

    Raises:
        InputError: a value is none of those that the endpoint has.
    """
    endpoint = ENDPOINTS[app]
    for name, choices in endpoint.choices.items():
        if getattr(settings, name) not in choices:
            text = " or ".join(map(str, choices))
            raise InputError(f"{app} has {name} {text}, not {getattr(settings, name)}.")
    given = settings.model_fields_set | set(endpoint.defaults)
    values = {name: getattr(settings, name) for name in endpoint.fields if name in given}
    return {name: value for name, value in values.items() if value is not None}


def price(app: str, settings: GenerationSettings, base_url: str) -> str:
    """What one model will cost, in words; "" on a server of one's own."""
    known = ENDPOINTS[app].prices.get(settings.resolution)
    return "" if base_url else f"about ${known:.2f} at fal.ai" if known else f"billed by fal.ai; see fal.ai/models/{app}"


def mesh_file(data: bytes, kind: str) -> Attachment:
    """A model file to be textured anew.

    Raises:
        InputError: the API does not take files of this kind.
    """
    kind = kind.lower().lstrip(".")
    if kind not in MESH_TYPES:
        raise InputError(f"The API takes models as {', '.join(MESH_TYPES)}, not as {kind}: convert it first.")
    return Attachment(data, f"mesh.{kind}", MESH_TYPES[kind])


def lora_files(loras: Sequence[Lora]) -> tuple[dict[str, bytes], list[str]]:
    """One LoRA file for each stage, with strengths baked in, since the API knows none; and what was done, in words.

    Raises:
        InputError: it is not known for which stage one is, or a form cannot be scaled.
    """
    from ..lora.combine import parts_of
    from ..lora.write import save

    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for (stage, resolution), deltas in parts_of(loras).items():
            if stage is None:
                raise InputError("It is not known for which stage one of the LoRAs is: choose it on its Load LoRA node.")
            field = LORA_FIELD[stage]
            if field in files:
                raise InputError(f"The API takes one LoRA for the {stage} stage: choose the same resolution for all of them.")
            path = save(Path(folder) / f"{field}.safetensors", {(stage, resolution): deltas})
            files[field] = path.read_bytes()
    baked = [f"{lora.path.name} at {lora.strength:g}" for lora in loras if lora.strength != 1]
    return files, [f"Strengths were baked into the uploaded LoRAs: {', '.join(baked)}."] if baked else []


def _picture_file(picture: Image.Image, index: int) -> Attachment:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    pixels = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
    return Attachment(buffer.getvalue(), f"picture{index or ''}.png", "image/png", pixels)  # encoders differ, pixels do not


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
