"""What a user of the API keeps between runs, in files that only this user may read: keys, and requests that were paid for.

A database, because several programs may use it at once and any of them may end at any moment. A request is written down before
it is sent, and is forgotten when the API says that it has failed, or when the user wants it made anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError
from ..files import locked, make_folder
from .old_notes import read_old_notes

DATABASE = "client.sqlite3"
HOSTED = "https://fal.ai"
KEY_VARIABLE = "FAL_KEY"
REMEMBERED = 12 * 3600.0
"""Seconds that uploads are remembered: shorter than any server keeps files."""
KEPT_MODELS = 1 << 30
"""Bytes of finished models that are kept, so that the same request needs no network."""
KEPT_SCRAPS = 7 * 24 * 3600.0
"""Seconds after which half-fetched models and locks that nobody holds are cleared away."""
LISTEN = 0.1
BUSY = 30.0
"""Seconds that one program waits for another to write."""

SENT, ACCEPTED, CANCELLED, MADE = "sent", "accepted", "cancelled", "made"
"""States of a request: written down but not known to be accepted; accepted; taken back; with a result."""

_TABLES = """
CREATE TABLE IF NOT EXISTS keys (server TEXT PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (digest TEXT PRIMARY KEY, address TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    fingerprint TEXT PRIMARY KEY, state TEXT NOT NULL, once TEXT NOT NULL, id TEXT NOT NULL, result TEXT NOT NULL,
    time REAL NOT NULL
);
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A request that is kept.

    Attributes:
        state: one of the states above. once: made for this one job, and sent with it. id: "" until it is known.
        result: what the API said of the finished model, as JSON; "" until it is finished.
        time: of the last change, seconds since 1970.
    """

    fingerprint: str
    state: str
    once: str
    id: str = ""
    result: str = ""
    time: float = 0.0


class Notebook:
    """A folder with the database, finished models and locks, made when first used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    # Keys

    def key(self, base_url: str) -> str:
        """The key for a server, "" if there is none. FAL_KEY is for fal.ai alone."""
        if not base_url and (key := os.environ.get(KEY_VARIABLE, "").strip()):
            return key
        found = self._rows("SELECT key FROM keys WHERE server = ?", origin(base_url))
        return found[0][0] if found else ""

    def set_key(self, base_url: str, key: str) -> None:
        """Keep a key, or forget it ("")."""
        if any(ord(c) < 33 or ord(c) > 126 for c in key) or len(key) > 500:
            raise InputError("A key has no spaces, no line breaks and no special letters: copy it again.")
        if key:
            self._rows("INSERT OR REPLACE INTO keys VALUES (?, ?)", origin(base_url), key)
        else:
            self._rows("DELETE FROM keys WHERE server = ?", origin(base_url))

    def keyed(self) -> list[str]:
        """Servers that there is a key for."""
        known = {server for (server,) in self._rows("SELECT server FROM keys")}
        return sorted(known | ({HOSTED} if os.environ.get(KEY_VARIABLE, "").strip() else set()))

    # Uploads

    def upload(self, server: str, digest: str) -> str:
        """Address of a file that was uploaded lately, "" if it was not. `digest` is the SHA-256 of its content."""
        since = time.time() - REMEMBERED
        found = self._rows("SELECT address FROM uploads WHERE digest = ? AND time > ?", f"{server} {digest}", since)
        return found[0][0] if found else ""

    def keep_upload(self, server: str, digest: str, address: str) -> None:
        """Remember where a file is."""
        self._rows("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", f"{server} {digest}", address, time.time())

    def forget_uploads(self) -> None:
        """The API has thrown files away."""
        self._rows("DELETE FROM uploads")

    # Requests

    def find(self, *fingerprints: str) -> Kept | None:
        """The first of these requests that is kept."""
        for fingerprint in filter(None, fingerprints):
            for row in self._rows("SELECT * FROM requests WHERE fingerprint = ?", fingerprint):
                return Kept(*row)
        return None

    def find_id(self, request_id: str) -> Kept | None:
        """The kept request of this id."""
        return next((Kept(*row) for row in self._rows("SELECT * FROM requests WHERE id = ?", request_id)), None)

    def begin(self, fingerprint: str) -> Kept:
        """Write a request down that is about to be sent, in place of what was known of it."""
        return self._keep(Kept(fingerprint, SENT, str(uuid.uuid4())))

    def accepted(self, kept: Kept, request_id: str) -> Kept:
        """The API has taken it."""
        return self._keep(Kept(kept.fingerprint, ACCEPTED, kept.once, request_id))

    def cancelled(self, kept: Kept) -> Kept:
        """The API has said that it will take it back."""
        return self._keep(Kept(kept.fingerprint, CANCELLED, kept.once, kept.id))

    def made(self, kept: Kept, result: str) -> Kept:
        """The API has made its model."""
        return self._keep(Kept(kept.fingerprint, MADE, kept.once, kept.id, result))

    def rename(self, kept: Kept, fingerprint: str) -> Kept:
        """Keep it as the answer to another fingerprint."""
        renamed = self._keep(Kept(**{**vars(kept), "fingerprint": fingerprint}))
        self.forget(kept)
        return renamed

    def forget(self, kept: Kept) -> None:
        """It has come to nothing."""
        self._rows("DELETE FROM requests WHERE fingerprint = ?", kept.fingerprint)

    def _keep(self, kept: Kept) -> Kept:
        kept = Kept(**{**vars(kept), "time": time.time()})
        self._rows(f"INSERT OR REPLACE INTO requests VALUES ({', '.join('?' * len(vars(kept)))})", *vars(kept).values())
        return kept

    @asynccontextmanager
    async def held(self, fingerprint: str, on_wait: Callable[[], None]) -> AsyncIterator[None]:
        """One program, one run at a time works on a request; the lock ends with whoever holds it, however that ends."""
        path = self._folder / "locks" / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        make_folder(path.parent, 0o700)
        with ExitStack() as stack:
            while True:
                with suppress(BlockingIOError):
                    stack.enter_context(locked(path, wait=False))
                    break
                on_wait()
                await asyncio.sleep(LISTEN)
            yield

    # Models

    def model(self, server: str, request_id: str) -> Path:
        """Where the model of a request is kept."""
        name = hashlib.sha256(f"{server} {request_id}".encode()).hexdigest()[:32]
        return self._folder / "models" / f"{name}.glb"

    def tidy(self) -> None:
        """Let the oldest models go, and what was left half done long ago."""
        long_ago, size = time.time() - KEPT_SCRAPS, 0
        for path in sorted(self._files("models"), key=_changed, reverse=True):
            whole = path.suffix == ".glb"
            size += _length(path) if whole else 0
            if size > KEPT_MODELS if whole else _changed(path) < long_ago:
                with suppress(OSError):
                    path.unlink()
        for path in self._files("locks"):
            if _changed(path) < long_ago:
                with suppress(OSError):
                    path.unlink()

    def _files(self, name: str) -> list[Path]:
        with suppress(OSError):  # nothing is there yet, or nothing can be tidied
            return list((self._folder / name).iterdir())
        return []

    # The database

    def _rows(self, statement: str, *values: Any) -> list[tuple]:
        with _in_words(self._folder):
            try:
                return self._run(statement, values)
            except (sqlite3.OperationalError, sqlite3.IntegrityError):
                raise
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return self._run(statement, values)

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple]:
        make_folder(self._folder)
        with closing(_connect(self._folder / DATABASE)) as database:
            read_old_notes(self._folder, database, ACCEPTED)
            return database.execute(statement, values).fetchall()

    def _set_aside(self, error: Exception) -> None:
        """A damaged database must not stop its user for ever."""
        aside = f"damaged-{time.time():.0f}"
        for ending in ("", "-wal", "-shm"):
            path = self._folder / f"{DATABASE}{ending}"
            if path.exists():
                path.replace(self._folder / f"{DATABASE}.{aside}{ending}")
        _log.warning(
            "%s is damaged (%s). It was set aside as %s.%s: keys have to be entered again, and open requests in it are "
            "forgotten.", self._folder / DATABASE, error, DATABASE, aside,
        )  # fmt: skip


def origin(base_url: str) -> str:
    """The server that a key belongs to.

    Raises:
        InputError: it is no address.
    """
    if not base_url.strip():
        return HOSTED
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InputError("The server must be an address like http://127.0.0.1:8000/fal.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files take over its permissions
    database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = ON")
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise InputError(
            f"Keys and open requests are kept in {folder}, which cannot be used ({error}). Make room there, or let this "
            "program write there; without it a job could be paid twice, so none is submitted."
        ) from error


def _length(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
