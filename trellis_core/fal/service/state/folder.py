"""The service's folder: for one process at a time; notes whole or not at all; what is damaged is set aside, not in the way."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ....errors import InputError
from ....files import DiskError, locked, make_folder, write_whole
from ...errors import FalError

SECRET_BYTES = 32

_log = logging.getLogger(__name__)


class DataFolder:
    """The folder `path`, which belongs to this process until `close`.

    Raises:
        InputError: another service uses it, or it cannot be written to. Nothing in it was touched then.
    """

    def __init__(self, path: Path) -> None:
        self.path = make_folder(path, 0o700)
        self._held = ExitStack()
        try:
            self._held.enter_context(locked(path / "lock", wait=False))
            for name in ("content", "inputs", "spool", "scratch"):
                self.room(name)
            write_whole(path / "spool" / "probe", b"")
            for left in ("spool", "scratch"):
                self._empty(path / left)
        except BlockingIOError:
            raise InputError(
                f"Another service uses the folder {path}: stop that one, or give this one another folder."
            ) from None
        except OSError as error:
            self.close()
            raise InputError(f"The folder {path} cannot be used for the service's data: {error}.") from None

    def close(self) -> None:
        """Let another process have it."""
        self._held.close()

    def room(self, name: str) -> Path:
        """A folder inside, made if it is not there; what else may have its name is set aside."""
        room = self.path / name
        if (room.exists() or room.is_symlink()) and not (room.is_dir() and not room.is_symlink()):
            self.set_aside(room, "it should be a folder")
        room.mkdir(exist_ok=True, mode=0o700)
        return room

    def secret(self) -> bytes:
        """Random bytes that only this user may read and that stay the same; made once."""
        file = self.path / "secret"
        with suppress(OSError):
            if file.is_file() and len(known := file.read_bytes()) == SECRET_BYTES:
                return known
        if file.exists() or file.is_symlink():
            self.set_aside(file, f"it should hold {SECRET_BYTES} bytes. What it signed is not valid any more")
        made = secrets.token_bytes(SECRET_BYTES)
        write_whole(file, made, 0o600)
        return made

    def set_aside(self, path: Path, why: str) -> None:
        """Move what cannot be used to where it harms nothing, and say so."""
        aside = self.path / "damaged"
        try:
            aside.mkdir(exist_ok=True, mode=0o700)
            target = aside / f"{path.name[:100]}.{secrets.token_hex(4)}"
            os.rename(path, target)
            _log.warning("%r was set aside as %r: %s.", str(path), str(target), why)
        except OSError as error:
            _log.warning("%r is left alone: %s, and it cannot be moved (%s).", str(path), why, error)

    def _empty(self, room: Path) -> None:
        """Throw away what an earlier run did not finish."""
        for left in list(room.iterdir()):
            try:
                if left.suffix == ".parts" and left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            except OSError:
                self.set_aside(left, "it is no file of the service")


@contextmanager
def storage_errors() -> Iterator[None]:
    """A disk that is full, read-only or gone is told as one thing: there is no room for this now (507)."""
    try:
        yield
    except (OSError, DiskError, sqlite3.Error) as error:
        if isinstance(error, ConnectionError):
            raise
        full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "is full" in str(error)
        _log.error("Something cannot be stored: %s", error)
        text = "The server's disk is full." if full else "The server cannot write to its storage."
        raise FalError(507, text) from error
