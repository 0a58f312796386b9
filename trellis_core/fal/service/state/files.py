"""Files that the service keeps: uploads and results, under names that nobody can guess, for a while, up to a quota.

A file's id is 32 random hex digits; nothing that a client says becomes part of a path. What is in a file lies under the
SHA-256 of its content, once for all files that hold the same; who has it, and for how long, is in the database. A content
is written aside, put on the disk and renamed before the database learns of it, so every file that can be found is whole.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import sqlite3
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ....files import sync_folder, write_whole
from ...errors import FalError, not_found
from ..config import Limits
from ..http.spool import Spooled
from .accounts import Accounts
from .database import Act, Database
from .folder import DataFolder, storage_errors
from .rows import drop_damaged, insert, read

ID = re.compile(r"[0-9a-f]{32}")
CONTENT = re.compile(r"[0-9a-f]{64}")
_BAD_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A file of the store.

    Attributes:
        owner: fingerprint of the key that it counts for. name: safe in an address. expires: Unix time.
        job: the request that made it, "" for an upload.
    """

    id: str
    owner: str
    name: str
    content_type: str
    size: int
    sha256: str
    created: float
    expires: float
    job: str = ""

    @property
    def address(self) -> str:
        """Below the service's own address."""
        return f"/cdn/files/{self.id}/{self.name}"


def safe_name(name: str) -> str:
    """A file name from a client, made harmless: letters, digits, dot, dash and underscore, at most 100 of them."""
    last = re.split(r"[/\\]", name)[-1]
    return _BAD_IN_NAMES.sub("_", last)[-100:].lstrip(".") or "file"


class FileStore:
    """The files of a service.

    Args:
        folder: its rooms "content" and "spool" belong to this store.
        lifetime: seconds that a file is kept where its owner does not ask for less.
        oldest_give_way: results may be thrown away, the oldest first, where their own key needs the room.
    """

    def __init__(
        self, folder: DataFolder, database: Database, accounts: Accounts, limits: Limits, lifetime: float,
        oldest_give_way: bool = False,
    ) -> None:  # fmt: skip
        self._content, self._spool = folder.room("content"), folder.room("spool")
        self._database, self.accounts, self._limits = database, accounts, limits
        self._lifetime, self._oldest_give_way = lifetime, oldest_give_way
        self._files: dict[str, Stored] = {}
        self._owned: Counter[str] = Counter()
        accounts.make_room = self._make_room
        self._find(folder)

    def __len__(self) -> int:
        return len(self._files)

    def get(self, file_id: str) -> Stored:
        """Raises FalError 404 where there is no such file, or not any more."""
        stored = self._files.get(file_id)
        if stored is None or stored.expires <= time.time():
            raise not_found("The file")
        return stored

    def path(self, stored: Stored) -> Path:
        """Where its content lies.

        Raises:
            FalError: 404, what lies there is not what was kept.
        """
        path = self._content / stored.sha256
        try:
            whole = path.stat().st_size == stored.size
        except OSError:
            whole = False
        if not whole:
            _log.error("The content of file %s is damaged or gone.", stored.id)
            raise FalError(404, "The file is damaged on the server: upload it, or make it, again.")
        return path

    def slot(self, owner: str, name: str, content_type: str, lifetime: float | None = None, job: str = "") -> Stored:
        """A name for a file that may come; nothing is kept yet, and its size is 0."""
        now = time.time()
        kept = self._lifetime if lifetime is None else max(0.0, min(lifetime, self._lifetime))
        return Stored(secrets.token_hex(16), owner, safe_name(name), content_type[:100], 0, "", now, now + kept, job)

    def check_free(self, slot: Stored) -> None:
        """Raises FalError: 400 the slot is taken; 507 its key has too many files."""
        if not ID.fullmatch(slot.id) or slot.id in self._files:
            raise _taken()
        most = self._limits.files_per_key
        if not slot.job and self._owned[slot.owner] >= most:
            self.sweep()
            if self._owned[slot.owner] >= most:
                raise FalError(507, f"Your key has {most} files already: delete some of them.")

    def keep(self, slot: Stored, body: Spooled) -> Stored:
        """Fill the slot with a body, which leaves its spool. Of several at a time, the first one fills it. Blocks.

        Raises:
            FalError: 400, 507 as `check_free`; 507 the disk is full.
        """
        self.check_free(slot)
        path = body.path
        if path is None:
            path = self._spool / secrets.token_hex(16)
            with storage_errors():
                write_whole(path, body.data, 0o600)
        stored = replace(slot, size=body.size, sha256=body.sha256)
        try:
            self._database.call(self._adding(stored, path))
        finally:
            path.unlink(missing_ok=True)
        return stored

    def put_bytes(
        self, data: bytes, name: str, content_type: str, lifetime: float | None = None, owner: str = "", job: str = ""
    ) -> Stored:
        """Keep what was made here, also where it takes a little more room than was thought. Blocks; errors as of `keep`."""
        body = Spooled(len(data), hashlib.sha256(data).hexdigest(), data)
        return self.keep(self.slot(owner, name, content_type, lifetime, job), body)

    def sweep(self) -> None:
        """Throw away what has expired."""
        now = time.time()
        for stored in [s for s in list(self._files.values()) if s.expires <= now]:
            self.delete(stored)

    def delete(self, stored: Stored) -> Future[None]:
        """Throw one file away; the future is done when that is on the disk."""
        with self.accounts.lock:
            if self._files.pop(stored.id, None) is not None:
                self._owned[stored.owner] -= 1
                self.accounts.release(stored.owner, stored.size)
        return self._database.post(self._removing(stored))

    def made_by(self, job: str) -> list[Stored]:
        """What a request made."""
        return [stored for stored in list(self._files.values()) if stored.job == job]

    # Inside

    def _make_room(self, owner: str, missing: int) -> None:
        self.sweep()
        own = [s for s in list(self._files.values()) if s.owner == owner and s.job] if self._oldest_give_way else []
        for stored in sorted(own, key=lambda s: s.created):
            if missing <= 0:
                return
            missing -= stored.size
            _log.info("The result of request %s gives way to a newer one.", stored.job)
            self.delete(stored)

    def _adding(self, stored: Stored, draft: Path) -> Act[None]:
        def known(_: sqlite3.Connection) -> None:
            with self.accounts.lock:
                self._files[stored.id] = stored
                self._owned[stored.owner] += 1
                self.accounts.count(stored.owner, stored.size)

        def act(connection: sqlite3.Connection) -> None:
            try:
                insert(connection, "files", asdict(stored))
            except sqlite3.IntegrityError:
                raise _taken() from None
            os.replace(draft, self._content / stored.sha256)
            sync_folder(self._content)
            self._database.afterwards(known)

        return act

    def _removing(self, stored: Stored) -> Act[None]:
        def unlink(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM files WHERE sha256 = ?", (stored.sha256,)).fetchone() is None:
                (self._content / stored.sha256).unlink(missing_ok=True)

        def act(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM files WHERE id = ?", (stored.id,))
            self._database.afterwards(unlink)

        return act

    def _find(self, folder: DataFolder) -> None:
        """What is in the database and on the disk; what is in only one of them goes, what is strange is set aside."""
        sizes: dict[str, int] = {}
        with os.scandir(self._content) as entries:
            for entry in entries:
                if CONTENT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    sizes[entry.name] = entry.stat().st_size
                else:
                    folder.set_aside(Path(entry.path), "it is no file of the service")
        good, bad = self._database.call(lambda connection: read(connection, "files", Stored))
        known = set()
        for stored in good:
            if sizes.get(stored.sha256) != stored.size:
                bad.append((stored.id, f"its content has {sizes.get(stored.sha256, 'no')} bytes, not {stored.size}"))
                continue
            known.add(stored.sha256)
            self._files[stored.id] = stored
            self._owned[stored.owner] += 1
            self.accounts.count(stored.owner, stored.size)
        damaged = {s.sha256 for s in good} - known
        for name in sizes.keys() - known:
            if name in damaged:
                folder.set_aside(self._content / name, "it is not what was kept")
            else:
                (self._content / name).unlink(missing_ok=True)
        drop_damaged(self._database, "files", bad)


def _taken() -> FalError:
    return FalError(400, "A file was uploaded to this address already.", "bad_request")
