"""A client of the hosted endpoints, and of servers that speak like them (spec E 1, 4).

The official client serves for none of it: it submits up to ten times, sends the key to whatever host an answer names, leaves
the job running when it is stopped, and uploads to addresses that cannot be set. Here the key goes to the API's own hosts and
nowhere else, a job is submitted once or not at all, a stop cancels the remote job, and every job can be found again by its
request id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..context import RunContext
from ..errors import InputError, TrellisError
from ..fetch import fetch_bytes
from ..settings import GenerationSettings
from .endpoints import ENDPOINTS

HOSTED = {"run": "https://fal.run", "queue": "https://queue.fal.run", "rest": "https://rest.fal.ai"}
POLL_SECONDS = 0.7
PATIENCE = 300.0
"""Seconds without any answer to a question about a job after which it is left alone."""
PART = 10 << 20
WHOLE = 90 << 20
"""Longer files are uploaded in parts."""
MAX_MODEL = 500 << 20
INLINE = 8 << 10
"""Bytes up to which a file travels inside the request."""

_PERCENT = re.compile(r"^\s*(\d{1,3}) ?%")
_SECRETS = re.compile(r"(Key\s+\S+|fal_jwt_token=[^&\s]+|signature=[^&\s]+|[?&](?:X-Goog|Signature|Expires)[^\s]*)", re.I)


class RemoteError(TrellisError):
    """The API refused or failed; its text says what to do. `fields` are (setting, message) of a 422."""

    def __init__(self, message: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class Unanswered(RemoteError):
    """It is not known what became of a job: it may go on, and can be asked for again."""


@dataclass(frozen=True)
class State:
    """A job as the queue sees it: how many are before it, how much is done as far as its log says, and the last line."""

    status: str
    position: int | None
    fraction: float | None
    line: str


def endpoint_for(choice: str, has_loras: bool) -> str:
    """The endpoint's id for "auto" or for its short name.

    Raises:
        InputError: LoRAs are connected and the endpoint has none.
    """
    name = choice if choice != "auto" else "trellis-2-lora" if has_loras else "trellis-2"
    if has_loras and name != "trellis-2-lora":
        raise InputError(f"{name} takes no LoRAs: choose trellis-2-lora or auto, or take the LoRAs away.")
    return f"fal-ai/{name}"


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


def scrub(text: str, key: str = "") -> str:
    """A text without the key and without what signs addresses."""
    text = text.replace(key, "***") if key else text
    return _SECRETS.sub("***", text)


class FalClient:
    """One user of one API.

    Args:
        key: "" sends none, which only a server on the own machine accepts.
        base_url: a server of one's own, as its start prints it (".../fal"); "" for fal.ai.
        uploaded: content hash -> address of files that are there already; is added to.
    """

    def __init__(self, key: str, base_url: str = "", uploaded: dict[str, str] | None = None) -> None:
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
        self.name = base or "fal.ai"
        self._key, self.uploaded = key, {} if uploaded is None else uploaded

    # Files

    async def upload(self, data: bytes, name: str, content_type: str) -> str:
        """The address of a file at the API; sent once for one content. Small pictures become a data URI."""
        if len(data) <= INLINE and content_type.startswith("image/"):
            return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
        digest = f"{self._bases['rest']} {hashlib.sha256(data).hexdigest()}"
        if digest not in self.uploaded:
            try:
                self.uploaded[digest] = await self._send_file(data, name, content_type)
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                raise RemoteError(f"{self.name} cannot be reached: {scrub(str(error), self._key)}.") from None
        return self.uploaded[digest]

    async def _send_file(self, data: bytes, name: str, content_type: str) -> str:
        parts = len(data) > WHOLE
        way = "initiate-multipart" if parts else "initiate"
        url = f"{self._bases['rest']}/storage/upload/{way}?storage_type=fal-cdn-v3"
        async with self._session() as session:
            made = await self._ask(session, "POST", url, json={"file_name": name, "content_type": content_type})
            target, headers = made["upload_url"], {"Content-Type": content_type}
            if not parts:
                await self._put(session, target, data, headers)
                return made["file_url"]
            path, _, query = target.partition("?")
            done = []
            for number, start in enumerate(range(0, len(data), PART), 1):
                answer = await self._put(session, f"{path}/{number}?{query}", data[start : start + PART], headers)
                done.append({"partNumber": number, "etag": answer["etag"]})
            async with session.post(f"{path}/complete?{query}", json={"parts": done}) as reply:
                await self._checked(reply)
            return made["file_url"]

    async def _put(self, session: aiohttp.ClientSession, url: str, data: bytes, headers: Mapping[str, str]) -> Any:
        """To a signed address, without the key."""
        async with session.put(url, data=data, headers=headers) as reply:
            return await self._checked(reply)

    async def download(self, url: str) -> bytes:
        """A finished model; no key is sent along.

        Raises:
            RemoteError: what comes is no GLB.
        """
        stop = threading.Event()
        ctx = RunContext(is_cancelled=stop.is_set)
        try:
            data = await asyncio.to_thread(fetch_bytes, url, limit_bytes=MAX_MODEL, trusted=self._trusted, ctx=ctx)
        finally:
            stop.set()
        if data[:4] != b"glTF":
            raise RemoteError("The API's result is not a GLB file.")
        return data

    # Jobs

    async def submit(self, app: str, arguments: Mapping[str, Any]) -> str:
        """Queue a job, once; its request id.

        Raises:
            RemoteError: refused; or the connection broke, and it is not known whether the job was queued.
        """
        async with self._session() as session:
            try:
                made = await self._ask(session, "POST", f"{self._bases['queue']}/{app}", json=dict(arguments))
            except aiohttp.ClientConnectorError as error:
                raise RemoteError(f"{self.name} cannot be reached: {scrub(str(error), self._key)}.") from None
            except (aiohttp.ClientError, asyncio.TimeoutError):
                raise RemoteError(
                    "The connection broke while the job was submitted. It may run, and be billed: look at your requests "
                    "on the API's pages before you run this again. Nothing was sent a second time."
                ) from None
            return made["request_id"]

    async def wait(self, app: str, request_id: str, on_state: Callable[[State], None]) -> None:
        """Return when the job has ended, in whatever way.

        Raises:
            Unanswered: nobody can tell. RemoteError: there is no such job.
        """

        def ended(status: Any) -> bool:
            on_state(_state(status))
            return status.get("status") == "COMPLETED"

        await self._ask_until(f"{self._job(app, request_id)}/status?logs=1", ended, lambda reply: reply.status >= 500)

    async def result(self, app: str, request_id: str) -> dict[str, Any]:
        """What an ended job made.

        Raises:
            Unanswered: nobody can tell. RemoteError: why it made nothing.
        """

        def gateway(reply: aiohttp.ClientResponse) -> bool:
            return reply.status in (502, 503, 504) and "x-fal-request-id" not in reply.headers  # else it is the job's own end

        return await self._ask_until(self._job(app, request_id), lambda answer: True, gateway)

    async def cancel(self, app: str, request_id: str) -> None:
        """Take a job back. That it has ended already, or that nobody answers, is fine: the caller is leaving."""
        with suppress(aiohttp.ClientError, asyncio.TimeoutError):
            async with self._session() as session, session.put(f"{self._job(app, request_id)}/cancel", headers=self._auth()):
                pass

    def _job(self, app: str, request_id: str) -> str:
        """Built here and not taken from an answer: the key goes to no host that an answer names."""
        if not re.fullmatch(r"[\w-]{8,80}", request_id):
            raise InputError(f'"{request_id[:80]}" is not a request id.')
        return f"{self._bases['queue']}/{app}/requests/{request_id}"

    # Talking

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=120)
        async with aiohttp.ClientSession(timeout=timeout, headers={"User-Agent": "trellis-core"}) as session:
            yield session

    def _auth(self) -> dict[str, str]:
        return {"Authorization": f"Key {self._key}"} if self._key else {}

    async def _ask(self, session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> Any:
        async with session.request(method, url, headers=self._auth(), allow_redirects=False, **more) as reply:
            return await self._checked(reply)

    async def _ask_until(
        self, url: str, enough: Callable[[Any], bool], stumbled: Callable[[aiohttp.ClientResponse], bool]
    ) -> Any:
        """The first answer that is enough; a server that stumbles is asked again for a while."""
        loop = asyncio.get_running_loop()
        heard, pause = loop.time(), POLL_SECONDS
        async with self._session() as session:
            while True:
                try:
                    async with session.get(url, headers=self._auth(), allow_redirects=False) as reply:
                        if reply.status == 429 or stumbled(reply):
                            raise _Stumbled(f"status {reply.status}")
                        answer = await self._checked(reply)
                    if enough(answer):
                        return answer
                    heard, pause = loop.time(), POLL_SECONDS
                except (_Stumbled, aiohttp.ClientError, asyncio.TimeoutError) as error:
                    if loop.time() - heard > PATIENCE:
                        raise Unanswered(
                            f"The API has not answered for {PATIENCE:.0f} seconds ({scrub(str(error), self._key)}). The job "
                            "may go on: run this again, and it is found by its inputs or by its request id."
                        ) from None
                    pause = min(2 * pause, 10.0)
                await asyncio.sleep(pause)

    async def _checked(self, reply: aiohttp.ClientResponse) -> Any:
        try:
            body = await reply.json(content_type=None)
        except (ValueError, UnicodeDecodeError):
            body = None
        if not 200 <= reply.status < 300:
            raise _in_words(reply.status, body, self._key)
        return body


class _Stumbled(Exception):
    """An answer that may be another one soon."""


def _state(status: Mapping[str, Any]) -> State:
    logs = status.get("logs") or []
    lines = [str(entry.get("message", "")) for entry in logs if isinstance(entry, dict)]
    percents = [int(found[1]) for line in lines if (found := _PERCENT.match(line))]
    fraction = min(max(percents), 100) / 100 if percents else None
    return State(str(status.get("status")), status.get("queue_position"), fraction, lines[-1] if lines else "")


def _in_words(status: int, body: Any, key: str) -> RemoteError:
    """An error that a user can act on. Values that were sent are never repeated."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        entries = [entry for entry in detail if isinstance(entry, dict)]
        fields = tuple((str((e.get("loc") or [""])[-1]), scrub(str(e.get("msg", "")), key)) for e in entries)
        return RemoteError("The API refused: " + "; ".join(f"{name}: {text}" for name, text in fields) + ".", fields)
    text = scrub(str(detail), key).rstrip(".") if detail else ""
    said = f" It says: {text}." if text else ""
    words = {
        401: "The API does not know the key: check FAL_KEY, or enter the key again in the settings under TRELLIS.2.",
        403: "The API refuses this account, most often because its balance is used up: top it up at fal.ai/dashboard/billing.",
        404: "The API does not have this: the request id is wrong or too old, or the server lacks the endpoint.",
        413: "The file is too large for the API.",
        429: "The API is asked too much by this key: wait a moment, then run this again.",
        499: "The job was cancelled.",
        504: "The job did not start or end in time: run this again.",
        507: "The server's storage is full.",
    }
    kind = Unanswered if status in (401, 403) else RemoteError  # a key that is refused says nothing of the job
    plain = words.get(status) or ("The API has a problem of its own: run this again later." if status >= 500 else "")
    return kind(f"{plain or f'The API answered {status}.'}{said}")
