"""A service in a thread of the test's process, with work that costs nothing."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trellis_core.context import RunContext
from trellis_core.fal.service.app import Service
from trellis_core.fal.service.config import ServiceConfig
from trellis_core.fal.service.inputs import Inputs
from trellis_core.fal.service.local import LocalRunner, Made
from trellis_core.fal.service.serve import running

KEY = "a-key-of-the-tests:with-two-halves"
OTHER_KEY = "another-key-of-the-tests"
GLB = struct.pack("<4sIIII", b"glTF", 2, 64, 44, 0x4E4F534A) + b'{"asset":{"version":"2.0"}}'.ljust(44)
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAYAAADED76LAAAAIUlEQVR42mNkYGBgOCEn958BB2DCJ8nAwMDAxEAADAkFANqCBBbq9AuHAAAAAElFTkSuQmCC"
)
PIXELS = "data:image/png;base64," + PICTURE


class Gate:
    """Dummy work: makes the same small file at once, or when `open` is called; notes what it was given."""

    def __init__(self, closed: bool = False) -> None:
        self._go = threading.Event()
        self.began = threading.Semaphore(0)
        self.seen: list[Inputs] = []
        if not closed:
            self._go.set()

    def open(self) -> None:
        self._go.set()

    def __call__(self, inputs: Inputs, ctx: RunContext) -> Made:
        self.seen.append(inputs)
        self.began.release()
        ctx.report(0.0, "structure")
        while not self._go.wait(0.005):
            ctx.check()
        ctx.report(1.0, "asset")
        return Made(GLB, 7 if inputs.settings.seed is None else inputs.settings.seed)


def held_maker(folder: str) -> Any:
    """For replicas in processes of their own: notes its process in `folder`, makes models with mini when "go" is there."""
    from trellis_core.fal.deploy_ray import replica_maker

    make = replica_maker("mini", "cpu")

    def held(inputs: Inputs, ctx: RunContext) -> Made:
        (Path(folder) / str(os.getpid())).touch()
        while not (Path(folder) / "go").exists():
            ctx.report(0.0, "condition")
            time.sleep(0.02)
        return make(inputs, ctx)

    return held


@contextmanager
def serving(folder: Path, make: Any = None, slots: int = 1, **options: Any) -> Iterator[tuple[str, Service]]:
    """The address and the service; `options` are of ServiceConfig."""
    options.setdefault("keys", (KEY, OTHER_KEY))
    found: dict[str, Any] = {}
    up, loop = threading.Event(), asyncio.new_event_loop()

    async def main() -> None:
        service = Service(ServiceConfig(folder, slots=slots, **options))
        runner = LocalRunner(make or Gate(), service.reader, service.store, service.pools)
        async with running(service, runner, "127.0.0.1", 0) as url:
            found.update(url=url, service=service, stop=asyncio.Event())
            up.set()
            await found["stop"].wait()

    def work() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            found["error"] = error
            up.set()

    thread = threading.Thread(target=work)
    thread.start()
    up.wait()
    if "error" in found:
        raise found["error"]
    try:
        yield found["url"], found["service"]
    finally:
        loop.call_soon_threadsafe(found["stop"].set)
        thread.join()
        loop.close()
