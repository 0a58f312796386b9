"""A finished model, whole: what breaks off goes on where it stopped, in this run or in a later one."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin

import aiohttp

from ..errors import InputError
from ..fetch import decode_data_uri
from ..outside import parse_object
from .answers import Odd, RemoteError, ResultFile, Unanswered, retry_after, shown
from .wire import LEAST, LONGEST_PAUSE, Pace, allow, problem_of, proxy_for, session

MAX_MODEL = 500 << 20
REDIRECTS = 5
TRIES = 6
"""Attempts in a row that may bring nothing new."""
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _Slow(Odd):
    """What came is too little to be called progress."""


async def download(
    file: ResultFile,
    target: Path,
    *,
    trusted: Collection[str],
    pace: Pace,
    on_fraction: Callable[[float], None] = lambda done: None,
) -> bytes:
    """The content of a GLB that the API has made; `target` keeps it.

    Args:
        target: where the whole file goes. What has come so far lies beside it, with ".part" behind its name.
        trusted: hosts ("name:port") that may be in a private network.

    Raises:
        Unanswered: it does not come, or does not come whole. RemoteError: it is too large. InputError: it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    why, misses, pause, furthest = "", 0, pace.poll, _length(part)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while misses < TRIES:
            wait, slow = 0.0, False
            try:
                await _go_on(file, part, trusted, pace, on_fraction)
            except Odd as problem:
                why, wait = str(problem), min(problem.wait, pace.patience)
                slow = isinstance(problem, _Slow)
            else:
                data = part.read_bytes()
                why = why_not_whole(data, file.size)
                if not why:
                    part.replace(target)
                    return data
                if len(data) >= (file.size or 0):
                    part.unlink()  # as long as it should be, and wrong: nothing can be added to it
            news = _length(part) > furthest and not slow
            furthest = max(furthest, _length(part))
            misses, pause = (0, pace.poll) if news else (misses + 1, min(2 * pause, LONGEST_PAUSE))
            await asyncio.sleep(max(pause, wait))
    except OSError as error:
        raise InputError(f"The model cannot be kept in {target.parent}: {error.strerror or error}.") from error
    raise Unanswered(
        f"The model is finished, but it could not be fetched whole: {why}. It is kept: run this again, and fetching goes on "
        "where it stopped. Nothing is submitted, or paid, twice."
    )


def why_not_whole(data: bytes, size: int | None = None) -> str:
    """What shows that a GLB is not whole, "" if nothing does.

    Args:
        size: bytes that it should have, where that is known.
    """
    if data[:4] != b"glTF":
        return "what came is no GLB file"
    if size is not None and len(data) != size:
        return f"{len(data)} of {size} bytes came"
    if len(data) < 20:
        return "it ends within its header"
    _, version, total = struct.unpack_from("<4sII", data)
    if version != 2 or total != len(data):
        return f"{len(data)} bytes came of the {total} that its header tells of"
    chunks, start = {}, 12
    while start < total:
        length, kind = struct.unpack_from("<II", data, start) if start + 8 <= total else (total, 0)
        if start + 8 + length > total:
            return "it ends within one of its parts"
        chunks.setdefault(kind, data[start + 8 : start + 8 + length])
        start += 8 + length
    try:
        document = parse_object(chunks.get(_JSON, b""), "Its description", max_bytes=len(data))
        buffers = document.get("buffers", [])
        inside = [buffer["byteLength"] for buffer in buffers[:1] if "uri" not in buffer]
        return "its binary part is shorter than it should be" if any(n > len(chunks.get(_BIN, b"")) for n in inside) else ""
    except (InputError, AttributeError, KeyError, TypeError) as error:
        return f"its description is damaged ({error})"


async def _go_on(
    file: ResultFile, part: Path, trusted: Collection[str], pace: Pace, on_fraction: Callable[[float], None]
) -> None:
    """One more attempt at the rest of a file.

    Raises:
        Odd: it broke off, or what came is not the file.
    """
    if file.url[:5].lower() == "data:":
        try:
            part.write_bytes(decode_data_uri(file.url, MAX_MODEL)[0])
        except InputError as error:
            raise Odd(str(error)) from None
        return
    url, have = file.url, _length(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=pace.silence)
    async with session(trusted) as opened:
        for _ in range(REDIRECTS + 1):
            allow(url, trusted)
            proxy = proxy_for(url)
            try:
                async with opened.get(url, headers=headers, allow_redirects=False, proxy=proxy, timeout=timeout) as reply:
                    if reply.status not in (301, 302, 303, 307, 308):
                        await _take(reply, part, have, file.size, pace, on_fraction)
                        return
                    url = urljoin(url, reply.headers.get("Location", ""))
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                raise problem_of(error, url) from None
    raise Odd(f"its address leads on and on: more than {REDIRECTS} redirects")


async def _take(
    reply: aiohttp.ClientResponse, part: Path, have: int, size: int | None, pace: Pace, on_fraction: Callable[[float], None]
) -> None:
    """Write what an answer brings behind what is there, or instead of it."""
    rest = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
    if reply.status == 416:
        if have != size:
            part.unlink(missing_ok=True)  # another file than the one that was begun
            raise Odd("it has another length than before")
        return
    if reply.status not in (200, 206) or "Content-Encoding" in reply.headers:
        raise Odd(f"status {reply.status} instead of the file", retry_after(reply.headers))
    if reply.status == 206 and (rest is None or int(rest[1]) != have or (size or int(rest[2])) != int(rest[2])):
        part.unlink(missing_ok=True)
        raise Odd("another part of it came than was asked for")
    going_on = reply.status == 206
    total = size or (int(rest[2]) if rest else reply.content_length) or 0
    with part.open("ab" if going_on else "wb") as out:
        await _pour(reply, out, have if going_on else 0, total, pace, on_fraction)


async def _pour(
    reply: aiohttp.ClientResponse, out: BinaryIO, done: int, total: int, pace: Pace, on_fraction: Callable[[float], None]
) -> None:
    loop = asyncio.get_running_loop()
    since, then = loop.time(), done
    async for chunk in reply.content.iter_chunked(1 << 18):
        done += len(chunk)
        if max(done, total) > MAX_MODEL:
            where = shown(reply.url)
            raise RemoteError(f"The model is finished, but larger than {MAX_MODEL >> 20} MB: fetch it yourself from {where}")
        out.write(chunk)
        if total:
            on_fraction(min(done / total, 1.0))
        if loop.time() - since > pace.silence:
            if done - then < LEAST:
                raise _Slow("it comes too slowly")
            since, then = loop.time(), done


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
