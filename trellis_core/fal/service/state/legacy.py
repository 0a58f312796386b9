"""Folders of version 0.1.0, which kept a note in JSON beside every file: taken over once, damaged notes set aside."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ....files import sync_folder
from ....outside import checked, read_object
from .database import Database
from .files import ID as FILE_ID
from .files import Stored, safe_name
from .folder import DataFolder
from .records import Record, encode
from .rows import insert

_log = logging.getLogger(__name__)


@dataclass
class _File:
    id: str
    name: str
    content_type: str
    size: int
    expires: float


@dataclass
class _Job:
    id: str
    app: str
    owner: str
    origin: str
    line: tuple[int, int]
    created: float
    input_size: int
    webhook: str = ""
    lifetime: float | None = None
    start_by: float | None = None
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"] = "IN_QUEUE"
    started: float | None = None
    ended: float | None = None
    logs: list[dict[str, str]] = field(default_factory=list)
    status_code: int = 0
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    error_type: str = ""
    webhook_tries: int = 0


def take_over(folder: DataFolder, database: Database) -> None:
    """Move what is in the old rooms into the new ones. May be cut off anywhere, and goes on at the next start."""
    owners: dict[str, Record] = {}
    rooms = [room for room in (folder.path / "jobs", folder.path / "files") if room.is_dir() and not room.is_symlink()]
    for room in rooms:
        for note in sorted(room.glob("*.job" if room.name == "jobs" else "*.json")):
            try:
                if room.name == "jobs":
                    record = _job(note, folder, database)
                    if record.status_code == 200:
                        owners[record.answer["model_glb"]["url"]] = record
                else:
                    _file(note, folder, database, owners)
            except (ValueError, TypeError, KeyError, OSError) as error:
                for path in (note, note.with_suffix(""), note.with_suffix(".input")):
                    if path.exists():
                        folder.set_aside(path, f"its note cannot be read ({error})")
        for left in list(room.iterdir()):
            if left.is_file() and left.suffix in ("", ".draft", ".input") and not left.is_symlink():
                left.unlink()
            elif left.is_dir() and left.suffix == ".parts":
                shutil.rmtree(left, ignore_errors=True)
            else:
                folder.set_aside(left, "it is no file of the service")
        try:
            room.rmdir()
        except OSError as error:
            _log.warning("The old folder %r stays: %s.", str(room), error)
    if rooms:
        _log.info("Jobs and files of version 0.1.0 were taken over.")


def _job(note: Path, folder: DataFolder, database: Database) -> Record:
    old = checked(_Job, read_object(note), note.name)
    values = {name: value for name, value in asdict(old).items() if name not in ("line", "started")}
    seconds = max(0.0, old.ended - old.started) if old.ended and old.started else None
    record = Record(**values, priority=old.line[0], arrival=old.line[1], seconds=seconds)
    record.check()
    if note.stem != record.id:
        raise ValueError("it is that of another job")
    body, kept = note.with_suffix(".input"), folder.room("inputs") / record.id
    if record.status == "IN_QUEUE" and not kept.is_file():
        os.replace(body, kept)
        sync_folder(kept.parent)
    _add(database, "jobs", encode(record))
    note.unlink()
    return record


def _file(note: Path, folder: DataFolder, database: Database, owners: dict[str, Record]) -> None:
    old = checked(_File, read_object(note), note.name)
    if not FILE_ID.fullmatch(old.id) or note.stem != old.id or old.name != safe_name(old.name):
        raise ValueError("it is that of another file")
    content = note.with_suffix("")
    if content.stat().st_size != old.size:
        raise ValueError(f"the file has {content.stat().st_size} bytes, not {old.size}")
    with content.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    made = owners.get(f"/cdn/files/{old.id}/{old.name}")
    stored = Stored(
        old.id, made.owner if made else "", old.name, old.content_type, old.size, digest.hexdigest(),
        note.stat().st_mtime, old.expires, made.id if made else "",
    )  # fmt: skip
    target = folder.room("content") / stored.sha256
    if not target.is_file():
        draft = folder.room("spool") / stored.id
        shutil.copyfile(content, draft)
        with draft.open("rb") as copy:
            os.fsync(copy.fileno())
        os.replace(draft, target)
        sync_folder(target.parent)
    _add(database, "files", asdict(stored))
    note.unlink()
    content.unlink()


def _add(database: Database, table: str, row: dict[str, Any]) -> None:
    def act(connection: sqlite3.Connection) -> None:
        if connection.execute(f"SELECT 1 FROM {table} WHERE id = ?", (row["id"],)).fetchone() is None:
            insert(connection, table, row)

    database.call(act)
