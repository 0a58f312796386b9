"""Files that the service keeps: uploads and results, under names that nobody can guess, for a while, up to a quota.

A file's id is 32 random hex digits; nothing that a client says becomes part of a path. Beside each file lies its
description. What is half written when the process ends is gone at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from ..errors import FalError, not_found

_ID = re.compile(r"[0-9a-f]{32}")
_BAD_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
MAX_UPLOADS = 1000
"""Uploads in parts that may be open at a time."""
PARTS_LIVE = 24 * 3600.0
"""Seconds after which an upload in parts that never ended is thrown away."""


@dataclass(frozen=True)
class Stored:
    """A file of the store. `name` is safe in an address, `expires` a Unix time."""

    id: str
    name: str
    content_type: str
    size: int
    expires: float

    @property
    def address(self) -> str:
        """Below the service's own address."""
        return f"/cdn/files/{self.id}/{self.name}"


def safe_name(name: str) -> str:
    """A file name from a client, made harmless: letters, digits, dot, dash and underscore, at most 100 of them."""
    last = re.split(r"[/\\]", name)[-1]
    return _BAD_IN_NAMES.sub("_", last)[-100:].lstrip(".") or "file"


class FileStore:
    """Files in one folder, which belongs to this store alone.

    Args:
        folder: is made if it is not there.
        quota: bytes that all files together may take, and what is being uploaded.
        lifetime: seconds that a file is kept where its owner does not ask for less.
    """

    def __init__(self, folder: Path, quota: int, lifetime: float) -> None:
        self._folder, self.quota, self.lifetime = folder, quota, lifetime
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files: dict[str, Stored] = {}
        self._parts: dict[str, tuple[Stored, float, dict[int, int]]] = {}
        self.used = 0
        self._counting = threading.RLock()  # results come from threads, uploads from the event loop
        for entry in list(folder.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.suffix == ".json" and entry.with_suffix("").is_file():
                self._add(Stored(**json.loads(entry.read_text())))
            elif entry.suffix != ".json" and not entry.with_suffix(".json").is_file():
                entry.unlink()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, file_id: str) -> Stored:
        """Raises FalError 404 where there is no such file, or not any more."""
        stored = self._files.get(file_id)
        if stored is None or stored.expires <= time.time():
            raise not_found("The file")
        return stored

    def path(self, stored: Stored) -> Path:
        """Where its content lies."""
        return self._folder / stored.id

    def reserve(self, size: int) -> None:
        """Count `size` bytes as used, after throwing away what has expired.

        Raises:
            FalError: 507, they would not fit.
        """
        with self._counting:
            if self.used + size > self.quota:
                self.sweep()
            if self.used + size > self.quota:
                raise FalError(507, "The server's storage is full: its files expire with time, try again later.")
            self.used += size

    def release(self, size: int) -> None:
        """The opposite of `reserve`."""
        with self._counting:
            self.used -= size

    def sweep(self) -> None:
        """Throw away what has expired."""
        now = time.time()
        for stored in [s for s in self._files.values() if s.expires <= now]:
            self.delete(stored)
        for upload, (_, began, sizes) in list(self._parts.items()):
            if began + PARTS_LIVE < now:
                self._drop_parts(upload, sizes)

    def delete(self, stored: Stored) -> None:
        """Throw one file away."""
        if self._files.pop(stored.id, None):
            self.release(stored.size)
        for path in (self.path(stored), self._note(stored)):
            path.unlink(missing_ok=True)

    def slot(self, name: str, content_type: str, lifetime: float | None = None) -> Stored:
        """A name for a file that may come; nothing is kept yet, and its size is 0."""
        kept = self.lifetime if lifetime is None else max(0.0, min(lifetime, self.lifetime))
        return Stored(secrets.token_hex(16), safe_name(name), content_type[:100], 0, time.time() + kept)

    async def put(self, chunks: AsyncIterator[bytes], slot: Stored, *, limit: int) -> Stored:
        """Keep what comes, completely or not at all. Of several at a time, the one that ends first fills the slot.

        Raises:
            FalError: 413 longer than `limit`; 507 no room; 400 the slot is taken.
        """
        self._check_free(slot)
        async with self._written(f"{slot.id}.{secrets.token_hex(4)}.draft") as file:
            size, _ = await self._pour(chunks, file, limit)
            try:
                self._check_free(slot)
                Path(file.name).replace(self.path(slot))
            except BaseException:
                self.release(size)
                raise
        return self._keep(slot, size)

    def _check_free(self, slot: Stored) -> None:
        if not _ID.fullmatch(slot.id) or self.path(slot).exists():
            raise FalError(400, "A file was uploaded to this address already.", "bad_request")

    def put_bytes(self, data: bytes, name: str, content_type: str, lifetime: float | None = None) -> Stored:
        """Keep `data`."""
        stored = self.slot(name, content_type, lifetime)
        self.reserve(len(data))
        try:
            with disk_errors():
                self.path(stored).write_bytes(data)
        except BaseException:
            self.release(len(data))
            self.path(stored).unlink(missing_ok=True)
            raise
        return self._keep(stored, len(data))

    # In parts

    def begin_parts(self, name: str, content_type: str, lifetime: float | None = None) -> Stored:
        """A slot for a file that will come in parts; its id is that of the upload, too."""
        if len(self._parts) >= MAX_UPLOADS:
            raise FalError(507, "Too many uploads were begun and never completed, try again later.")
        stored = self.slot(name, content_type, lifetime)
        with disk_errors():
            (self._folder / f"{stored.id}.parts").mkdir()
        self._parts[stored.id] = stored, time.time(), {}
        return stored

    async def put_part(self, upload: str, number: int, chunks: AsyncIterator[bytes], *, limit: int) -> str:
        """Part `number` (from 1), in any order, a later one of the same number instead of the earlier; its ETag."""
        _, _, sizes = self._open_parts(upload)
        if not 1 <= number <= 10_000:
            raise FalError(400, "The part number must be between 1 and 10000.")
        async with self._written(f"{upload}.parts/{number}-{secrets.token_hex(4)}") as file:
            size, digest = await self._pour(chunks, file, limit - sum(sizes.values()))
            path = Path(file.name)
        self.release(sizes.get(number, 0))
        sizes[number] = size
        path.replace(path.with_name(str(number)))
        return digest

    async def complete_parts(self, upload: str, numbers: list[int]) -> Stored:
        """The file of these parts, in the order of their numbers."""
        stored, _, sizes = self._open_parts(upload)
        if sorted(set(numbers)) != sorted(sizes) or len(set(numbers)) != len(numbers):
            raise FalError(400, f"The parts {sorted(sizes)} were uploaded, the list names {sorted(numbers)[:20]}.")
        folder = self._folder / f"{upload}.parts"

        def join() -> None:
            with disk_errors(), open(folder / "whole", "wb") as whole:
                for number in sorted(sizes):
                    with open(folder / str(number), "rb") as part:
                        shutil.copyfileobj(part, whole, 1 << 20)
                    os.unlink(folder / str(number))
            os.replace(folder / "whole", self.path(stored))

        del self._parts[upload]
        try:
            await asyncio.to_thread(join)
        except BaseException:
            self._drop_parts(upload, sizes)
            raise
        shutil.rmtree(folder)
        return self._keep(stored, sum(sizes.values()))

    def _open_parts(self, upload: str) -> tuple[Stored, float, dict[int, int]]:
        if upload not in self._parts:
            raise not_found("The upload")
        return self._parts[upload]

    def _drop_parts(self, upload: str, sizes: dict[int, int]) -> None:
        self._parts.pop(upload, None)
        self.release(sum(sizes.values()))
        shutil.rmtree(self._folder / f"{upload}.parts", ignore_errors=True)

    # Inside

    def _note(self, stored: Stored) -> Path:
        return self._folder / f"{stored.id}.json"

    def _keep(self, stored: Stored, size: int) -> Stored:
        """From now on it can be found; its bytes were reserved before."""
        complete = Stored(**{**asdict(stored), "size": size})
        try:
            with disk_errors():
                self._note(stored).write_text(json.dumps(asdict(complete)))
        except BaseException:
            self.release(size)
            for path in (self.path(stored), self._note(stored)):
                path.unlink(missing_ok=True)
            raise
        self._files[stored.id] = complete
        return complete

    def _add(self, stored: Stored) -> None:
        if _ID.fullmatch(stored.id):
            self._files[stored.id] = stored
            self.used += stored.size

    @asynccontextmanager
    async def _written(self, name: str) -> AsyncIterator[IO[bytes]]:
        """A new file that is removed again if the block fails."""
        path = self._folder / name
        try:
            with disk_errors(), open(path, "xb") as file:
                yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def _pour(self, chunks: AsyncIterator[bytes], file: IO[bytes], limit: int) -> tuple[int, str]:
        """Write what comes; its length and digest. Takes nothing of the quota if it fails."""
        size, digest = 0, hashlib.md5(usedforsecurity=False)
        try:
            async for chunk in chunks:
                self.reserve(len(chunk))
                size += len(chunk)
                if size > limit:
                    raise FalError(413, f"The file is larger than {limit} bytes.")
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
            file.flush()
        except BaseException:
            self.release(size)
            raise
        return size, digest.hexdigest()


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk is told like a full quota."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FalError(507, "The server's disk is full.") from error
        raise
