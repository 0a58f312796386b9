"""Requests as they are kept: one row each, with the body of those that wait (long ones in a file beside the database)."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ....files import sync_folder
from ....outside import parse_json
from ...endpoints import SERVED
from ..http.spool import Spooled
from .database import Act, Database
from .folder import DataFolder
from .rows import drop_damaged, insert, read

ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AS_JSON = ("answer", "headers", "logs")


@dataclass
class Record:
    """A request and what became of it.

    Attributes:
        owner: fingerprint of the key it came with.
        origin: address of the service as the client sees it.
        priority, arrival: place in the line.
        created, ended: Unix times. seconds: that the work took, by a clock that nobody sets.
        status_code, answer: how it ended: HTTP status and JSON body. Addresses of own files begin with "/".
        lifetime: seconds that the result is kept, None for the store's own.
        start_by: Unix time at which it is given up if it still waits.
    """

    id: str
    owner: str
    app: str
    origin: str
    priority: int
    arrival: int
    created: float
    input_size: int
    webhook: str = ""
    lifetime: float | None = None
    start_by: float | None = None
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"] = "IN_QUEUE"
    ended: float | None = None
    seconds: float | None = None
    status_code: int = 0
    error_type: str = ""
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    logs: list[dict[str, str]] = field(default_factory=list)
    webhook_tries: int = 0

    def check(self) -> None:
        """Raises ValueError: what stands in it does not go together."""
        if not ID.fullmatch(self.id):
            raise ValueError("the id is none")
        if self.app not in SERVED:
            raise ValueError(f"there is no endpoint {self.app[:100]!r}")
        if self.status != "COMPLETED":
            return
        answer, names = self.answer, {"message", "timestamp", "level", "source"}
        if self.ended is None or not 200 <= self.status_code < 600 or not isinstance(answer, dict):
            raise ValueError("it has ended without an answer")
        if self.status_code == 200:
            made = answer.get("model_glb")
            if not isinstance(made, dict) or not str(made.get("url")).startswith("/"):
                raise ValueError("the answer names no file")
        elif not isinstance(answer.get("detail"), (str, list)):
            raise ValueError("the answer says no reason")
        if any(set(line) != names for line in self.logs):
            raise ValueError("its log is not one")


class Records:
    """The requests of a service, on the disk."""

    def __init__(self, folder: DataFolder, database: Database) -> None:
        self._inputs, self._database = folder.room("inputs"), database
        self._folder = folder

    def load(self) -> list[Record]:
        """All of earlier runs, by their place in the line; those that are damaged are set aside. Blocks."""
        found, bad = self._database.call(lambda connection: read(connection, "jobs", Record, _decode))
        good = []
        for record in found:
            try:
                record.check()
                good.append(record)
            except ValueError as error:
                bad.append((record.id, str(error)))
        drop_damaged(self._database, "jobs", bad)
        waiting = {record.id for record in good if record.status == "IN_QUEUE"}
        for path in list(self._inputs.iterdir()):
            if path.name in waiting and path.is_file() and not path.is_symlink():
                continue
            if ID.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
            else:
                self._folder.set_aside(path, "it is no file of the service")
        return sorted(good, key=lambda record: (record.priority, record.arrival))

    async def add(self, record: Record, body: Spooled) -> None:
        """Keep a new request; its place in the line is that of its arrival here."""

        def act(connection: sqlite3.Connection) -> None:
            last = connection.execute("SELECT MAX(arrival) FROM jobs").fetchone()[0]
            record.arrival = 0 if last is None else last + 1
            if body.path is not None:
                os.replace(body.path, self._inputs / record.id)
                sync_folder(self._inputs)
            insert(connection, "jobs", encode(record) | {"body": body.data if body.path is None else None})

        await self._database.run(act)

    def body(self, record: Record) -> bytes:
        """A waiting request's body. Blocks."""
        act = "SELECT body FROM jobs WHERE id = ?"
        kept = self._database.call(lambda connection: connection.execute(act, (record.id,)).fetchone())
        if kept is not None and kept[0] is not None:
            return bytes(kept[0])
        return (self._inputs / record.id).read_bytes()

    def saving(self, record: Record, *names: str) -> Act[None]:
        """Writes these fields as they are now."""
        values = {name: value for name, value in encode(record).items() if name in names}
        changes = ", ".join(f"{name} = :{name}" for name in values)

        def act(connection: sqlite3.Connection) -> None:
            connection.execute(f"UPDATE jobs SET {changes} WHERE id = :id", values | {"id": record.id})

        return act

    def ending(self, record: Record) -> Act[None]:
        """Writes how a request ended; its body is not needed any more."""
        values = encode(record)
        changes = ", ".join(f"{name} = :{name}" for name in values)

        def act(connection: sqlite3.Connection) -> None:
            connection.execute(f"UPDATE jobs SET body = NULL, {changes} WHERE id = :id", values)
            self._database.afterwards(lambda _: (self._inputs / record.id).unlink(missing_ok=True))

        return act

    def removing(self, record: Record) -> Act[None]:
        """Forgets it."""

        def act(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM jobs WHERE id = ?", (record.id,))
            self._database.afterwards(lambda _: (self._inputs / record.id).unlink(missing_ok=True))

        return act


def encode(record: Record) -> dict[str, Any]:
    """A row of the table."""
    names = [f.name for f in fields(Record)]
    row = {name: getattr(record, name) for name in names}
    return row | {name: json.dumps(row[name]) for name in _AS_JSON}


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: parse_json(row[name], name) for name in _AS_JSON}


def as_dict(record: Record) -> dict[str, Any]:
    """Its fields."""
    return {f.name: getattr(record, f.name) for f in fields(Record)}
