"""One model from the API: upload, submit or find again, follow, fetch. Stopping it cancels the job there."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import InputError
from ..settings import LORA_FIELD, GenerationSettings
from .client import FalClient, RemoteError, State, Unanswered, arguments_for
from .open_requests import Notebook

if TYPE_CHECKING:
    from ..lora.stack import Lora


@dataclass(frozen=True)
class RemoteModel:
    """A GLB, where it came from, and the seed it was made with."""

    glb: bytes
    request_id: str
    seed: int


async def generate(
    client: FalClient,
    notebook: Notebook,
    app: str,
    picture: Image.Image,
    settings: GenerationSettings,
    *,
    loras: dict[str, bytes] | None = None,
    request_id: str = "",
    base_url: str = "",
    on_state: Callable[[State], None] = lambda state: None,
    on_request: Callable[[str], None] = lambda request_id: None,
) -> RemoteModel:
    """Have a model made.

    Args:
        picture: its alpha shows the subject, if it has any.
        settings: with a seed.
        loras: from `lora_files`.
        request_id: fetch this job instead of making a new one.
        on_request: told the id as soon as it is known.

    Raises:
        RemoteError: in words about what to do. A job like this one that was submitted lately is found again, not repeated.
        InputError: the finished model cannot be fetched; the next run tries that again.
    """
    arguments: dict[str, Any] = {}
    known_files = set(client.uploaded.values())
    if not request_id:
        arguments = await _arguments(client, notebook, app, picture, settings, loras or {})
        request_id = notebook.request(base_url, app, arguments)
    known = bool(request_id)
    if not known:
        request_id = await _submitted(client, app, arguments)
        notebook.keep_request(base_url, app, arguments, request_id)
    on_request(request_id)
    try:
        await client.wait(app, request_id, on_state)
        made = await client.result(app, request_id)
        glb = await client.download(_address(made))
    except Unanswered:
        raise  # it may go on: remembered, so that the next run finds it
    except (RemoteError, InputError) as error:
        stale = _names_a_file(error) and not known_files.isdisjoint(arguments.values())
        if stale:  # the API has thrown an upload away
            client.uploaded.clear()
            notebook.keep_uploads({})
        if known or isinstance(error, RemoteError):  # it came to nothing; but a model that was just made is asked for again
            notebook.keep_request(base_url, app, arguments, "")
        if arguments and (known or stale):  # it was too old, or its files were: make it anew
            return await generate(
                client, notebook, app, picture, settings, loras=loras, base_url=base_url, on_state=on_state,
                on_request=on_request,
            )  # fmt: skip
        raise
    except BaseException:
        notebook.keep_request(base_url, app, arguments, "")
        await asyncio.shield(client.cancel(app, request_id))
        raise
    return RemoteModel(glb, request_id, int(made.get("seed") or settings.seed or 0))


def _address(made: Any) -> str:
    try:
        return str(made["model_glb"]["url"])
    except (KeyError, TypeError):
        raise RemoteError("The API's answer holds no model.") from None


def _names_a_file(error: Exception) -> bool:
    return any(name.endswith("_url") for name, _ in getattr(error, "fields", ()))


async def _submitted(client: FalClient, app: str, arguments: dict[str, Any]) -> str:
    """Who stops while this is under way takes back what he may not know of yet."""
    submitting = asyncio.ensure_future(client.submit(app, arguments))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        await client.cancel(app, await submitting)
        raise


async def _arguments(
    client: FalClient, notebook: Notebook, app: str, picture: Image.Image, settings: GenerationSettings, loras: dict[str, bytes]
) -> dict[str, Any]:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    urls = {"image_url": await client.upload(buffer.getvalue(), "picture.png", "image/png")}
    for field, data in loras.items():
        urls[field] = await client.upload(data, f"{field.removesuffix('_url')}.safetensors", "application/octet-stream")
    notebook.keep_uploads(client.uploaded)
    return arguments_for(app, settings.model_copy(update=urls))


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


def base_color(glb: bytes) -> Image.Image | None:
    """The colour texture of a GLB's first material, None if it has none."""
    from ..gltf.container import split_glb

    document, binary = split_glb(glb)
    try:
        texture = document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["index"]
        entry = document["textures"][texture]
        source = entry.get("extensions", {}).get("EXT_texture_webp", entry).get("source")
        view = document["bufferViews"][document["images"][source]["bufferView"]]
    except (KeyError, IndexError, TypeError):
        return None
    start = view.get("byteOffset", 0)
    return Image.open(BytesIO(binary[start : start + view["byteLength"]])).convert("RGB")
