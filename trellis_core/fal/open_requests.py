"""What a user of the API keeps between runs, in files that only this user may read: keys, and what was sent already."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError

HOSTED = "https://fal.ai"
KEY_VARIABLE = "FAL_KEY"
REMEMBERED = 12 * 3600.0
"""Seconds that requests and uploads are remembered: shorter than any server keeps files."""


class Notebook:
    """A folder with `keys.json` and `requests.json`, made when first written to."""

    def __init__(self, folder: Path) -> None:
        self._keys, self._requests = folder / "keys.json", folder / "requests.json"

    # Keys

    def key(self, base_url: str) -> str:
        """The key for a server, "" if there is none. FAL_KEY is for fal.ai alone."""
        if not base_url and (key := os.environ.get(KEY_VARIABLE, "").strip()):
            return key
        return str(_read(self._keys).get(origin(base_url), ""))

    def set_key(self, base_url: str, key: str) -> None:
        """Keep a key, or forget it ("")."""
        if any(ord(c) < 33 or ord(c) > 126 for c in key) or len(key) > 500:
            raise InputError("A key has no spaces, no line breaks and no special letters: copy it again.")
        known = _read(self._keys)
        known.pop(origin(base_url), None)
        _write(self._keys, known | ({origin(base_url): key} if key else {}))

    def keyed(self) -> list[str]:
        """Servers that there is a key for."""
        return sorted({*_read(self._keys), *([HOSTED] if os.environ.get(KEY_VARIABLE, "").strip() else [])})

    # Requests

    def uploads(self) -> dict[str, str]:
        """Content hash -> address of what was uploaded lately."""
        return {key: value["url"] for key, value in self._recent("uploads").items()}

    def keep_uploads(self, uploads: Mapping[str, str]) -> None:
        """Remember uploads; those that are known keep their age."""
        known = self._recent("uploads")
        self._update("uploads", {key: known.get(key) or {"url": url, "time": time.time()} for key, url in uploads.items()})

    def request(self, base_url: str, app: str, arguments: Mapping[str, Any]) -> str:
        """Id of the same request made lately, "" if there is none."""
        return self._recent("requests").get(_fingerprint(base_url, app, arguments), {}).get("id", "")

    def keep_request(self, base_url: str, app: str, arguments: Mapping[str, Any], request_id: str) -> None:
        """Remember a request; "" forgets it."""
        known = self._recent("requests")
        known.pop(_fingerprint(base_url, app, arguments), None)
        if request_id:
            known[_fingerprint(base_url, app, arguments)] = {"id": request_id, "time": time.time()}
        self._update("requests", known)

    def _recent(self, kind: str) -> dict[str, Any]:
        entries = _read(self._requests).get(kind, {})
        return {key: value for key, value in entries.items() if value["time"] > time.time() - REMEMBERED}

    def _update(self, kind: str, entries: Mapping[str, Any]) -> None:
        _write(self._requests, {**_read(self._requests), kind: dict(entries)})


def origin(base_url: str) -> str:
    """The server that a key belongs to.

    Raises:
        InputError: it is no address.
    """
    if not base_url.strip():
        return HOSTED
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InputError("The server must be an address like http://127.0.0.1:8000/fal.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _fingerprint(base_url: str, app: str, arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([base_url, app, arguments], sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}  # not there yet, or damaged: nothing in it is worth an error


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
        json.dump(content, new)
    os.replace(draft, file)
