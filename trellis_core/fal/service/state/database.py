"""The service's database, and the one thread that speaks to it.

SQLite in WAL mode with synchronous=FULL: what a call has returned from is on the disk, also after a loss of power. Calls
that come in while the disk is busy are written in one transaction, so that many small ones cost one wait for the disk.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ....errors import InputError
from ..pools import waited
from .folder import DataFolder, storage_errors

T = TypeVar("T")
Act = Callable[[sqlite3.Connection], T]
"""Reads or writes; runs in the database's thread, alone. Rolled back when it raises."""

FILE = "state.sqlite"
BATCH = 256
"""Calls in one transaction."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, app TEXT NOT NULL, origin TEXT NOT NULL,
    priority INTEGER NOT NULL, arrival INTEGER NOT NULL, created REAL NOT NULL,
    body BLOB, input_size INTEGER NOT NULL, webhook TEXT NOT NULL, lifetime REAL, start_by REAL,
    status TEXT NOT NULL, ended REAL, seconds REAL, status_code INTEGER NOT NULL, error_type TEXT NOT NULL,
    answer TEXT NOT NULL, headers TEXT NOT NULL, logs TEXT NOT NULL, webhook_tries INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, content_type TEXT NOT NULL, size INTEGER NOT NULL,
    sha256 TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, job TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS files_by_content ON files (sha256);
"""

_log = logging.getLogger(__name__)


class Database:
    """The database in `folder`; a file that is none is set aside, and a new one begun.

    Args:
        set_aside_with: rooms of the folder that mean nothing without the database, and go the same way.
    """

    def __init__(self, folder: DataFolder, set_aside_with: tuple[str, ...] = ()) -> None:
        self._acts: queue.SimpleQueue[tuple[Act[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._afterwards: list[Act[None]] = []
        self._closed = False
        path = folder.path / FILE
        if path.exists() and not path.is_file():
            folder.set_aside(path, "it should be a file")
        try:
            self._connection = _open(str(path))
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error) and "not a database" not in str(error) and "***" not in str(error):
                raise InputError(f"The database {path} cannot be opened: {error}.") from None
            for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", *set_aside_with):
                if (folder.path / name).exists():
                    folder.set_aside(folder.path / name, f"the database is damaged ({error})")
            for name in set_aside_with:
                folder.room(name)
            self._connection = _open(str(path))
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._thread.start()

    def post(self, act: Act[T]) -> Future[T]:
        """Have it done, after everything that was asked for before; who needs to know waits for the future."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        if self._closed:
            future.set_exception(sqlite3.ProgrammingError("the service has ended"))
        else:
            self._acts.put((act, future))
        return future

    async def run(self, act: Act[T]) -> T:
        """Have it done; returns when it is on the disk. Done also if the caller is cancelled.

        Raises:
            FalError: 507, the disk does not take it. Nothing of it was written.
        """
        with storage_errors():
            return await waited(self.post(act))

    def call(self, act: Act[T]) -> T:
        """The same for threads other than the event loop's."""
        with storage_errors():
            return self.post(act).result()

    def afterwards(self, act: Act[None]) -> None:
        """Have `act` run once what the present act wrote is on the disk; to be called from within an act."""
        self._afterwards.append(act)

    def close(self) -> None:
        """Write what is waiting, and end."""
        if not self._closed:
            self._closed = True
            self._acts.put(None)
            self._thread.join()

    def _work(self) -> None:
        last = False
        while not last:
            batch = [self._acts.get()]
            while len(batch) < BATCH and not self._acts.empty():
                batch.append(self._acts.get())
            last = None in batch
            self._write([entry for entry in batch if entry is not None])
        self._connection.close()

    def _write(self, batch: list[tuple[Act[Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Any, BaseException | None]] = []
        connection, self._afterwards = self._connection, []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for act, _ in batch:
                outcomes.append(self._one(act))
            connection.execute("COMMIT")
        except Exception as error:  # nothing of the batch was written
            outcomes = [(None, error)] * len(batch)
            self._afterwards = []
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # it had not begun
        for act in self._afterwards:
            try:
                act(connection)
            except Exception as error:
                _log.error("After a change of the database: %s", error)
        for (_, future), (result, problem) in zip(batch, outcomes, strict=True):
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

    def _one(self, act: Act[Any]) -> tuple[Any, BaseException | None]:
        self._connection.execute("SAVEPOINT one")
        try:
            result = act(self._connection)
        except Exception as error:
            self._connection.execute("ROLLBACK TO one")
            self._connection.execute("RELEASE one")
            return None, error
        self._connection.execute("RELEASE one")
        return result, None


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if (state := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(state)
        connection.executescript(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
