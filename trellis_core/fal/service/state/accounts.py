"""What each key uses of the service's storage, and that no key uses more than its share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from ...errors import FalError


class Accounts:
    """Bytes by key. All of it may be used from any thread.

    Args:
        quota: bytes of all keys together. per_key: of one.
        make_room: asked to free that many bytes of a key's ("" for anybody's) when they are missing; does what it may.
    """

    def __init__(self, quota: int, per_key: int) -> None:
        self.quota, self.per_key = quota, per_key
        self.make_room: Callable[[str, int], None] = lambda owner, size: None
        self.lock = threading.RLock()
        self._used: Counter[str] = Counter()
        self.total = 0

    def used(self, owner: str) -> int:
        """Bytes of one key."""
        return self._used[owner]

    def reserve(self, owner: str, size: int) -> None:
        """Count `size` bytes as used.

        Raises:
            FalError: 507, they would not fit.
        """
        with self.lock:
            if (missing := self._missing(owner, size)) > 0:
                self.make_room(owner, missing)
            if self._used[owner] + size > self.per_key:
                raise FalError(
                    507,
                    f"This needs {in_words(size)}, and the files of your key take {in_words(self._used[owner])} of its "
                    f"{in_words(self.per_key)}. Delete requests or files of yours (HTTP DELETE at their addresses), or wait "
                    "until they expire.",
                )
            if self.total + size > self.quota:
                raise FalError(507, "The server's storage is full: its files expire with time, try again later.")
            self._used[owner] += size
            self.total += size

    def count(self, owner: str, size: int) -> None:
        """Count what is there already, whether it fits or not."""
        with self.lock:
            self._used[owner] += size
            self.total += size

    def release(self, owner: str, size: int) -> None:
        """The opposite of both."""
        self.count(owner, -size)

    def _missing(self, owner: str, size: int) -> int:
        return max(self._used[owner] + size - self.per_key, self.total + size - self.quota)


def in_words(size: int) -> str:
    """1.5 MB and the like."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
