"""Jobs: one line of them, and a runner that works it off; each is on the disk before its client hears of it.

States are those of the protocol: IN_QUEUE, IN_PROGRESS, COMPLETED, and an error is a completion too (docs/method/fal.md).
After a restart, jobs that were waiting wait again, in their order; those that ran are completed with an error that says so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ...errors import Cancelled, EmptyResultError, InputError, TrellisError
from ...fetch import FetchError
from ..errors import FalError, cancelled, field_error, not_found
from .config import ServiceConfig
from .http.spool import Spooled
from .state.accounts import Accounts
from .state.database import Database
from .state.records import Record, Records, as_dict
from .work import Runner, Watch, Work

MAX_LOGS = 500
"""Lines that a job may log."""
PATIENCE = 5.0
"""Seconds that a job which waits for somebody else keeps its turn."""
LENT = 4
"""Jobs of one key that may have lent their turn; more of its jobs are not begun."""

_MARKED = uuid.UUID("5e6a1c0e-54d0-4f0f-9d3c-2b7a40a4a6b1")
"""Name space of the ids of jobs that their clients have marked."""

_log = logging.getLogger(__name__)


@dataclass
class Job(Record):
    """A request, while the service runs."""

    def __post_init__(self) -> None:
        self.cancel = threading.Event()
        self.changed = asyncio.Event()
        self.began: float | None = None

    @property
    def line(self) -> tuple[int, int]:
        """Place in the line: priority, then number of arrival."""
        return self.priority, self.arrival

    def log(self, message: str, level: str = "INFO") -> None:
        """One line that the client can read."""
        if len(self.logs) < MAX_LOGS and self.status != "COMPLETED":
            now = datetime.now(timezone.utc).isoformat()
            self.logs.append({"message": message[:2000], "timestamp": now, "level": level, "source": "USER"})
        self.tell()

    def tell(self) -> None:
        """Wake up everybody who waits for news of this job."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()


class JobQueue:
    """All jobs of a service.

    Args:
        accounts: count the inputs of those that wait.
        on_end: called with every job that has ended and has a webhook.
        on_forget: called with the id of every job that is forgotten because its key has too many.
    """

    def __init__(
        self, config: ServiceConfig, database: Database, records: Records, accounts: Accounts, runner: Runner,
        on_end: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._config, self._database, self._records, self._accounts = config, database, records, accounts
        self._runner, self._on_end = runner, on_end
        self._jobs: dict[str, Job] = {}
        self._line: list[tuple[tuple[int, int], str]] = []
        self._waiting: Counter[str] = Counter()
        self._coming: set[str] = set()
        self._ended: dict[str, dict[str, None]] = defaultdict(dict)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._turns: set[str] = set()
        self._lent: dict[str, str] = {}
        self._returning: list[tuple[tuple[int, int], str, asyncio.Future[None]]] = []
        self._closing = False

    async def open(self, kept: list[Record]) -> None:
        """Go on where earlier runs ended; `kept` are their records."""
        jobs = [Job(**as_dict(record)) for record in kept]
        for job in sorted(jobs, key=lambda job: job.ended or 0.0):
            self._jobs[job.id] = job
            if job.status == "COMPLETED":
                self._ended[job.owner][job.id] = None
            else:
                self._accounts.count(job.owner, job.input_size)
        for job in jobs:
            if job.status == "IN_QUEUE" and job.start_by is not None and job.start_by <= time.time():
                await self._settle(job, _too_late(job))
            elif job.status == "IN_QUEUE":
                self._enqueue(job)
            elif job.status == "IN_PROGRESS":
                why = "failed: restarted. The server was restarted while the job ran; submit it again."
                await self._settle(job, FalError(500, why, "runner_server_error"))
            elif job.webhook:
                self._announce(job)

    async def close(self) -> None:
        """Stop. What waits, waits on disk; what runs is told to stop and will be found as restarted."""
        self._closing = True
        for job in self._jobs.values():
            job.cancel.set()
            job.tell()
        tasks = [*self._tasks.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def closing(self) -> bool:
        """Whether the service ends."""
        return self._closing

    def check_room(self, owner: str) -> None:
        """Raises FalError: 503, the line is too long."""
        if len(self._line) + len(self._coming) >= self._config.longest or self._waiting[owner] >= self._config.waiting_per_key:
            raise FalError(503, "Too many requests are waiting, try again later.", "runner_scheduling_failure")

    async def submit(
        self, app: str, owner: str, origin: str, body: Spooled, *, once: str = "", webhook: str = "", low: bool = False,
        start_within: float | None = None, lifetime: float | None = None,
    ) -> Job:  # fmt: skip
        """Put a job into the line; it is on the disk when this returns.

        Args:
            once: the client's mark of this job; see `find`.

        Raises:
            FalError: 503 the line is too long, or the same job is coming in just now; 507 the disk is full.
        """
        self.check_room(owner)
        job_id = _id_of(owner, once) if once else str(uuid.uuid4())
        if job_id in self._coming:
            raise FalError(503, "The same request is coming in just now.", "bad_request", {"Retry-After": "1"})
        now = time.time()
        start_by = None if start_within is None else now + start_within
        job = Job(job_id, owner, app, origin, int(low), 0, now, body.size, webhook, lifetime, start_by)
        self._coming.add(job_id)
        self._accounts.count(owner, body.size)
        try:
            await self._records.add(job, body)
        except BaseException:
            self._accounts.release(owner, body.size)
            raise
        finally:
            self._coming.discard(job_id)
        self._jobs[job.id] = job
        self._enqueue(job)
        return job

    def get(self, request_id: str, owner: str) -> Job:
        """Raises FalError 404 where there is none, or it is somebody else's."""
        job = self._jobs.get(request_id)
        if job is None or job.owner != owner:
            raise not_found("The request")
        return job

    def find(self, owner: str, once: str) -> Job | None:
        """The job that its client has marked so, if it was accepted: submitted again, it is not made again."""
        return self._jobs.get(_id_of(owner, once)) if once else None

    def position(self, job: Job) -> int:
        """How many are before it in the line."""
        return bisect_left(self._line, (job.line, job.id))

    async def cancel(self, job: Job) -> bool:
        """Take a job back; False if it has ended before. One that runs may still finish."""
        if job.status == "COMPLETED":
            return False
        job.cancel.set()
        if job.status == "IN_QUEUE":
            await self._drop(job, cancelled())
        elif job.id in self._lent and (task := self._tasks.get(job.id)):
            task.cancel()
        return True

    async def ended(self, job: Job) -> None:
        """Wait until it has, or the service ends."""
        while job.status != "COMPLETED" and not self._closing:
            await job.changed.wait()

    def forget(self, job: Job) -> Future[None]:
        """Drop the record of a job that has ended; the future is done when that is on the disk."""
        self._jobs.pop(job.id, None)
        self._ended[job.owner].pop(job.id, None)
        return self._database.post(self._records.removing(job))

    def sweep(self) -> None:
        """Forget jobs that ended long ago."""
        for job in [j for j in self._jobs.values() if j.ended is not None and j.ended + self._config.keep < time.time()]:
            self.forget(job)

    def save_tries(self, job: Job) -> None:
        """Keep how often its webhook was tried."""
        if job.id in self._jobs:
            self._database.post(self._records.saving(job, "webhook_tries"))

    # Turns

    @contextmanager
    def lending(self, job: Job) -> Iterator[None]:
        """Inside, a job that takes longer than `PATIENCE` gives its turn to others."""
        handle = asyncio.get_running_loop().call_later(PATIENCE, self._lend, job)
        try:
            yield
        finally:
            handle.cancel()

    def _lend(self, job: Job) -> None:
        if job.id in self._turns:
            self._turns.discard(job.id)
            self._lent[job.id] = job.owner
            self._fill()

    async def take_turn(self, job: Job) -> None:
        """Wait until a job that has lent its turn has one again."""
        if job.id not in self._lent:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        insort(self._returning, (job.line, job.id, future))
        self._fill()
        await future

    def _fill(self) -> None:
        slots = self._runner.slots or 0
        while len(self._turns) < slots and not self._closing:
            if self._returning:
                _, job_id, future = self._returning.pop(0)
                if not future.done():
                    del self._lent[job_id]
                    self._turns.add(job_id)
                    future.set_result(None)
            elif job := self._next():
                self._turns.add(job.id)
                self.start(job)
                self._begin(job)
            else:
                return

    def _next(self) -> Job | None:
        """The first in the line, but none of a key whose jobs wait for others too often already."""
        lent = Counter(self._lent.values())
        ready = (self._jobs[job_id] for _, job_id in self._line)
        return next((job for job in ready if lent[job.owner] < LENT), None)

    # The line

    def _enqueue(self, job: Job) -> None:
        insort(self._line, (job.line, job.id))
        self._waiting[job.owner] += 1
        if job.start_by is not None:
            asyncio.get_running_loop().call_later(job.start_by - time.time(), self._expire, job)
        if self._runner.slots is None:
            self._begin(job)
        else:
            self._fill()

    def _begin(self, job: Job) -> None:
        self._tasks[job.id] = asyncio.create_task(self._run(job))

    def start(self, job: Job) -> None:
        """The work on it begins."""
        if job.status == "IN_QUEUE" and job.id in self._jobs:
            self._leave(job)
            job.status, job.began = "IN_PROGRESS", time.monotonic()
            self._database.post(self._records.saving(job, "status"))
            job.tell()

    def _leave(self, job: Job) -> None:
        place = self.position(job)
        if place < len(self._line) and self._line[place][1] == job.id:
            del self._line[place]
            self._waiting[job.owner] -= 1
            for _, other in self._line[place:]:
                self._jobs[other].tell()

    async def _drop(self, job: Job, why: FalError) -> None:
        self._leave(job)
        await self._settle(job, why)
        if task := self._tasks.get(job.id):
            task.cancel()

    def _expire(self, job: Job) -> None:
        if job.status == "IN_QUEUE" and not self._closing:
            self._keep_task(self._drop(job, _too_late(job)))

    async def _run(self, job: Job) -> None:
        work = Work(job.id, job.app, lambda: self._records.body(job), job.origin, job.lifetime, job.owner)
        try:
            how: dict[str, Any] | FalError = await self._runner.run(work, Watch(_JobInLine(self, job)))
        except asyncio.CancelledError:
            how = cancelled()
        except Exception as error:
            how = _as_answer(error, job)
        try:
            if not self._closing:
                self._leave(job)
                await self._settle(job, how)
        finally:
            self._tasks.pop(job.id, None)
            self._turns.discard(job.id)
            self._lent.pop(job.id, None)
            self._fill()

    async def _settle(self, job: Job, how: dict[str, Any] | FalError) -> None:
        """End a job: on the disk first, then for everybody to see."""
        if job.status == "COMPLETED" or job.ended is not None:
            return
        if isinstance(how, FalError):
            job.status_code, job.answer, job.headers, job.error_type = how.status, how.body, how.headers, how.error_type
            job.log(str(how), "ERROR")
        else:
            job.status_code, job.answer = 200, how
        job.ended = time.time()
        job.seconds = None if job.began is None else time.monotonic() - job.began
        ended = Record(**as_dict(job) | {"status": "COMPLETED"})
        try:
            await self._database.run(self._records.ending(ended))
        except FalError as error:  # it was told already; with a full disk the job goes on without
            _log.error("The end of job %s is not on the disk: %s", job.id, error)
        job.status = "COMPLETED"
        self._accounts.release(job.owner, job.input_size)
        job.tell()
        self._count_ended(job)
        if job.webhook:
            self._announce(job)

    def _count_ended(self, job: Job) -> None:
        ended = self._ended[job.owner]
        ended[job.id] = None
        while len(ended) > self._config.limits.records_per_key:
            self.forget(self._jobs[next(iter(ended))])

    def _announce(self, job: Job) -> None:
        if self._on_end is not None:
            self._keep_task(self._on_end(job))

    def _keep_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)


class _JobInLine:
    """What the runner of a job may do to it."""

    def __init__(self, queue: JobQueue, job: Job) -> None:
        self.cancel, self.log = job.cancel, job.log
        self.start = partial(queue.start, job)
        self.lending = partial(queue.lending, job)
        self.take_turn = partial(queue.take_turn, job)


def _too_late(job: Job) -> FalError:
    why = f"The request did not start within {(job.start_by or 0.0) - job.created:.3g} seconds."
    return FalError(504, why, "request_timeout", {"X-Fal-Request-Timeout-Type": "user"})


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


def _id_of(owner: str, once: str) -> str:
    return str(uuid.uuid5(_MARKED, f"{owner} {once}"))
