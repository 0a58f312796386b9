"""A client of the hosted endpoints, and of servers that speak like them (docs/method/fal.md).

The official client serves for none of it: it submits up to ten times, sends the key to whatever host an answer names, leaves
the job running when it is stopped, and uploads to addresses that cannot be set. Here the key goes to the API's own hosts and
nowhere else, a job is submitted once or not at all, a stop cancels the remote job, and every job can be found again by its
request id. What is read of answers, and what is not believed, is in `answers`.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..errors import InputError
from . import answers, wire
from .answers import (
    Answer,
    Failed,
    Gone,
    NotConnected,
    Odd,
    Part,
    RemoteError,
    Result,
    State,
    Status,
    Unanswered,
    Unsure,
    UploadPlace,
)
from .download import download
from .endpoints import ONCE
from .wire import Pace, Patience

HOSTED = {"run": "https://fal.run", "queue": "https://queue.fal.run", "rest": "https://rest.fal.ai"}
PART = 10 << 20
WHOLE = 90 << 20
"""Longer files are uploaded in parts."""
SLOWEST = 20_000
"""Bytes a second that an upload may take."""
INLINE = 8 << 10
"""Bytes up to which a picture travels inside the request."""


class FalClient:
    """One user of one API.

    Args:
        key: "" sends none, which only a server on the own machine accepts.
        base_url: a server of one's own, as its start prints it (".../fal"); "" for fal.ai.

    Raises:
        InputError: the address is none, or there is no key for fal.ai.
    """

    def __init__(self, key: str, base_url: str = "", pace: Pace | None = None) -> None:
        base = base_url.strip().rstrip("/")
        own = urlsplit(base)
        if base and (own.scheme not in ("http", "https") or not own.hostname or "@" in own.netloc):
            raise InputError(f'base_url must be an address like http://127.0.0.1:8000/fal, not "{base}".')
        if not base and not key:
            raise InputError(
                "There is no fal.ai key. Set the variable FAL_KEY before the start, or enter the key in the settings "
                "under TRELLIS.2; it is made on fal.ai/dashboard/keys."
            )
        self._bases = {name: f"{base}/{name}" for name in HOSTED} if base else HOSTED
        self._trusted = (f"{own.hostname}:{own.port or (443 if own.scheme == 'https' else 80)}",) if base else ()
        self.base_url, self.name = base, base or "fal.ai"
        self.pace = pace or Pace()
        self._key = key

    # Files

    async def upload(self, data: bytes, name: str, content_type: str) -> str:
        """Send a file to the API; its address there. Small pictures become a data URI instead.

        Raises:
            RemoteError: the API cannot be reached, or refuses it.
        """
        if is_inline(data, content_type):
            return data_uri(data, content_type)
        parts = len(data) > WHOLE
        way = "initiate-multipart" if parts else "initiate"
        url = f"{self._bases['rest']}/storage/upload/{way}?storage_type=fal-cdn-v3"
        announced = {"file_name": name, "content_type": content_type}
        async with self._session() as session:
            place = await self._sent(name, UploadPlace, lambda: self._ask(session, "POST", url, json=announced))
        path, _, query = place.upload_url.partition("?")
        async with wire.session(self._trusted) as session:  # signed addresses, without the key

            async def put(kind: type[answers.T], url: str, data: bytes) -> answers.T:
                more = {"headers": {"Content-Type": content_type}, "data": data}
                within = self.pace.answer + len(data) / SLOWEST
                return await self._sent(name, kind, lambda: self._ask_signed(session, "PUT", url, within, **more))

            if not parts:
                await put(Answer, place.upload_url, data)
                return place.file_url
            done = []
            for number, start in enumerate(range(0, len(data), PART), 1):
                sent = await put(Part, f"{path}/{number}?{query}", data[start : start + PART])
                done.append({"partNumber": number, "etag": sent.etag})
            more = {"headers": {}, "json": {"parts": done}}
            end = f"{path}/complete?{query}"
            await self._sent(name, Answer, lambda: self._ask_signed(session, "POST", end, self.pace.submit, **more))
            return place.file_url

    async def _ask_signed(self, session: aiohttp.ClientSession, method: str, url: str, within: float, **more: Any) -> Answer:
        wire.allow(url, self._trusted)
        return await wire.ask(session, method, url, within=within, **more)

    async def _sent(self, name: str, kind: type[answers.T], ask: Callable[[], Awaitable[Answer]]) -> answers.T:
        """What the API says to a piece of an upload; asked again for a while, since no job is at stake yet."""
        patience = Patience(self.pace, f"the upload of {name}", self.pace.upload)
        while True:
            try:
                answer = await ask()
                if answers.is_refusal(answer) and not answers.retry_after(answer.headers):
                    raise answers.in_words(answer, self._key)
                if not answer.good or answer.is_page:
                    raise answers.odd(answer)
                return answer if kind is Answer else answers.value_of(answer, kind)
            except NotConnected as problem:
                raise RemoteError(f"{self.name} cannot be used: {problem}.") from None
            except Odd as problem:
                try:
                    await patience.after(problem)
                except (Gone, Unanswered):
                    raise RemoteError(
                        f"{name} could not be uploaded to {self.name}: {problem}. Nothing was submitted."
                    ) from None

    async def download(self, made: Result, target: Path, on_fraction: Callable[[float], None] = lambda done: None) -> bytes:
        """A finished model, whole; `target` keeps it. No key is sent along.

        Raises:
            Unanswered: it does not come whole. What has come is kept beside `target`, and the next call goes on there.
        """
        return await download(made.model_glb, target, trusted=self._trusted, pace=self.pace, on_fraction=on_fraction)

    # Jobs

    async def submit(self, app: str, arguments: Mapping[str, Any], once: str) -> str:
        """Queue a job, once; its request id. `once` is a mark that no other job has.

        Raises:
            RemoteError: it was refused, or nothing was sent. Unsure: it is not known whether the job was queued.
        """
        patience = Patience(self.pace, "the new job")
        while True:
            try:
                async with self._session() as session:
                    url = f"{self._bases['queue']}/{app}"
                    more = {"within": self.pace.submit, "json": dict(arguments)}
                    answer = await self._ask(session, "POST", url, {ONCE: once}, **more)
            except NotConnected as problem:
                raise RemoteError(f"{self.name} cannot be used: {problem}. Nothing was submitted.") from None
            except Odd as problem:
                raise self._unsure(problem) from None
            if request_id := answers.request_id_of(answer):
                return request_id
            if not answers.is_refusal(answer):
                raise self._unsure(answers.odd(answer))
            if answer.status not in (429, 503) or not answers.retry_after(answer.headers):
                raise answers.in_words(answer, self._key)
            try:
                await patience.after(answers.odd(answer))  # it was not accepted, and says when it may be
            except Unanswered:
                raise answers.in_words(answer, self._key) from None

    def _unsure(self, problem: Odd) -> Unsure:
        return Unsure(
            f"It is not known whether {self.name} has accepted the job ({answers.scrub(str(problem), self._key)}). It may run, "
            "and be billed. Nothing is submitted a second time: if your requests on the API's pages show it, enter its id as "
            "request_id; if they do not, turn on submit_anew for one run, or choose another seed."
        )

    async def takes_once(self, app: str) -> bool:
        """Whether the server says that a job is not made twice if it is submitted twice with the same mark. fal.ai does not."""
        if not self.base_url:
            return False
        try:
            async with self._session() as session:
                answer = await self._ask(session, "GET", f"{self.base_url}/openapi.json?endpoint_id={app}")
            paths = answers.value_of(answer, answers.Document).paths
        except Odd:
            return False
        known = paths.get(f"/queue/{app}", {}).get("post", answers.Operation()).parameters
        return any(parameter.get("name") == ONCE for parameter in known)

    async def outcome(self, app: str, request_id: str, on_state: Callable[[State], None]) -> Result:
        """Wait until the job has ended; what it has made.

        Raises:
            Failed: the API says that it came to nothing. Gone: it says that it does not have it, to both questions that
            can be asked. Unanswered: nobody can tell.
        """
        try:
            ended = await self._ended(app, request_id, on_state)
        except Gone:
            ended = Status(status="COMPLETED")
        return await self._result(app, request_id, ended)

    async def _ended(self, app: str, request_id: str, on_state: Callable[[State], None]) -> Status:
        patience = Patience(self.pace, f"request {request_id}")
        url = f"{self._job(app, request_id)}/status?logs=1"
        async with self._session() as session:
            while True:
                try:
                    answer = await self._ask(session, "GET", url)
                    if answers.is_end(answer, request_id, None):
                        return Status(status="COMPLETED")
                    status = self._good(answer, Status)
                except Odd as problem:
                    on_state(State("", None, None, f"no sensible answer ({answers.shown(problem)}); asking again"))
                    await patience.after(problem)
                    continue
                on_state(answers.state_of(status))
                if status.status == "COMPLETED":
                    return status
                patience.heard()
                await asyncio.sleep(self.pace.poll)

    async def _result(self, app: str, request_id: str, ended: Status) -> Result:
        patience = Patience(self.pace, f"the result of request {request_id}")
        async with self._session() as session:
            while True:
                try:
                    answer = await self._ask(session, "GET", self._job(app, request_id))
                    if answers.is_end(answer, request_id, ended.error):
                        raise answers.in_words(answer, self._key, Failed)
                    return self._good(answer, Result)
                except Odd as problem:
                    try:
                        await patience.after(problem)
                    except Unanswered:
                        if not ended.error:
                            raise
                        raise Failed(f"The job failed. The API says: {answers.shown(ended.error, self._key)}.") from None

    async def cancel(self, app: str, request_id: str) -> bool:
        """Take a job back; whether the API has said that it will. Takes no longer than `Pace.cancel`."""
        try:
            async with self._session() as session:
                url = f"{self._job(app, request_id)}/cancel"
                return (await self._ask(session, "PUT", url, within=self.pace.cancel)).good
        except Odd:
            return False

    def _job(self, app: str, request_id: str) -> str:
        """Built here and not taken from an answer: the key goes to no host that an answer names."""
        if not re.fullmatch(answers.REQUEST_ID, request_id):
            raise InputError(f'"{request_id[:80]}" is not a request id.')
        owner_and_name = "/".join(app.split("/")[:2])
        return f"{self._bases['queue']}/{owner_and_name}/requests/{request_id}"

    # Talking

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with wire.session() as session:
            yield session

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        more: Mapping[str, str] | None = None,
        *,
        within: float | None = None,
        **body: Any,
    ) -> Answer:
        headers = {**(more or {}), **({"Authorization": f"Key {self._key}"} if self._key else {})}
        return await wire.ask(session, method, url, within=within or self.pace.answer, headers=headers, **body)

    def _good(self, answer: Answer, kind: type[answers.T]) -> answers.T:
        """What a good answer about a job holds. That the key is refused says nothing of the job."""
        if answer.status in (401, 402, 403) and answer.detail is not None:
            raise answers.in_words(answer, self._key, Unanswered)
        return answers.value_of(answer, kind)


def is_inline(data: bytes, content_type: str) -> bool:
    """Whether a file is small enough to travel inside the request."""
    return len(data) <= INLINE and content_type.startswith("image/")


def data_uri(data: bytes, content_type: str) -> str:
    """A file as text."""
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
