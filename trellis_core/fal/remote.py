"""One model from the API: upload, submit or find again, follow, fetch. Stopping it cancels the job there.

A job costs money from the moment it is accepted. So it is written down before it is sent, and from then on everything leads
back to it: a stop, a crash, a broken line, an odd answer, another program that wants the same. It is made anew only when the
API itself says that it has failed, or when the user says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path

from PIL import Image

from .answers import Failed, Gone, RemoteError, Result, State, Unanswered, Unsure
from .client import FalClient, data_uri, is_inline
from .download import why_not_whole
from .open_requests import ACCEPTED, CANCELLED, REMEMBERED, SENT, Kept, Notebook
from .order import Attachment, Order


@dataclass(frozen=True)
class RemoteModel:
    """A GLB, where it came from, the seed it was made with, and what the user should know of how it was had."""

    glb: bytes
    request_id: str
    seed: int
    notes: tuple[str, ...] = ()


async def generate(
    client: FalClient,
    notebook: Notebook,
    order: Order,
    *,
    request_id: str = "",
    submit_anew: bool = False,
    on_state: Callable[[State], None] = lambda state: None,
    on_request: Callable[[str], None] = lambda request_id: None,
) -> RemoteModel:
    """Have a model made. A request like this one that is known is asked for its result, and not made again.

    Args:
        order: with a seed among its settings.
        request_id: fetch this job instead of making a new one.
        submit_anew: the user wants a new job, and to pay for it, also where one is known.
        on_request: told the id as soon as it is known.

    Raises:
        RemoteError: in words about what to do. Everything but `Failed` leaves the request where it is.
        InputError: something on this machine does not let it be done.
    """
    run = _Run(client, notebook, order, order.fingerprint(client.name), on_state, on_request)
    glb, kept, made = await (run.of_id(request_id) if request_id else run.of_order(submit_anew))
    notebook.tidy()
    return RemoteModel(glb, kept.id, made.seed_or(order.settings.seed), tuple(run.notes))


@dataclass
class _Run:
    client: FalClient
    book: Notebook
    order: Order
    fingerprint: str
    on_state: Callable[[State], None]
    on_request: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    async def of_order(self, anew: bool) -> tuple[bytes, Kept, Result]:
        """Of the request that is known, else of a new one."""
        async with self.book.held(self.fingerprint, self._wait):
            known = self._known()
            if known is not None and not anew:
                return await self._of_known(known)
            if known is not None:
                self.notes.append(f"{_named(known)} is known; a new one was submitted, as submit_anew says.")
            return await self._of_new()

    async def of_id(self, request_id: str) -> tuple[bytes, Kept, Result]:
        """Of the job that the user names."""
        named = Kept(f"{self.client.name} {request_id}", ACCEPTED, "", request_id)
        return await self._of(self.book.find_id(request_id) or named)

    def _wait(self) -> None:
        self.on_state(State("IN_QUEUE", None, None, "another run works on the same request; waiting for it"))

    def _known(self) -> Kept | None:
        known = self.book.find(self.fingerprint)
        if known is None and (old := self._old_fingerprint()) and (known := self.book.find(old)):
            known = self.book.rename(known, self.fingerprint)
        return known

    def _old_fingerprint(self) -> str:
        """What version 0.1 called this request; "" if that depends on uploads that are not remembered."""
        addresses = {name: self._remembered(files[0]) for name, files in self.order.files.items()}
        return self.order.old_fingerprint(self.client.base_url, addresses) if all(addresses.values()) else ""

    async def _of_known(self, known: Kept) -> tuple[bytes, Kept, Result]:
        if known.state == SENT:
            return await self._of_sent(known)
        self.notes.append(f"{_named(known)} was known: its result was fetched, and nothing was submitted.")
        try:
            return await self._of(known)
        except Failed as error:
            why = f"failed ({str(error).rstrip('.')})"
        except Gone as error:
            if known.state != CANCELLED:
                raise Gone(
                    f"{_named(known)} was accepted, and now {self.client.name} says that it does not have it any more. "
                    "Nothing was submitted: turn on submit_anew for one run, or choose another seed, to have the model made, "
                    "and billed, again."
                ) from error
            why = "was taken back"
        self.book.forget(known)
        self.notes[-1] = f"{_named(known)} {why}: a new one was submitted."
        return await self._of_new()

    async def _of_sent(self, known: Kept) -> tuple[bytes, Kept, Result]:
        """Of a request that may have been accepted. A server that knows its mark is asked again."""
        fresh = known.time > time.time() - REMEMBERED
        if not (known.once and fresh and await self.client.takes_once(self.order.app)):
            raise Unsure(
                f"A request like this was being submitted on {_date(known)} when the program ended or the connection broke. "
                f"It is not known whether {self.client.name} has accepted it; it may have been billed. Nothing was submitted "
                "now: if your requests on the API's pages show it, enter its id as request_id; if they do not, turn on "
                "submit_anew for one run, or choose another seed."
            )
        self.notes.append("The submit was sent again, because its answer had not come; the server takes the same job once.")
        return await self._of(await self._accepted(known, (await self._arguments())[1]))

    async def _of_new(self) -> tuple[bytes, Kept, Result]:
        """Submit; once more if the API has thrown files away that it had before."""
        fresh, arguments = await self._arguments()
        kept = await self._submitted(arguments)
        try:
            return await self._of(kept)
        except Failed as error:
            self.book.forget(kept)
            if fresh or not any(name in self.order.files for name, _ in error.fields):
                raise
        self.book.forget_uploads()
        self.notes.append(f"{_named(kept)} failed, because the API had thrown uploads away: they were sent again.")
        kept = await self._submitted((await self._arguments())[1])
        return await self._of(kept)

    async def _arguments(self) -> tuple[bool, dict]:
        """The request's body, and whether all of its files were sent just now."""
        addresses: dict[str, str | tuple[str, ...]] = {}
        fresh = True
        for name, files in self.order.files.items():
            found = []
            for file in files:
                address = self._remembered(file)
                fresh = fresh and (not address or is_inline(file.data, file.content_type))
                if not address:
                    address = await self.client.upload(file.data, file.name, file.content_type)
                    self.book.keep_upload(self.client.name, file.digest, address)
                found.append(address)
            addresses[name] = tuple(found) if name == "image_urls" else found[0]
        return fresh, self.order.arguments(addresses)

    def _remembered(self, file: Attachment) -> str:
        """Where a file is known to be, "" if it has to be sent."""
        if is_inline(file.data, file.content_type):
            return data_uri(file.data, file.content_type)
        return self.book.upload(self.client.name, file.digest)

    async def _submitted(self, arguments: dict) -> Kept:
        """Written down, then sent."""
        kept = self.book.begin(self.fingerprint)
        try:
            return await self._accepted(kept, arguments)
        except Unsure:
            if not await self.client.takes_once(self.order.app):
                raise
            return await self._accepted(kept, arguments)
        except RemoteError:
            self.book.forget(kept)
            raise

    async def _accepted(self, kept: Kept, arguments: dict) -> Kept:
        """Sent. Who stops while this is under way takes back what he may not know of yet."""
        submitting = asyncio.ensure_future(self.client.submit(self.order.app, arguments, kept.once))
        try:
            return self.book.accepted(kept, await asyncio.shield(submitting))
        except asyncio.CancelledError:
            await asyncio.wait([submitting], timeout=self.client.pace.cancel)
            submitting.cancel()
            if submitting.done() and not submitting.cancelled() and submitting.exception() is None:
                await self._take_back(self.book.accepted(kept, submitting.result()))
            raise

    async def _of(self, kept: Kept) -> tuple[bytes, Kept, Result]:
        """Follow a request to its model."""
        self.on_request(kept.id)
        async with self.book.held(f"model {self.client.name} {kept.id}", self._wait):
            target = self.book.model(self.client.name, kept.id)
            if kept.result:
                made = Result.model_validate_json(kept.result)
                if (data := _on_disk(target)) and not why_not_whole(data, made.model_glb.size):
                    return data, kept, made
                with suppress(Unanswered):  # its address may have changed: the API is asked below
                    return await self._downloaded(made, target), kept, made
            kept, made = await self._outcome(kept)
            return await self._downloaded(made, target), kept, made

    async def _outcome(self, kept: Kept) -> tuple[Kept, Result]:
        try:
            made = await self.client.outcome(self.order.app, kept.id, self.on_state)
        except asyncio.CancelledError:
            await self._take_back(kept)
            raise
        return self.book.made(kept, made.model_dump_json()), made

    async def _take_back(self, kept: Kept) -> None:
        if await asyncio.shield(self.client.cancel(self.order.app, kept.id)):
            self.book.cancelled(kept)

    async def _downloaded(self, made: Result, target: Path) -> bytes:
        def told(done: float) -> None:
            self.on_state(State("COMPLETED", None, 1.0, f"fetching the model: {done:.0%}"))

        return await self.client.download(made, target, told)


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


def _on_disk(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _named(kept: Kept) -> str:
    return f"Request {kept.id or 'without an id'} of {_date(kept)}"


def _date(kept: Kept) -> str:
    return datetime.fromtimestamp(kept.time or time.time()).strftime("%d %B %Y, %H:%M")
