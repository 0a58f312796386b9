"""Uploads that come in parts. Those that were begun are gone after a restart: their clients begin again."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import FalError, not_found
from ..config import Limits
from ..http.spool import Spooled
from .files import FileStore, Stored
from .folder import storage_errors

MAX_PARTS = 10_000
LIVE = 24 * 3600.0
"""Seconds after which an upload that never ended is thrown away."""


@dataclass
class _Upload:
    slot: Stored
    folder: Path
    began: float = field(default_factory=time.monotonic)
    sizes: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Parts:
    """Uploads in parts, in folders inside `spool`; their bytes count as their key's."""

    def __init__(self, store: FileStore, spool: Path, limits: Limits) -> None:
        self._store, self._spool, self._limits = store, spool, limits
        self._uploads: dict[str, _Upload] = {}

    def begin(self, slot: Stored) -> Stored:
        """Open an upload of the slot's id. Raises FalError: 507, its key has too many."""
        self.sweep()
        if sum(upload.slot.owner == slot.owner for upload in self._uploads.values()) >= self._limits.uploads_per_key:
            raise FalError(507, "Too many uploads of your key were begun and never completed, try again later.")
        self._store.check_free(slot)
        folder = self._spool / f"{slot.id}.parts"
        with storage_errors():
            folder.mkdir(mode=0o700)
        self._uploads[slot.id] = _Upload(slot, folder)
        return slot

    def owner(self, upload: str) -> str:
        """Whose it is. Raises FalError: 404."""
        return self._open(upload).slot.owner

    def put(self, upload: str, number: int, body: Spooled) -> None:
        """Keep part `number`, a later one of the same number instead of the earlier. Blocks."""
        entry = self._open(upload)
        with entry.lock, storage_errors():
            if sum(entry.sizes.values()) - entry.sizes.get(number, 0) + body.size > self._limits.file:
                raise FalError(413, f"The file is larger than {self._limits.file} bytes.")
            if upload not in self._uploads:
                raise not_found("The upload")
            if body.path is None:
                (entry.folder / str(number)).write_bytes(body.data)
            else:
                os.replace(body.path, entry.folder / str(number))
            self._store.accounts.count(entry.slot.owner, body.size - entry.sizes.get(number, 0))
            entry.sizes[number] = body.size

    def complete(self, upload: str, numbers: list[int]) -> Stored:
        """The file of these parts, in the order of their numbers. Blocks."""
        entry = self._open(upload)
        sizes = entry.sizes
        if sorted(set(numbers)) != sorted(sizes) or len(set(numbers)) != len(numbers):
            raise FalError(400, f"The parts {sorted(sizes)[:20]} were uploaded, the list names {sorted(numbers)[:20]}.")
        with entry.lock:
            if self._uploads.pop(upload, None) is None:
                raise not_found("The upload")
            try:
                with storage_errors():
                    whole = self._joined(entry)
                return self._store.keep(entry.slot, whole)
            finally:
                self._drop(entry)

    def sweep(self) -> None:
        """Throw away what was begun long ago."""
        now = time.monotonic()
        for upload, entry in list(self._uploads.items()):
            if entry.began + LIVE < now and self._uploads.pop(upload, None):
                self._drop(entry)

    def _joined(self, entry: _Upload) -> Spooled:
        digest, target = hashlib.sha256(), entry.folder / "whole"
        with target.open("xb") as whole:
            for number in sorted(entry.sizes):
                with (entry.folder / str(number)).open("rb") as part:
                    while chunk := part.read(1 << 20):
                        digest.update(chunk)
                        whole.write(chunk)
                (entry.folder / str(number)).unlink()
            whole.flush()
            os.fsync(whole.fileno())
        return Spooled(sum(entry.sizes.values()), digest.hexdigest(), path=target)

    def _drop(self, entry: _Upload) -> None:
        self._store.accounts.release(entry.slot.owner, sum(entry.sizes.values()))
        shutil.rmtree(entry.folder, ignore_errors=True)

    def _open(self, upload: str) -> _Upload:
        if upload not in self._uploads:
            raise not_found("The upload")
        return self._uploads[upload]
