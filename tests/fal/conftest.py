"""What tests of our client share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: what the client notes is synced to disk each time."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no proxy of the environment, and pictures are uploaded however small they are."""
    from trellis_core.fal import client

    monkeypatch.setattr(client, "INLINE", 0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("FAL_KEY", raising=False)
