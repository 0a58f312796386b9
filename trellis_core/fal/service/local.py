"""The runner that makes models on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...context import RunContext
from ...errors import WeightsError
from ...settings import LORA_FIELD, resolve_seed
from ..endpoints import result
from ..errors import field_error
from .inputs import Inputs, Reader, room_for
from .pools import Pools
from .state.files import FileStore
from .work import Watch, Work

if TYPE_CHECKING:
    from ...family import Family
    from ...image.preprocess import Matte


@dataclass(frozen=True)
class Made:
    """A finished model: the GLB file, and the seed it was made with."""

    glb: bytes
    seed: int


Make = Callable[[Inputs, RunContext], Made]
"""Makes a model; raises `Cancelled` soon after it is asked to stop."""


def maker(family: Family, matte: Matte | None, device: str = "cpu") -> Make:
    """Makes models with these weights; `matte` finds the subject of pictures that are not cut out."""
    import torch

    from ... import stages
    from ...lora.stack import Lora, place

    def make(inputs: Inputs, ctx: RunContext) -> Made:
        ctx = replace(ctx, device=torch.device(device))
        settings = inputs.settings.model_copy(update={"seed": resolve_seed(inputs.settings.seed)})
        route = family.route(settings.resolution, settings.cascade)
        loras = [Lora(inputs.loras[field], stage=stage) for stage, field in LORA_FIELD.items() if field in inputs.loras]
        try:
            changed = place(family, loras, route)[0] if loras else family
        except WeightsError as error:
            raise field_error(next(iter(inputs.loras)), str(error), "value_error") from None
        with torch.inference_mode():
            asset = stages.generate(changed, inputs.picture, settings, matte=matte, ctx=ctx)
        return Made(asset.to_glb_bytes(), int(settings.seed or 0))

    return make


class LocalRunner:
    """Reads requests and makes their models in threads of this process, as many at a time as `pools` says."""

    def __init__(self, make: Make, reader: Reader, store: FileStore, pools: Pools) -> None:
        self._make, self._reader, self._store, self._pools, self.slots = make, reader, store, pools, pools.slots

    async def run(self, work: Work, watch: Watch) -> dict[str, Any]:
        async with watch.aside():
            fetched = await self._pools.downloads.run(work.owner, self._reader.fetch, work, watch.ctx)
        try:
            return await self._pools.work.run("", produce, self._make, self._reader, self._store, work, watch, fetched)
        finally:
            self._reader.discard(fetched)


def produce(
    make: Make, reader: Reader, store: FileStore, work: Work, watch: Watch, fetched: Mapping[str, Path]
) -> dict[str, Any]:
    """One request from its body to its answer. Blocks; errors are those of `Reader.read` and of the library."""
    inputs = reader.read(work, watch, fetched)
    with room_kept(work, inputs, store):
        try:
            made = make(inputs, watch.ctx)
        finally:
            reader.discard(inputs.loras)
        return answer_for(work, inputs, made, store)


@contextmanager
def room_kept(work: Work, inputs: Inputs, store: FileStore) -> Iterator[None]:
    """Room for the model, kept from before the work until the model is there.

    Raises:
        FalError: 507, there is none.
    """
    size = room_for(inputs.settings)
    store.accounts.reserve(work.owner, size)
    try:
        yield
    finally:
        store.accounts.release(work.owner, size)


def answer_for(work: Work, inputs: Inputs, made: Made, store: FileStore) -> dict[str, Any]:
    """Keep the model, and say so as the endpoint does."""
    name = f"{work.request_id}.glb"
    file = store.put_bytes(made.glb, name, "model/gltf-binary", work.lifetime, work.owner, work.request_id)
    described = {"url": file.address, "content_type": file.content_type, "file_name": file.name, "file_size": file.size}
    return result(work.app, inputs.settings, made.seed, described)


@contextmanager
def with_loras(inputs: Inputs, loras: Mapping[str, bytes]) -> Iterator[Inputs]:
    """Inputs whose LoRA files are of this machine, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {field: Path(folder) / f"{field}.safetensors" for field in loras}
        for field, path in paths.items():
            path.write_bytes(loras[field])
        yield replace(inputs, loras=paths)
