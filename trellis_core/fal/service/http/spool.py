"""Bodies on their way in: in memory while they are small, then in a file that nobody sees; counted as they come."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import FalError
from ..config import Limits
from ..pools import Pool
from ..state.accounts import Accounts
from ..state.folder import storage_errors


@dataclass
class Spooled:
    """A body that is here as a whole: its content, or the file that holds it (on the disk, as far as the disk can tell)."""

    size: int
    sha256: str
    data: bytes = b""
    path: Path | None = None


class Spool:
    """Takes bodies into `folder`. `storage` writes them."""

    def __init__(self, folder: Path, accounts: Accounts, storage: Pool, limits: Limits) -> None:
        self._folder, self._accounts, self._storage, self._limits = folder, accounts, storage, limits
        self._turns: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def take(
        self, owner: str, chunks: AsyncIterator[bytes], limit: int, in_memory: int | None = None
    ) -> AsyncIterator[Spooled]:
        """The body, inside the block. What the block does not move away is thrown away at its end; its bytes are counted
        as the key's as long, and from then on whoever keeps it counts them.

        Raises:
            FalError: 413 longer than `limit`; 507 no room for it.
        """
        most = self._limits.in_memory if in_memory is None else in_memory
        file: IO[bytes] | None = None
        begun, size, digest = bytearray(), 0, hashlib.sha256()
        path = self._folder / secrets.token_hex(16)
        try:
            async with self._turns.setdefault(owner, asyncio.Semaphore(self._limits.bodies_per_key)):
                async for chunk in chunks:
                    self._accounts.reserve(owner, len(chunk))
                    size += len(chunk)
                    if size > limit:
                        raise FalError(413, f"The body is larger than {limit} bytes.")
                    digest.update(chunk)
                    if file is None and size > most:
                        file = await self._write(owner, open, path, "xb")
                        chunk, begun = bytes(begun) + chunk, bytearray()
                    if file is None:
                        begun += chunk
                    else:
                        await self._write(owner, file.write, chunk)
                if file is not None:
                    await self._write(owner, _finish, file)
            yield Spooled(size, digest.hexdigest(), bytes(begun), path if file is not None else None)
        finally:
            self._accounts.release(owner, size)
            if file is not None:
                file.close()
                path.unlink(missing_ok=True)

    async def _write(self, owner: str, call, *args):  # type: ignore[no-untyped-def]
        with storage_errors():
            return await self._storage.run(owner, call, *args)


def _finish(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
