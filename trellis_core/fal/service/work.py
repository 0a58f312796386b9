"""Between the queue and who does the work: what a job is to a runner, and the runner's line back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ...context import RunContext

LOG_STEP = 0.05
"""Progress is logged when it has grown by this much, or names another step."""


@dataclass(frozen=True)
class Work:
    """What a runner gets.

    Attributes:
        body: reads the input as it was sent; blocks.
        origin: the service's own address.
        lifetime: seconds that the result is to be kept, None for as long as it may.
        owner: fingerprint of the key that it counts for.
    """

    request_id: str
    app: str
    body: Callable[[], bytes]
    origin: str
    lifetime: float | None = None
    owner: str = ""


class Line(Protocol):
    """What a queue lets one of its jobs do."""

    cancel: threading.Event

    def log(self, message: str, level: str = "INFO") -> None: ...
    def start(self) -> None: ...
    def lending(self) -> AbstractContextManager[None]: ...
    async def take_turn(self) -> None: ...


class Watch:
    """A runner's line back to the queue. All but `aside` may be used from any thread."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._last = -1.0, ""
        self._telling = threading.Lock()
        self.ctx = RunContext(on_progress=self.progress, is_cancelled=line.cancel.is_set)

    def started(self) -> None:
        """The work begins now; only runners that keep a line of their own need to say so."""
        self._loop.call_soon_threadsafe(self._line.start)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Inside, the job waits for somebody else: if that takes long, its turn goes to others until the block ends."""
        with self._line.lending():
            yield
        await self._line.take_turn()

    def progress(self, fraction: float, step: str) -> None:
        """Logged as "42 % shape", not more often than somebody would read."""
        with self._telling:
            done, name = self._last
            if step == name and fraction < done + LOG_STEP and not fraction >= 1.0 > done:
                return
            self._last = fraction, step
        self.log(f"{100 * fraction:.0f} % {step}".rstrip())

    def log(self, message: str, level: str = "INFO") -> None:
        """One line that the client can read."""
        try:
            self._loop.call_soon_threadsafe(self._line.log, message, level)
        except RuntimeError:
            pass  # the service has ended


class Runner(Protocol):
    """Does the work. `slots` is how many jobs it takes at a time; None for one that keeps a line of its own."""

    slots: int | None

    async def run(self, work: Work, watch: Watch) -> dict[str, Any]:
        """The job's answer. Raises FalError, or any error of this library; asyncio cancels it to drop a waiting job."""
        ...
