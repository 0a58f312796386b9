"""Threads, a few for each kind of work, so that no kind ever waits for another; fair between keys."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class Pool:
    """At most `threads` calls at a time, at most `per_owner` of them for one key; the others wait, each key in its own line.

    The threads do not keep the process alive: a call that hangs does not keep the service from ending.
    """

    def __init__(self, name: str, threads: int, per_owner: int | None = None) -> None:
        self._name, self._threads, self._per_owner = name, threads, per_owner or threads
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started = 0
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._running: set[Future[Any]] = set()

    @property
    def busy(self) -> int:
        """Calls that are running or wait for a thread."""
        return len(self._running)

    async def run(self, owner: str, call: Callable[..., T], *args: Any) -> T:
        """The result of `call(*args)`, made in a thread. It goes on, and keeps its place, if the caller is cancelled."""
        turn = self._turns.setdefault(owner, asyncio.Semaphore(self._per_owner))
        await turn.acquire()
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        future.add_done_callback(lambda _: _tell(loop, turn.release))
        self._calls.put((future, lambda: call(*args)))
        if self._started < self._threads:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return await waited(future)

    def close(self) -> None:
        """End the threads that have nothing to do."""
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while entry := self._calls.get():
            _settle(*entry)
            del entry  # an idle thread keeps no result in memory


@dataclass
class Pools:
    """All pools of a service. `slots` is how many models are made at a time."""

    slots: int = 1
    work: Pool = field(init=False)
    downloads: Pool = field(init=False)
    storage: Pool = field(init=False)
    parsing: Pool = field(init=False)
    webhooks: Pool = field(init=False)

    def __post_init__(self) -> None:
        self.work = Pool("work", self.slots)
        self.downloads = Pool("download", 8, per_owner=4)
        self.storage = Pool("storage", 4, per_owner=3)
        self.parsing = Pool("parsing", 1)
        self.webhooks = Pool("webhook", 8, per_owner=2)

    def _all(self) -> tuple[Pool, ...]:
        return self.work, self.downloads, self.storage, self.parsing, self.webhooks

    @property
    def busy(self) -> int:
        """Calls that are running."""
        return sum(pool.busy for pool in self._all())

    def close(self) -> None:
        for pool in self._all():
            pool.close()


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        pass  # the loop has ended; nobody waits any more


async def waited(future: Future[T]) -> T:
    """The result of a future of another thread. A caller that is cancelled leaves it to end by itself, unheard."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(lambda _: _tell(loop, lambda: None if done.done() else done.set_result(None)))
    await done
    return future.result()
