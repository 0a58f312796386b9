"""Jobs: one line of them, a runner that works it off, and a record of each on disk, so that none is lost in silence.

States are those of the protocol: IN_QUEUE, IN_PROGRESS, COMPLETED, and an error is a completion too (spec E 1.3). After a
restart, jobs that were waiting wait again, in their order; those that ran are completed with an error that says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import uuid
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ...context import RunContext
from ...errors import Cancelled, EmptyResultError, InputError, TrellisError
from ...fetch import FetchError
from ..errors import FalError, cancelled, field_error, not_found
from .store import FileStore, disk_errors

MAX_LOGS = 500
"""Lines that a job may log."""
LOG_STEP = 0.05
"""Progress is logged when it has grown by this much, or names another step."""

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A request and what became of it. Everything up to `webhook_tries` is kept on disk; the input lies beside it.

    Attributes:
        owner: fingerprint of the key it came with.
        origin: address of the service as the client sees it.
        line: place in the line: priority, then number of arrival.
        status_code, answer: how it ended: HTTP status and JSON body. Addresses of own files begin with "/".
        lifetime: seconds that the result is kept, None for the store's own.
        start_by: Unix time at which it is given up if it still waits.
    """

    id: str
    app: str
    owner: str
    origin: str
    line: tuple[int, int]
    created: float
    input_size: int
    webhook: str = ""
    lifetime: float | None = None
    start_by: float | None = None
    status: str = "IN_QUEUE"
    started: float | None = None
    ended: float | None = None
    logs: list[dict[str, str]] = field(default_factory=list)
    status_code: int = 0
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    error_type: str = ""
    webhook_tries: int = 0

    def __post_init__(self) -> None:
        self.line = (self.line[0], self.line[1])
        self.cancel = threading.Event()
        self.changed = asyncio.Event()

    def log(self, message: str, level: str = "INFO") -> None:
        """One line that the client can read."""
        if len(self.logs) < MAX_LOGS:
            now = datetime.now(timezone.utc).isoformat()
            self.logs.append({"message": message, "timestamp": now, "level": level, "source": "USER"})
        self.tell()

    def tell(self) -> None:
        """Wake up everybody who waits for news of this job."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()


@dataclass(frozen=True)
class Work:
    """What a runner gets: the job's endpoint, its input as it was sent, the service's own address, and how many seconds
    the result is to be kept (None: as long as it may)."""

    request_id: str
    app: str
    body: Path
    origin: str
    lifetime: float | None = None


class Watch:
    """A runner's line back to the queue. All of it may be used from any thread."""

    def __init__(self, queue: JobQueue, job: Job) -> None:
        self._queue, self._job = queue, job
        self._loop = asyncio.get_running_loop()
        self._last = -1.0, ""
        self.ctx = RunContext(on_progress=self.progress, is_cancelled=job.cancel.is_set)

    def started(self) -> None:
        """The work begins now; only runners that keep a line of their own need to say so."""
        self._loop.call_soon_threadsafe(self._queue._start, self._job)

    def progress(self, fraction: float, step: str) -> None:
        """Logged as "42 % shape", not more often than somebody would read."""
        done, name = self._last
        if step != name or fraction >= done + LOG_STEP or (fraction >= 1.0 > done):
            self._last = fraction, step
            self.log(f"{100 * fraction:.0f} % {step}".rstrip())

    def log(self, message: str, level: str = "INFO") -> None:
        """One line that the client can read."""
        self._loop.call_soon_threadsafe(self._job.log, message, level)


class Runner(Protocol):
    """Does the work. `slots` is how many jobs it takes at a time; None for one that keeps a line of its own."""

    slots: int | None

    async def run(self, work: Work, watch: Watch) -> dict[str, Any]:
        """The job's answer. Raises FalError, or any error of this library; asyncio cancels it to drop a waiting job."""
        ...


class JobQueue:
    """All jobs of a service.

    Args:
        folder: is made if it is not there; belongs to this queue alone.
        store: counts the inputs against its quota.
        keep: seconds that a record is kept after its end.
        longest: jobs that may wait at a time.
        on_end: called with every job that has ended and has a webhook.
    """

    def __init__(
        self, folder: Path, runner: Runner, store: FileStore, *, keep: float, longest: int,
        on_end: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._runner, self._store = folder, runner, store
        self._keep, self._longest, self._on_end = keep, longest, on_end
        self._jobs: dict[str, Job] = {}
        self._line: list[tuple[tuple[int, int], str]] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._arrivals = 0
        self._closing = False

    async def open(self) -> None:
        """Read the records of earlier runs, and go on where they ended."""
        for left in [*self._folder.glob("*.draft"), *self._folder.glob("*.input")]:  # half written when a run ended
            if left.suffix == ".draft" or not left.with_suffix(".job").exists():
                left.unlink()
        for path in sorted(self._folder.glob("*.job")):
            try:
                job = Job(**json.loads(path.read_text()))
            except (ValueError, TypeError):
                _log.error("The record %s is damaged and left alone.", path)
                continue
            self._jobs[job.id] = job
            self._arrivals = max(self._arrivals, job.line[1] + 1)
            self._store.used += job.input_size if job.status != "COMPLETED" else 0
        for job in sorted(self._jobs.values(), key=lambda job: job.line):
            if job.status == "IN_QUEUE" and job.start_by is not None and job.start_by <= time.time():
                self._expire(job)
            elif job.status == "IN_QUEUE":
                self._limit(job)
                self._enqueue(job)
            elif job.status == "IN_PROGRESS":
                why = "failed: restarted. The server was restarted while the job ran; submit it again."
                self._end(job, FalError(500, why, "runner_server_error"))
            elif job.webhook:
                self._announce(job)

    async def close(self) -> None:
        """Stop. What waits, waits on disk; what runs is told to stop and will be found as restarted."""
        self._closing = True
        for job in self._jobs.values():
            job.cancel.set()
        tasks = [*self._tasks.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(
        self, app: str, owner: str, origin: str, body: bytes, *, webhook: str = "", low: bool = False,
        start_within: float | None = None, lifetime: float | None = None,
    ) -> Job:  # fmt: skip
        """Put a job into the line.

        Raises:
            FalError: 503 the line is too long; 507 no room for its input.
        """
        if len(self._line) >= self._longest:
            raise FalError(503, "Too many requests are waiting, try again later.", "runner_scheduling_failure")
        self._store.reserve(len(body))
        line, self._arrivals = (int(low), self._arrivals), self._arrivals + 1
        now = time.time()
        start_by = None if start_within is None else now + start_within
        job = Job(str(uuid.uuid4()), app, owner, origin, line, now, len(body), webhook, lifetime, start_by)
        try:
            with disk_errors():
                self._input(job).write_bytes(body)
                self._save(job)
        except BaseException:
            self._store.release(len(body))
            self._input(job).unlink(missing_ok=True)
            raise
        self._jobs[job.id] = job
        self._limit(job)
        self._enqueue(job)
        return job

    def get(self, request_id: str, owner: str) -> Job:
        """Raises FalError 404 where there is none, or it is somebody else's."""
        job = self._jobs.get(request_id)
        if job is None or job.owner != owner:
            raise not_found("The request")
        return job

    def position(self, job: Job) -> int:
        """How many are before it in the line."""
        return bisect_left(self._line, (job.line, job.id))

    def cancel(self, job: Job) -> bool:
        """Take a job back; False if it has ended before. One that runs may still finish."""
        if job.status == "COMPLETED":
            return False
        job.cancel.set()
        if job.status == "IN_QUEUE":
            self._drop(job, cancelled())
        return True

    async def ended(self, job: Job) -> None:
        """Wait until it has."""
        while job.status != "COMPLETED":
            await job.changed.wait()

    def sweep(self) -> None:
        """Forget jobs that ended long ago."""
        for job in [j for j in self._jobs.values() if j.ended is not None and j.ended + self._keep < time.time()]:
            del self._jobs[job.id]
            self._record(job).unlink(missing_ok=True)

    # The line

    def _enqueue(self, job: Job) -> None:
        insort(self._line, (job.line, job.id))
        if self._runner.slots is None:
            self._begin(job)
        else:
            self._fill()

    def _fill(self) -> None:
        while self._line and not self._closing and len(self._tasks) < (self._runner.slots or 0):
            job = self._jobs[self._line[0][1]]
            self._start(job)
            self._begin(job)

    def _begin(self, job: Job) -> None:
        self._tasks[job.id] = asyncio.create_task(self._run(job))

    def _start(self, job: Job) -> None:
        if job.status == "IN_QUEUE":
            self._leave(job)
            job.status, job.started = "IN_PROGRESS", time.time()
            self.save(job)
            job.tell()

    def _leave(self, job: Job) -> None:
        place = self.position(job)
        if place < len(self._line) and self._line[place][1] == job.id:
            del self._line[place]
            for _, other in self._line[place:]:
                self._jobs[other].tell()

    def _drop(self, job: Job, why: FalError) -> None:
        self._leave(job)
        self._end(job, why)
        if task := self._tasks.get(job.id):
            task.cancel()

    def _limit(self, job: Job) -> None:
        if job.start_by is not None:
            asyncio.get_running_loop().call_later(job.start_by - time.time(), self._expire, job)

    def _expire(self, job: Job) -> None:
        if job.status == "IN_QUEUE" and job.start_by is not None and not self._closing:
            why = f"The request did not start within {job.start_by - job.created:.3g} seconds."
            self._drop(job, FalError(504, why, "request_timeout", {"X-Fal-Request-Timeout-Type": "user"}))

    async def _run(self, job: Job) -> None:
        work = Work(job.id, job.app, self._input(job), job.origin, job.lifetime)
        try:
            answer = await self._runner.run(work, Watch(self, job))
            self._leave(job)
            self._end(job, answer)
        except asyncio.CancelledError:
            if not self._closing and job.status != "COMPLETED":
                self._leave(job)
                self._end(job, cancelled())
        except Exception as error:
            if not self._closing:
                self._leave(job)
                self._end(job, _as_answer(error, job))
        finally:
            self._tasks.pop(job.id, None)
            self._fill()

    def _end(self, job: Job, how: dict[str, Any] | FalError) -> None:
        if job.status == "COMPLETED":
            return
        if isinstance(how, FalError):
            job.status_code, job.answer, job.headers, job.error_type = how.status, how.body, how.headers, how.error_type
            job.log(str(how), "ERROR")
        else:
            job.status_code, job.answer = 200, how
        job.status, job.ended = "COMPLETED", time.time()
        self._input(job).unlink(missing_ok=True)
        self._store.release(job.input_size)
        self.save(job)
        job.tell()
        if job.webhook:
            self._announce(job)

    def _announce(self, job: Job) -> None:
        if self._on_end is not None:
            task = asyncio.create_task(self._on_end(job))
            self._others.add(task)
            task.add_done_callback(self._others.discard)

    # Records

    def save(self, job: Job) -> None:
        """Write its record after a change. With a full disk the job goes on without it."""
        if job.id in self._jobs:
            try:
                self._save(job)
            except OSError as error:
                _log.error("The record of job %s cannot be written: %s", job.id, error)

    def _save(self, job: Job) -> None:
        path = self._record(job)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(job)))
        os.replace(draft, path)

    def _record(self, job: Job) -> Path:
        return self._folder / f"{job.id}.job"

    def _input(self, job: Job) -> Path:
        return self._folder / f"{job.id}.input"


def _as_answer(error: Exception, job: Job) -> FalError:
    """What a client is told of an error: all of those that are meant to be read, and nothing of others."""
    if isinstance(error, FalError):
        return error
    if isinstance(error, Cancelled):
        return cancelled()
    if isinstance(error, FetchError):
        return field_error("", str(error), error.kind, ctx=error.limit and {"max_size": error.limit})
    if isinstance(error, EmptyResultError):
        return field_error("", str(error), "no_media_generated")
    if isinstance(error, InputError):
        return field_error("", str(error), "value_error")
    if not isinstance(error, TrellisError):
        _log.error("Job %s failed.", job.id, exc_info=error)
    text = str(error) if isinstance(error, TrellisError) else "The job failed on the server, which has the details in its log."
    return field_error("", text, "internal_server_error", status=500)
