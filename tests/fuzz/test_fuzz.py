"""A few seconds of `python -m tests.fuzz`, and that its watcher sees what it is there to see."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import watch
from tests.fuzz.readers import READERS
from trellis_core.errors import InputError, WeightsError

QUICK = {"lora": 8, "network": 40, "family": 6, "repackaged": 20, "gguf": 200, "stage_file": 40, "picture": 60, "request": 60}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_that_comes_in_ends_wrongly(reader: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for index in range(QUICK.get(reader, 60)):
        (folder := tmp_path / str(index)).mkdir()
        failure = watch.one(READERS[reader], reader, 20261128, index, tmp_path / "base", folder)
        assert failure is None, failure


def refuses(text: str) -> watch.Failure | None:
    def case(random: Random, base: Path, folder: Path) -> None:
        raise WeightsError(text)

    return watch.one(case, "it", 0, 0, Path(), Path())


def test_a_refusal_in_words_is_well_and_others_are_not() -> None:
    assert refuses("The file is cut short.") is None
    assert "half a character" in refuses("the name \ud800").what
    assert "a message of 5000 characters" in refuses("x" * 5000).what
    assert "a message of 1 characters" in refuses(" ").what


def test_what_the_watcher_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(random: Random, base: Path, folder: Path) -> None:
        [][random.randrange(3)]

    def greedy(random: Random, base: Path, folder: Path) -> None:
        assert len(b"x" * random.choice((1 << 26,)))

    def slow(random: Random, base: Path, folder: Path) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    assert "IndexError" in watch.one(broken, "it", 0, 0, Path(), Path()).what
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    assert "seconds" in watch.one(slow, "it", 0, 0, Path(), Path()).what
    if Path("/proc/self/clear_refs").exists():
        monkeypatch.setattr(watch, "BYTES", 1 << 20)
        assert "took 0.1 GB" in watch.one(greedy, "it", 0, 0, Path(), Path()).what


def test_a_case_is_the_same_every_time() -> None:
    seen = []

    def case(random: Random, base: Path, folder: Path) -> None:
        seen.append(random.random())
        raise InputError("no")

    for index in (1, 1, 2):
        assert watch.one(case, "it", 5, index, Path(), Path()) is None
    assert seen[0] == seen[1] != seen[2]
