"""Files on the user's disk: written whole or not at all, by one process at a time, in the platform's own folders."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .context import QUIET, RunContext
from .errors import InputError

APP = "trellis_core"
"""Name of the program's own folders."""
DRAFT = ".part"
"""Suffix of files that are being written; their names begin with a dot. A process that is killed may leave one behind."""
_LOCK_ASKED = 0.2
"""Seconds between two looks at a lock that another process holds."""
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_BAD_ON_WINDOWS = re.compile(r'[<>:"|?*\x00-\x1f]')


class DiskError(InputError):
    """A file could not be written; `errno` says why, as for `OSError`."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


def user_state(name: str) -> Path:
    """Folder for what the program keeps between runs, by the platform's convention. Nothing is made."""
    import platformdirs

    return platformdirs.user_state_path(APP, appauthor=False) / name


def user_cache(name: str) -> Path:
    """Folder for what can be had again, by the platform's convention. Nothing is made."""
    import platformdirs

    return platformdirs.user_cache_path(APP, appauthor=False) / name


def make_folder(path: str | os.PathLike[str], mode: int = 0o777) -> Path:
    """The folder, made with those above it where they are not there yet.

    Raises:
        DiskError: it cannot be made, in words.
    """
    path = Path(path)
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskError(
            f"The folder {path} cannot be made: {reason}. Choose another one.", getattr(error, "errno", None)
        ) from error
    return path


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[Path]:
    """A new file beside `path` to write to. It takes the place of `path` when the block ends well, else nothing changes.

    What is at `path` afterwards is on the disk, also if the power fails.

    Args:
        mode: permissions, from which the process' umask takes away.

    Raises:
        DiskError: the name cannot be a file's, the folder is missing or read-only, the disk is full, in words.
    """
    path = Path(path)
    check_name(path)
    draft = _draft(path)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield draft
        _sync(draft)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _said(path, error) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], data: bytes, mode: int = 0o666) -> None:
    """Write bytes to a file completely or not at all; see `replacing`, also for the errors."""
    with replacing(path, mode) as draft, draft.open("wb") as file:
        file.write(data)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> None:
    """The same for tensors as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as draft:
        try:
            save_file(dict(tensors), draft, dict(notes) if notes else None)
        except SafetensorError as error:  # the library's word for a disk that does not take it
            raise OSError(errno.EIO, str(error)) from error


def write_picture(path: str | os.PathLike[str], picture: Any) -> None:
    """The same for a picture of Pillow's, in the format of the name's suffix."""
    from PIL import Image

    Image.init()
    with replacing(path) as draft:
        picture.save(draft, Image.EXTENSION[Path(path).suffix.lower()])


def write_state(path: str | os.PathLike[str], state: Any) -> None:
    """The same for what `torch.load` reads. It is packed in memory: the library reports a full disk in many ways."""
    import io

    import torch

    packed = io.BytesIO()
    torch.save(state, packed)
    write_whole(path, packed.getvalue())


def check_writable(path: str | os.PathLike[str]) -> None:
    """See that `replacing` will be able to write here, as far as that can be told without the content.

    Raises:
        DiskError: it will not; says why.
    """
    path = Path(path)
    check_name(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise DiskError(f"{path} is write-protected: choose another name, or change its permissions.", errno.EACCES)
    draft = _draft(path)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        draft.unlink()
    except OSError as error:
        raise _said(path, error) from error


def check_name(path: Path, windows: bool = os.name == "nt") -> None:
    """See that a file of this name can be in its folder, and that the folder is there.

    Args:
        windows: hold it to the rules of that system too.

    Raises:
        DiskError: no, and why.
    """
    try:
        folder = os.stat(path.parent)
        with suppress(FileNotFoundError):
            os.lstat(path)
    except FileNotFoundError:
        raise DiskError(
            f"The folder {path.parent} does not exist: create it, or choose another place for {path.name}.", errno.ENOENT
        ) from None
    except NotADirectoryError:
        raise DiskError(f"{path.parent} is a file, not a folder: choose another place for {path.name}.") from None
    except ValueError:
        raise DiskError(f"A file's name cannot hold a NUL character: {str(path)!r}.") from None
    except OSError as error:
        raise _said(path, error) from error
    if not stat.S_ISDIR(folder.st_mode):
        raise DiskError(f"{path.parent} is a file, not a folder: choose another place for {path.name}.")
    if path.is_dir():
        raise DiskError(f"{path} is a folder: give the name of a file in it.", errno.EISDIR)
    if windows and (bad := bad_on_windows(path.name)):
        raise DiskError(f"{path.name} cannot be a file's name: {bad}.")


def bad_on_windows(name: str) -> str:
    """Why Windows takes no file or folder of this name; "" if it does."""
    if _RESERVED.fullmatch(name):
        return f"Windows keeps {name.partition('.')[0].strip()} for a device"
    if found := _BAD_ON_WINDOWS.search(name):
        return f"Windows allows no {found[0]!r} in names"
    return "Windows takes a dot or a space away from the end of a name" if name != name.rstrip(". ") else ""


@contextmanager
def locked(path: str | os.PathLike[str], ctx: RunContext = QUIET, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file inside the block. It is the process' own: gone with it, however it ends.

    Args:
        path: the lock file, in a folder that exists; it stays there, empty.
        ctx: asked while waiting, so that a run that waits can be cancelled.
        wait: False to raise at once where another process or thread holds it.

    Raises:
        BlockingIOError: it is held, and `wait` is False.
        DiskError: there can be no such file.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_LOCK_ASKED if wait else 0)
            break
        except Timeout:
            if not wait:
                raise BlockingIOError(errno.EAGAIN, f"{os.fspath(path)} is locked") from None
            ctx.check()
        except (OSError, NotImplementedError) as error:
            raise _said(Path(path), error) from error
    try:
        yield
    finally:
        lock.release()


def _draft(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}{DRAFT}")


def _said(path: Path, error: Exception) -> DiskError:
    number = getattr(error, "errno", None)
    if number == errno.ENAMETOOLONG:
        return DiskError(f"The name {path.name[:60]!r}... is longer than a file's name may be: choose a shorter one.", number)
    reason = getattr(error, "strerror", None) or str(error)
    return DiskError(f"{path} cannot be written: {reason}. Free some space or choose another folder.", number)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a renaming last; on Windows, and on file systems that cannot, it lasts without."""
    if os.name == "nt":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
