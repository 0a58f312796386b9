"""A server of the API that misbehaves as it is told to, and counts what it was asked and what it has accepted.

Every step of a job has a list of faults. Each question takes the first one off the list; when the list is empty, the answer is
as it should be. A list that ends with `FOR_EVER` repeats its last fault.
"""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from trellis_core.fal.endpoints import ONCE

FOR_EVER = "for ever"
PAGE = b"<!DOCTYPE html><html><body>Please log in to the guest network.</body></html>"


def glb(size: int = 4096) -> bytes:
    """A whole GLB file with `size` bytes of data."""
    text = json.dumps({"asset": {"version": "2.0"}, "buffers": [{"byteLength": size}]}).encode()
    text += b" " * (-len(text) % 4)
    binary = bytes(range(256)) * (size // 256 + 1)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", size, 0x004E4942) + binary[:size]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


@dataclass(frozen=True)
class Fault:
    """An answer that is not the API's.

    Attributes:
        cut: close the connection after so many bytes of what would have come. late: never answer. trickle: a byte now and then.
        body, status, headers: what comes instead; without a body the right one comes, with these.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None
    late: bool = False
    trickle: bool = False


def says(status: int, value: Any, **headers: str) -> Fault:
    """An answer in JSON."""
    return Fault(status, json.dumps(value).encode(), tuple((k.replace("_", "-"), v) for k, v in headers.items()))


ODD = {
    "login page": Fault(200, PAGE),
    "null": says(200, None),
    "list": says(200, []),
    "other object": says(200, {"hello": "world"}),
    "nothing": Fault(204, b""),
    "cut text": Fault(cut=20),
    "no answer": Fault(cut=0),
    "server error": Fault(500, b"Internal Server Error"),
    "server error in JSON": says(500, {"detail": "Internal Server Error"}),
    "gateway": Fault(502, PAGE),
    "unavailable": says(503, {"detail": "try again"}),
    "redirect": Fault(302, b"", (("Location", "http://login.example/"),)),
    "bad request": says(400, {"detail": "Bad Request"}),
    "not found": says(404, {"detail": "Not Found"}),
    "not found page": Fault(404, PAGE),
    "proxy wants a password": Fault(407, PAGE),
    "too many": says(429, {"detail": "slow down"}),
    "compressed": Fault(200, b"\x1f\x8b\x08\x00", (("Content-Encoding", "gzip"),)),
    "deep": Fault(200, b"[" * 100_000),
    "no text": Fault(200, b"\xff\xfe\x00"),
}
"""What stands between a client and the API, or the API on a bad day, may answer at any step."""


@dataclass
class Faulty:
    """The server's plan and its memory.

    Attributes:
        faults: by step: initiate, put, submit, status, result, cancel, file.
        knows_marks: take a job once that is submitted twice with the same mark, and say so, as our own service does.
    """

    faults: dict[str, list[Any]] = field(default_factory=dict)
    model: bytes = field(default_factory=glb)
    result: dict[str, Any] = field(default_factory=dict)
    steps_to_go: int = 0
    knows_marks: bool = False
    marks: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    keys: dict[str, set[str | None]] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        step = _step(request)
        self.asked[step] += 1
        self.keys.setdefault(step, set()).add(request.headers.get("Authorization"))
        body = await request.read()
        right = self._right(step, request, body)
        fault = self._next(step)
        if fault is None:
            return right
        if fault.late:
            await asyncio.sleep(3600)
        headers = {**right.headers, **dict(fault.headers)}
        text = fault.body if fault.body is not None else right.body
        status = fault.status if fault.body is not None else right.status
        if fault.cut is not None or fault.trickle:
            return await self._broken(request, status, headers, bytes(text or b""), fault)
        headers.pop("Content-Length", None)
        return web.Response(status=status, body=text, headers=headers)

    def _next(self, step: str) -> Fault | None:
        waiting = self.faults.get(step, [])
        if not waiting:
            return None
        return waiting[0] if waiting[1:] == [FOR_EVER] else waiting.pop(0)

    def _right(self, step: str, request: web.Request, body: bytes) -> web.Response:
        if step == "file":
            return self._file(request)
        if step == "submit":
            mark = request.headers.get(ONCE, str(uuid.uuid4()))
            if not (self.knows_marks and mark in self.marks):
                self.marks[mark] = str(uuid.uuid4())
                self.accepted.append(self.marks[mark])
                self.bodies.append(json.loads(body))
            return _json({"request_id": self.marks[mark], "status": "IN_QUEUE", "queue_position": 0})
        if step == "openapi":
            takes = {"parameters": [{"name": ONCE, "in": "header"}] if self.knows_marks else []}
            return _json({"paths": {f"/queue/{request.query['endpoint_id']}": {"post": takes}}})
        name = request.path.split("/requests/")[-1].split("/")[0]
        if step in ("status", "result", "cancel") and name not in self.accepted:
            return _json({"detail": "Request not found"}, 404)
        if step == "cancel":
            self.cancelled.append(name)
            return _json({"status": "CANCELLATION_REQUESTED"}, 202)
        if step == "status":
            self.steps_to_go -= 1
            done = self.steps_to_go < 0
            return _json({"status": "COMPLETED" if done else "IN_PROGRESS", "logs": []})
        made = {"url": f"{self.url}/files/{name}.glb", "file_size": len(self.model)}
        answers = {
            "initiate": {"upload_url": f"{self.url}/put/x?signature=s", "file_url": f"{self.url}/in/{self.asked['initiate']}"},
            "result": {"model_glb": made, **self.result},
        }
        return _json(answers.get(step, {}))

    def _file(self, request: web.Request) -> web.Response:
        wanted = request.http_range.start or 0
        self.ranges.append(request.headers.get("Range", ""))
        total = len(self.model)
        if wanted >= total:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
        headers = {"Content-Range": f"bytes {wanted}-{total - 1}/{total}"} if wanted else {}
        return web.Response(status=206 if wanted else 200, body=self.model[wanted:], headers=headers)

    async def _broken(
        self, request: web.Request, status: int, headers: dict[str, str], text: bytes, fault: Fault
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(text))})
        if fault.cut != 0:
            await response.prepare(request)
            for at in range(len(text) if fault.trickle else 0):
                await response.write(text[at : at + 1])
                await asyncio.sleep(0.05)
            await response.write(text[: fault.cut])
        if request.transport is not None:
            request.transport.close()
        return response


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), content_type="application/json")


def _step(request: web.Request) -> str:
    last = request.path.rsplit("/", 1)[-1]
    if request.path.startswith("/files/"):
        return "file"
    if last == "openapi.json":
        return "openapi"
    if request.method == "PUT":
        return "cancel" if last == "cancel" else "put"
    if request.method == "POST":
        return "initiate" if "/storage/upload/" in request.path else "submit"
    return "status" if last == "status" else "result"


@contextmanager
def served(handle: Callable[[web.Request], Any]) -> Iterator[str]:
    """The address of a handler that answers everything, in a thread of its own."""
    up, found = threading.Event(), {}

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.update(port=runner.addresses[0][1], stop=asyncio.Event(), loop=asyncio.get_running_loop())
        up.set()
        await found["stop"].wait()
        await site.stop()  # handlers that never answer are not waited for

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    up.wait()
    try:
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()


@contextmanager
def faulty(**plan: Any) -> Iterator[Faulty]:
    """A misbehaving server; `plan` are fields of `Faulty`."""
    server = Faulty(**plan)
    with served(server.handle) as url:
        server.url = url
        yield server
