"""Rows of the database as checked dataclasses; those that are none are moved out of the way."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ....outside import checked
from .database import Database

_log = logging.getLogger(__name__)


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """One row; the names are ours."""
    places = ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", row)


def read(
    connection: sqlite3.Connection, table: str, kind: type, decode: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> tuple[list[Any], list[tuple[Any, str]]]:
    """All rows of a table as dataclasses, and (id, what is wrong) of those that are none."""
    names = [field.name for field in fields(kind) if field.init]
    good, bad = [], []
    for row in connection.execute(f"SELECT * FROM {table}"):
        try:
            values = decode(dict(row))
            good.append(checked(kind, {name: values[name] for name in names if name in values}, f"Row {row['id']!r}"))
        except (ValueError, TypeError, KeyError) as error:
            bad.append((row["id"], str(error)))
    return good, bad


def drop_damaged(database: Database, table: str, bad: list[tuple[Any, str]]) -> None:
    """Move rows that cannot be used into a table of their own."""

    def act(connection: sqlite3.Connection) -> None:
        for row_id, why in bad:
            connection.execute(f"CREATE TABLE IF NOT EXISTS damaged_{table} AS SELECT * FROM {table} WHERE 0")
            connection.execute(f"INSERT INTO damaged_{table} SELECT * FROM {table} WHERE id IS ?", (row_id,))
            connection.execute(f"DELETE FROM {table} WHERE id IS ?", (row_id,))
            _log.warning("Row %r of %s was set aside: %s.", row_id, table, why)

    if bad:
        database.call(act)
