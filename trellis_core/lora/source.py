"""Where a LoRA comes from: a name, a path inside allowed folders, or a web address."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ..context import QUIET, RunContext
from ..errors import InputError, WeightsError
from ..fetch import fetch_file
from ..files import DiskError, locked, make_folder, user_cache
from ..settings import LORA_FIELD, GenerationSettings
from ..weights.header import read_header
from .read import MAX_BYTES
from .stack import Lora

BUNDLED = Path(__file__).parent / "demo"
"""LoRAs for mini that ship with the program."""

CACHE_BYTES = 8 << 30
"""What fetched files may take together; the ones used longest ago go first."""

_NEW = ".new-"
"""Begins the names of folders that files are fetched into; their process holds the lock inside."""


def default_folders() -> tuple[Path, ...]:
    """`loras` where the program runs, and the bundled ones."""
    return Path("loras"), BUNDLED


def cache_folder() -> Path:
    """Where fetched LoRAs are kept."""
    return user_cache("loras")


def loras_of(
    settings: GenerationSettings,
    folders: Sequence[Path] | None = None,
    *,
    cache: Path | None = None,
    trusted: Collection[str] = (),
    ctx: RunContext = QUIET,
) -> list[Lora]:
    """The LoRAs that settings name, each for the stage of its field, at full strength. See `find_lora`."""
    named = {stage: getattr(settings, field) for stage, field in LORA_FIELD.items()}
    found = {stage: find_lora(text, folders, cache=cache, trusted=trusted, ctx=ctx) for stage, text in named.items() if text}
    return [Lora(path, stage=stage) for stage, path in found.items()]


def find_lora(
    text: str,
    folders: Sequence[Path] | None = None,
    *,
    cache: Path | None = None,
    trusted: Collection[str] = (),
    ctx: RunContext = QUIET,
) -> Path:
    """The file that `text` names.

    Args:
        text: an http or https address; or a path, with or without ".safetensors", that lies in one of `folders`.
        folders: None for `default_folders`.
        cache: where fetched files are kept, None for `cache_folder`; a file's name there is that of its content.
        trusted: hosts in private networks that may be asked, see `fetch`.

    Raises:
        InputError: not there, outside the folders, or it cannot be fetched.
        WeightsError: what was fetched is no safetensors file.
    """
    if text[:7].lower() == "http://" or text[:8].lower() == "https://":
        return _fetched(text, cache or cache_folder(), trusted, ctx)
    if "://" in text or text[:5].lower() == "data:":
        raise InputError(f'"{text[:40]}" is not an address that LoRAs are fetched from: http and https are.')
    folders = default_folders() if folders is None else folders
    for folder in folders:
        home = folder.expanduser().resolve()
        for name in (text, f"{text}.safetensors"):
            path = (home / name).resolve()
            if path.exists() and home in path.parents:
                return path
    places = ", ".join(map(str, folders))
    raise InputError(f'There is no LoRA "{text}" in {places}. Paths that lead out of these folders are not followed.')


def _fetched(url: str, cache: Path, trusted: Collection[str], ctx: RunContext) -> Path:
    make_folder(cache)
    lock = cache / ".lock"  # several processes share the cache
    with ExitStack() as ours:
        with locked(lock, ctx):
            folder = Path(ours.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=_NEW)))
            ours.enter_context(locked(folder / "lock"))
        got = fetch_file(url, folder / "lora.safetensors", limit_bytes=MAX_BYTES, trusted=trusted, ctx=ctx)
        try:
            read_header(got.path)
        except WeightsError as error:
            raise WeightsError(
                "The address does not hold a safetensors file. LoRAs are fetched in this format only."
            ) from error
        kept = cache / f"{got.sha256}.safetensors"
        with locked(lock, ctx):
            os.replace(got.path, kept)
            _sweep(cache, kept)
    return kept


def _sweep(cache: Path, kept: Path) -> None:
    """Delete what killed runs left half fetched, and the oldest files until the cache is within its limit."""
    for left in cache.glob(f"{_NEW}*"):
        with suppress(BlockingIOError, DiskError), locked(left / "lock", wait=False):  # else it is being fetched
            shutil.rmtree(left, ignore_errors=True)
    files = sorted(cache.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > CACHE_BYTES and file != kept:
            with suppress(OSError):  # Windows keeps files that are in use
                file.unlink()
