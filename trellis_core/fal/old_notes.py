"""Notes of version 0.1, which were two JSON files, are taken over into the database once."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

KEYS, REQUESTS = "keys.json", "requests.json"


def read_old_notes(folder: Path, database: sqlite3.Connection, accepted: str) -> None:
    """Take over what the files hold, as far as it can be read, and remove them. `accepted` is the state of its requests."""
    paths = [folder / KEYS, folder / REQUESTS]
    if not any(path.exists() for path in paths):
        return
    database.execute("BEGIN IMMEDIATE")  # two programs that start at once read them one after the other
    try:
        keys, notes = (_entries(path) for path in paths)
        uploads, requests = (_entries(notes.get(name)) for name in ("uploads", "requests"))
        for server, key in keys.items():
            if isinstance(key, str):
                database.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (server, key))
        for digest, entry in uploads.items():
            if isinstance(address := _entries(entry).get("url"), str):
                database.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?, ?)", (digest, address, _time(entry)))
        for fingerprint, entry in requests.items():
            if isinstance(request_id := _entries(entry).get("id"), str):
                row = (fingerprint, accepted, "", request_id, "", _time(entry))
                database.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?)", row)
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    for path in paths:
        path.unlink(missing_ok=True)


def _entries(source: Any) -> dict[str, Any]:
    """An object, or the one that a file holds; empty where there is none."""
    if isinstance(source, Path):
        try:
            source = json.loads(source.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
    return source if isinstance(source, dict) else {}


def _time(entry: Any) -> float:
    noted = _entries(entry).get("time")
    return float(noted) if isinstance(noted, (int, float)) and noted == noted else time.time()
