"""The queue protocol of the hosted endpoints, as handlers of aiohttp that any of its servers can mount (docs/method/fal.md).

Below one address lie run/ (waits for the result), queue/ (does not), rest/ (uploads are announced), cdn/ (files) and
proxy (one address for browsers), as on the hosted service's own five hosts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from ...errors import InputError
from ...fetch import FetchError, check_url
from ..body import split, too_long
from ..endpoints import SERVED
from ..errors import FalError
from .config import ServiceConfig
from .http import gate
from .http.routes import Call, Events, Routes, answer, failure
from .http.spool import Spool, Spooled
from .inputs import Reader
from .jobs import Job, JobQueue
from .openapi import document
from .pools import Pools, waited
from .signing import Keys, Signer, WebhookKey
from .state.accounts import Accounts
from .state.database import Database
from .state.files import FileStore
from .state.folder import DataFolder
from .state.legacy import take_over
from .state.parts import Parts
from .state.records import Records
from .uploads import Uploads
from .webhooks import Webhooks
from .work import Runner

HEARTBEAT = 10.0
"""Seconds of silence after which a status stream says the same again, to learn whether somebody listens."""
SWEEP = 60.0

_HOSTED = {"queue.fal.run": "/queue", "fal.run": "/run", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest"}
_HOSTED |= {"v3.fal.media": "/cdn"}
_ROOMS = ("/run/", "/queue/", "/rest/", "/cdn/")
"""What the proxy leads to."""

_log = logging.getLogger(__name__)


class Service:
    """One queue with its files. Give `runner` once, `open` it in the event loop that serves it, `close` it at the end.

    Raises:
        InputError: its folder is another service's, or cannot be used; nothing in it was touched then.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._folder = folder = DataFolder(config.data)
        try:
            secret = folder.secret()
            self._database = Database(folder, set_aside_with=("content", "inputs"))
            take_over(folder, self._database)
            self.accounts, limits = Accounts(config.quota, config.bytes_per_key), config.limits
            self.store = FileStore(folder, self._database, self.accounts, limits, config.keep, config.oldest_give_way)
        except BaseException:
            folder.close()
            raise
        self.pools = Pools(config.slots)
        self._records = Records(folder, self._database)
        self._parts = Parts(self.store, folder.room("spool"), limits)
        self._spool = Spool(folder.room("spool"), self.accounts, self.pools.storage, limits)
        self.reader = Reader(self.store, folder.room("scratch"), limits, config.trusted)
        self._keys = Keys(config.keys)
        try:
            self._webhook_key: WebhookKey | None = WebhookKey(secret)
        except InputError:
            self._webhook_key = None
        uploads = Uploads(self.store, self._parts, self._spool, Signer(secret), self.pools, limits)
        self._routes = self._make_routes(uploads)
        self._waits: Counter[str] = Counter()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self, runner: Runner) -> None:
        """Begin to work off jobs, those of an earlier run first."""
        config = self.config
        webhooks = self._webhook_key and Webhooks(
            self._webhook_key, self.pools.webhooks, _result, lambda job: self.queue.save_tries(job), config
        )
        self.queue = JobQueue(
            config, self._database, self._records, self.accounts, runner, on_end=webhooks.deliver if webhooks else None
        )
        await self.queue.open(self._records.load())
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Begin no more work, and let calls that wait come to an end."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await self.queue.close()

    async def close(self) -> None:
        """End; what is left is on disk."""
        await self.stop()
        self.pools.close()
        self._database.close()
        self._folder.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request below the service's prefix."""
        response: web.StreamResponse
        try:
            if self._sweeper is None:
                raise FalError(503, "The server is starting.", "runner_scheduling_failure")
            gate.check_encoding(request)
            call = self._call(request)
            response = answer({}) if request.method == "OPTIONS" else await self._dispatch(call)
        except FalError as error:
            response = failure(error)
        except ConnectionError:
            response = failure(FalError(499, "The client went away.", "client_disconnected"))
        except Exception as error:
            _log.error("%s %.100s failed.", request.method, request.raw_path, exc_info=error)
            response = failure(FalError(500, "Internal server error", "internal_error"))
        if self._keys.needed and not response.prepared:
            response.headers.update(_CORS)
        if "Content-Encoding" in request.headers:
            await _end_unread(request, response)
        return response

    def _call(self, request: web.BaseRequest) -> Call:
        """What a request asks for, if it may come in at all."""
        prefix, public = self.config.prefix, self.config.public_url
        host = gate.own_host(request)
        if not self._keys.needed:
            gate.check_local(host)
            gate.check_page(request, host, self.config.origins)
        try:
            path, query = request.path, dict(request.query)
        except ValueError:
            raise FalError(400, "The address cannot be parsed.", "bad_request") from None
        path = path[len(prefix) :] if path.startswith(prefix + "/") else "/"
        origin = public or f"{request.scheme}://{host}{prefix}"
        return Call(request, path, query, origin.rstrip("/"), self.config.limits)

    async def _dispatch(self, call: Call) -> web.StreamResponse:
        route, call.parts = self._routes.find(call.request.method, call.path)
        if not route.public:
            owner = self._keys.owner(call.request.headers.get("Authorization", ""))
            if owner is None:
                raise FalError(401, "The key is missing, or it is not one of this server's keys.")
            call.owner = owner
        if route.body == "json" and not self._keys.needed:  # no page elsewhere knows a key
            gate.check_type(call.request)
        return await route.handler(call)

    def _make_routes(self, uploads: Uploads) -> Routes:
        routes = Routes()
        one = "/queue/{owner}/{alias}/requests/{id}"
        routes.add("GET", one + "/status", self.status)
        routes.add("GET", one + "/status/stream", self.status_stream)
        routes.add("GET", one, self.result)
        routes.add("GET", one + "/response", self.result)
        routes.add("PUT", one + "/cancel", self.cancel)
        routes.add("DELETE", one, self.delete)
        routes.add("POST", "/queue/{app*}", self.submit)
        routes.add("POST", "/run/{app*}", self.run)
        routes.add("GET", "/openapi.json", self.openapi, public=True)
        routes.add("GET", "/rest/.well-known/jwks.json", self.jwks, public=True)
        uploads.add_to(routes)
        routes.add("GET POST PUT HEAD DELETE", "/proxy", self.proxy, public=True, body="file")
        return routes

    # Handlers

    async def submit(self, call: Call) -> web.Response:
        """A job that begins at once, or that is known by its mark, is answered as one that waits with nobody before it."""
        job = self.queue.find(call.owner, once := call.once()) or await self._submitted(call, once)
        place = self.queue.position(job) if job.status == "IN_QUEUE" else 0
        return answer(_named(job, call) | {"status": "IN_QUEUE", "queue_position": place}, headers=_id(job))

    async def run(self, call: Call) -> web.StreamResponse:
        """Submit and wait; who goes away takes the job back."""
        with self._waiting(call):
            job = await self._submitted(call)
            ended = asyncio.ensure_future(self.queue.ended(job))
            try:
                while not (await asyncio.wait([ended], timeout=1.0))[0]:
                    transport = call.request.transport
                    if transport is None or transport.is_closing():
                        raise ConnectionResetError("the client went away")
            except BaseException:
                ended.cancel()
                if not self.queue.closing:
                    await self.queue.cancel(job)
                raise
            if job.status != "COMPLETED":
                why = f"The server stops. Ask for the request {job.id} when it is back."
                raise FalError(500, why, "runner_server_error", _id(job))
            return self._ended(job, call)

    async def status(self, call: Call) -> web.Response:
        job = self._job(call)
        return answer(self._state(job, call, logs=_wants_logs(call)), headers=_id(job))

    async def status_stream(self, call: Call) -> web.StreamResponse:
        """Every change of the status, with the log lines that are new."""
        job = self._job(call)
        with self._waiting(call):
            events = Events(call, _id(job) | (_CORS if self._keys.needed else {}))
            await events.open()
            told = 0
            while not self.queue.closing:
                changed, status, known = job.changed, job.status, len(job.logs)
                await events.send(self._state(job, call, logs=_wants_logs(call), since=told))
                told = known
                if status == "COMPLETED":
                    break
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT)
                except asyncio.TimeoutError:
                    pass
            await events.response.write_eof()
            return events.response

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
        if await self.queue.cancel(job):
            return answer({"status": "CANCELLATION_REQUESTED", "success": True}, 202, _id(job))
        return answer({"status": "ALREADY_COMPLETED", "detail": "The request has ended.", "success": False}, 400, _id(job))

    async def delete(self, call: Call) -> web.Response:
        """Forget a request that has ended, and what it made."""
        job = self._job(call)
        if job.status != "COMPLETED":
            raise FalError(400, "The request has not ended: cancel it first.", "bad_request")
        for gone in [self.queue.forget(job), *map(self.store.delete, self.store.made_by(job.id))]:
            await waited(gone)
        return web.Response(status=204)

    async def openapi(self, call: Call) -> web.Response:
        app = call.query.get("endpoint_id", "")
        return answer(document(_known(app), call.origin, self._keys.needed))

    async def jwks(self, call: Call) -> web.Response:
        return answer(self._webhook_key.jwks() if self._webhook_key else {"keys": []})

    async def proxy(self, call: Call) -> web.StreamResponse:
        """One address for all: where the call really goes is said in a header."""
        if call.proxied:
            raise FalError(400, "Invalid request: the proxy does not call itself.", "bad_request")
        name = "x-fal-target-url"
        target, path, query = gate.parse_target(call.request.headers.get(name, ""), f"Invalid request: {name}")
        own = gate.parse_address(call.origin, "The server's own address")
        if target.netloc == own.netloc and path.startswith(own.path + "/"):
            path = path[len(own.path) :]
        elif target.scheme == "https" and target.netloc in _HOSTED:
            path = _HOSTED[target.netloc] + path
        if not path.startswith(_ROOMS):
            raise FalError(400, f"Invalid request: {name} must be an address of the API.", "bad_request")
        return await self._dispatch(
            Call(call.request, path.rstrip("/"), query, call.origin, call.limits, proxied=True)
        )  # fmt: skip

    # What they share

    async def _submitted(self, call: Call, once: str = "") -> Job:
        app = _known(call.parts["app"])
        webhook = call.query.get("fal_webhook", "")
        if webhook:
            self._check_webhook(webhook)
        low = call.request.headers.get("X-Fal-Queue-Priority", "normal").lower() == "low"
        within, lifetime = call.seconds("X-Fal-Request-Timeout"), call.lifetime()
        self.queue.check_room(call.owner)
        limit = self.config.limits.body
        async with self._spool.take(call.owner, call.chunks(limit), limit) as body:
            await self._check_kind(body)
            return await self.queue.submit(
                app, call.owner, call.origin, body,
                once=once, webhook=webhook, low=low, start_within=within, lifetime=lifetime,
            )  # fmt: skip

    async def _check_kind(self, body: Spooled) -> None:
        """Raises FalError: 413, what is not data URIs is too long."""
        most, path = self.config.limits.json, body.path

        def check(place: Path) -> None:
            if len(split(place.read_bytes()).text) > most:
                raise too_long(most)

        if path is not None and body.size > most:
            await self.pools.parsing.run("", check, path)

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
            state["metrics"] = {"inference_time": job.seconds}
            if job.status_code != 200:
                detail = job.answer["detail"]
                state["error"] = detail if isinstance(detail, str) else f"Invalid status code: {job.status_code}"
                state["error_type"] = job.error_type or "bad_request"
        return state

    def _ended(self, job: Job, call: Call) -> web.Response:
        return answer(_result(job, call.origin), job.status_code, {**job.headers, **_id(job)})

    @contextmanager
    def _waiting(self, call: Call) -> Iterator[None]:
        """Around a call that may take as long as the job. Raises FalError: 429, the key has too many of them."""
        if self._waits[call.owner] >= self.config.limits.waits_per_key:
            raise FalError(429, "Too many calls of your key wait for their end: ask for the status instead.")
        self._waits[call.owner] += 1
        try:
            yield
        finally:
            self._waits[call.owner] -= 1

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.queue.sweep()
            self.store.sweep()
            self._parts.sweep()


_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
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


async def _end_unread(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer and hang up. A host's own server would unpack the body that was refused, to throw it away."""
    await response.prepare(request)
    await response.write_eof()
    request.protocol.force_close()
