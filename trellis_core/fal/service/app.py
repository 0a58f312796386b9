"""The queue protocol of the hosted endpoints, as handlers of aiohttp that any of its servers can mount (spec E 1).

Below one address lie run/ (waits for the result), queue/ (does not), rest/ (uploads are announced), cdn/ (files) and
proxy (one address for browsers), as on the hosted service's own five hosts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from ...errors import InputError
from ...fetch import FetchError, check_url
from ..endpoints import SERVED
from ..errors import FalError
from .inputs import Limits, Reader
from .jobs import Job, JobQueue, Runner
from .openapi import document
from .routes import Call, Routes, answer, failure
from .signing import Keys, Signer, WebhookKey
from .store import FileStore
from .uploads import Uploads
from .webhooks import PAUSES, Webhooks

MAX_BODY = 40 << 20
HEARTBEAT = 10.0
"""Seconds of silence after which a status stream says the same again, to learn whether somebody listens."""
SWEEP = 60.0

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HOSTED = {"queue.fal.run": "/queue", "fal.run": "/run", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest"}
_HOSTED |= {"v3.fal.media": "/cdn"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceConfig:
    """How a service is set up.

    Attributes:
        data: folder for jobs, files and the service's own secrets.
        keys: keys that clients may have; none only on a machine that nobody else reaches.
        public_url: the address that clients see, up to where run/ and queue/ begin; None takes it from each request.
        prefix: path that the service is mounted at.
        trusted: hosts in private networks that requests may name, as "name" or "name:port".
        quota: bytes of all uploads, inputs and results. keep: seconds that results and uploads are kept.
        longest: jobs that may wait.
    """

    data: Path
    keys: tuple[str, ...] = ()
    public_url: str | None = None
    prefix: str = "/fal"
    trusted: tuple[str, ...] = ()
    quota: int = 20 << 30
    keep: float = 24 * 3600.0
    longest: int = 2000
    limits: Limits = field(default_factory=Limits)
    webhook_pauses: Sequence[float] = PAUSES


class Service:
    """One queue with its files. Give `runner` once, `open` it in the event loop that serves it, `close` it at the end."""

    def __init__(self, config: ServiceConfig) -> None:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = config.data / "scratch"
        scratch.mkdir(exist_ok=True)
        for left in scratch.iterdir():
            left.unlink()
        self.config = config
        self.store = FileStore(config.data / "files", config.quota, config.keep)
        self.reader = Reader(self.store, scratch, config.limits, config.trusted)
        self._keys = Keys(config.keys)
        self._secret = config.data / "secret"
        signer = Signer(self._secret)
        try:
            self._webhook_key: WebhookKey | None = WebhookKey(self._secret)
        except InputError:
            self._webhook_key = None
        self._routes = self._make_routes(Uploads(self.store, signer))
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self, runner: Runner) -> None:
        """Begin to work off jobs, those of an earlier run first."""
        config = self.config
        webhooks = self._webhook_key and Webhooks(
            self._webhook_key, _result, lambda job: self.queue.save(job), config.trusted, config.webhook_pauses
        )
        self.queue = JobQueue(
            config.data / "jobs", runner, self.store, keep=config.keep, longest=config.longest,
            on_end=webhooks.deliver if webhooks else None,
        )  # fmt: skip
        await self.queue.open()
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Stop; what is left is on disk."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.queue.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request below the service's prefix."""
        path = request.path[len(self.config.prefix) :] if request.path.startswith(self.config.prefix) else request.path
        origin = self.config.public_url or f"{request.scheme}://{request.host}{self.config.prefix}"
        call = Call(request, path, dict(request.query), origin.rstrip("/"))
        try:
            self._guard(call)
            response = answer({}) if request.method == "OPTIONS" else await self._dispatch(call)
        except FalError as error:
            response = failure(error)
        except ConnectionError:
            response = failure(FalError(499, "The client went away.", "client_disconnected"))
        except Exception as error:
            _log.error("%s %s failed.", request.method, path, exc_info=error)
            response = failure(FalError(500, "Internal server error", "internal_error"))
        if self._keys.needed and not response.prepared:
            response.headers.update(_CORS)
        return response

    def _guard(self, call: Call) -> None:
        """Where no key is needed, only programs of this machine may come in, and no web page from elsewhere."""
        request = call.request
        if self._keys.needed:
            return
        host = urlsplit(f"//{request.host}").hostname
        source = urlsplit(request.headers.get("Origin", "")).netloc
        if host not in LOOPBACK or (source and source != request.host):
            raise FalError(403, "Without a key this server answers only to its own machine.")

    async def _dispatch(self, call: Call) -> web.StreamResponse:
        handler, public, call.parts = self._routes.find(call.request.method, call.path)
        if not public:
            owner = self._keys.owner(call.request.headers.get("Authorization", ""))
            if owner is None:
                raise FalError(401, "The key is missing, or it is not one of this server's keys.")
            call.owner = owner
        return await handler(call)

    def _make_routes(self, uploads: Uploads) -> Routes:
        routes = Routes()
        one = "/queue/{owner}/{alias}/requests/{id}"
        routes.add("GET", one + "/status", self.status)
        routes.add("GET", one + "/status/stream", self.status_stream)
        routes.add("GET", one, self.result)
        routes.add("GET", one + "/response", self.result)
        routes.add("PUT", one + "/cancel", self.cancel)
        routes.add("POST", "/queue/{app*}", self.submit)
        routes.add("POST", "/run/{app*}", self.run)
        routes.add("GET", "/openapi.json", self.openapi, public=True)
        routes.add("GET", "/rest/.well-known/jwks.json", self.jwks, public=True)
        uploads.add_to(routes)
        routes.add("GET POST PUT HEAD", "/proxy", self.proxy, public=True)
        return routes

    # Handlers

    async def submit(self, call: Call) -> web.Response:
        """A job that begins at once is answered as one that waits with nobody before it."""
        job = await self._submitted(call)
        place = self.queue.position(job) if job.status == "IN_QUEUE" else 0
        return answer(_named(job, call) | {"status": "IN_QUEUE", "queue_position": place}, headers=_id(job))

    async def run(self, call: Call) -> web.StreamResponse:
        """Submit and wait; who goes away takes the job back."""
        job = await self._submitted(call)
        ended = asyncio.ensure_future(self.queue.ended(job))
        try:
            while not (await asyncio.wait([ended], timeout=1.0))[0]:
                transport = call.request.transport
                if transport is None or transport.is_closing():
                    raise ConnectionResetError("the client went away")
        except BaseException:
            ended.cancel()
            self.queue.cancel(job)
            raise
        return self._ended(job, call)

    async def status(self, call: Call) -> web.Response:
        job = self._job(call)
        return answer(self._state(job, call, logs=_wants_logs(call)), headers=_id(job))

    async def status_stream(self, call: Call) -> web.StreamResponse:
        """Every change of the status, with the log lines that are new."""
        job = self._job(call)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no", **_id(job)}
        if self._keys.needed:
            headers.update(_CORS)
        response = web.StreamResponse(headers=headers)
        await response.prepare(call.request)
        told = 0
        while True:
            changed, status, known = job.changed, job.status, len(job.logs)
            state = self._state(job, call, logs=_wants_logs(call), since=told)
            told = known
            await response.write(f"data: {json.dumps(state)}\n\n".encode())
            if status == "COMPLETED":
                break
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                pass
        await response.write_eof()
        return response

    async def result(self, call: Call) -> web.Response:
        job = self._job(call)
        if job.status != "COMPLETED":
            raise FalError(400, "Request is still in progress")
        return self._ended(job, call)

    async def cancel(self, call: Call) -> web.Response:
        try:
            job = self._job(call)
        except FalError:
            return answer({"status": "NOT_FOUND", "detail": "The request was not found.", "success": False}, 404)
        if self.queue.cancel(job):
            return answer({"status": "CANCELLATION_REQUESTED", "success": True}, 202, _id(job))
        return answer({"status": "ALREADY_COMPLETED", "detail": "The request has ended.", "success": False}, 400, _id(job))

    async def openapi(self, call: Call) -> web.Response:
        app = call.query.get("endpoint_id", "")
        return answer(document(_known(app), call.origin, self._keys.needed))

    async def jwks(self, call: Call) -> web.Response:
        return answer(self._webhook_key.jwks() if self._webhook_key else {"keys": []})

    async def proxy(self, call: Call) -> web.StreamResponse:
        """One address for all: where the call really goes is said in a header."""
        target = urlsplit(call.request.headers.get("x-fal-target-url", ""))
        own = urlsplit(call.origin)
        if target.netloc == own.netloc and target.path.startswith(own.path + "/"):
            path = target.path[len(own.path) :]
        elif target.scheme == "https" and target.netloc in _HOSTED:
            path = _HOSTED[target.netloc] + target.path
        else:
            raise FalError(400, "Invalid request: x-fal-target-url must be an address of the API.", "bad_request")
        if path == "/proxy":
            raise FalError(400, "Invalid request: the proxy does not call itself.", "bad_request")
        path = path if path == "/" else path.rstrip("/")
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        return await self._dispatch(Call(call.request, path, query, call.origin))

    # What they share

    async def _submitted(self, call: Call) -> Job:
        app = _known(call.parts["app"])
        webhook = call.query.get("fal_webhook", "")
        if webhook:
            self._check_webhook(webhook)
        low = call.request.headers.get("X-Fal-Queue-Priority", "normal").lower() == "low"
        within, lifetime = call.seconds("X-Fal-Request-Timeout"), call.lifetime()
        body = await call.body(MAX_BODY)
        return self.queue.submit(
            app, call.owner, call.origin, body, webhook=webhook, low=low, start_within=within, lifetime=lifetime
        )

    def _check_webhook(self, webhook: str) -> None:
        if self._webhook_key is None:
            raise FalError(400, "This server cannot sign webhooks: pip install cryptography", "bad_request")
        try:
            check_url(webhook)
        except FetchError as error:
            raise FalError(400, f"fal_webhook: {error}", "bad_request") from None

    def _job(self, call: Call) -> Job:
        return self.queue.get(call.parts["id"], call.owner)

    def _state(self, job: Job, call: Call, logs: bool = False, since: int = 0) -> dict[str, Any]:
        state = _named(job, call) | {"status": job.status}
        if job.status == "IN_QUEUE":
            return state | {"queue_position": self.queue.position(job)}
        state["logs"] = job.logs[since:] if logs else None
        if job.status == "COMPLETED":
            state["metrics"] = {"inference_time": job.ended - job.started if job.ended and job.started else None}
            if job.status_code != 200:
                detail = job.answer["detail"]
                state["error"] = detail if isinstance(detail, str) else f"Invalid status code: {job.status_code}"
                state["error_type"] = job.error_type or "bad_request"
        return state

    def _ended(self, job: Job, call: Call) -> web.Response:
        return answer(_result(job, call.origin), job.status_code, {**job.headers, **_id(job)})

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.queue.sweep()
            self.store.sweep()


_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Expose-Headers": "*",
}


def _known(app: str) -> str:
    if app not in SERVED:
        raise FalError(404, f"Application '{app[:100]}' not found. This server has: {', '.join(SERVED)}.")
    return app


def _wants_logs(call: Call) -> bool:
    return call.query.get("logs", "").lower() in ("1", "true")


def _id(job: Job) -> dict[str, str]:
    return {"x-fal-request-id": job.id}


def _named(job: Job, call: Call) -> dict[str, Any]:
    """What every answer about a job says: its id and its addresses."""
    base = f"{call.origin}/queue/{job.app}/requests/{job.id}"
    return {"request_id": job.id, "response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


def _result(job: Job, origin: str = "") -> Any:
    """A job's answer with whole addresses."""
    made = job.answer.get("model_glb") if job.status_code == 200 else None
    if made is None:
        return job.answer
    return {**job.answer, "model_glb": {**made, "url": (origin or job.origin) + made["url"]}}


def mount(service: Service, app: web.Application) -> None:
    """Serve it from an application of aiohttp."""
    app.router.add_route("*", service.config.prefix + "/{tail:.*}", service.handle)
