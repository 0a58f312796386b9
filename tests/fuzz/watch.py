"""Running cases in a process of their own, which is watched: what fails, hangs, takes too much memory or dies is told."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

SECONDS = 10.0
"""A case that takes longer hangs: of the processor's time, which other work on the machine does not change."""
PATIENCE = 20
"""Times as long by the clock, after which the process is ended: it waits for something."""
BYTES = 1 << 30
"""What a case may take beside what its process had before."""
CEILING = 6 << 30
"""Address space that a worker may add: what asks for more is stopped before the machine suffers."""
LONGEST = 3000
"""Characters that a message to the user may have."""


@dataclass(frozen=True)
class Failure:
    """A case that ended wrongly: which one, how, and the last lines of its traceback."""

    reader: str
    seed: int
    index: int
    what: str
    trace: str = ""

    @property
    def kind(self) -> str:
        """What cases with the same cause have in common."""
        return f"{self.reader}: {self.what.splitlines()[0][:120]}"


def cases(readers: Sequence[str], count: int, start: int = 0) -> Iterator[tuple[str, int]]:
    """`count` cases, the readers in turn."""
    return ((readers[index % len(readers)], index // len(readers)) for index in range(start, start + count))


def run(readers: Sequence[str], count: int, seed: int) -> Iterator[Failure | None]:
    """Every case's failure, None for one that ended well: with a result, or refused in words."""
    todo = list(cases(readers, count))
    at = 0
    while at < len(todo):
        for failure in _worker(todo[at:], seed):
            at += 1
            yield failure


def _worker(todo: Sequence[tuple[str, int]], seed: int) -> Iterator[Failure | None]:
    """Results of one process, until all is done or the process had to be ended."""
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, todo, seed), daemon=True)
    process.start()
    there.close()
    started, hangs = False, f"no end within {SECONDS:g} seconds"
    try:
        for reader, index in todo:
            try:
                if not here.poll(SECONDS * PATIENCE * (1 if started else 4)):
                    yield Failure(reader, seed, index, hangs)
                    return
                while (answer := here.recv()) == "ready":
                    started = True
                    if not here.poll(SECONDS * PATIENCE):
                        yield Failure(reader, seed, index, hangs)
                        return
                yield answer
            except EOFError:
                process.join()
                yield Failure(reader, seed, index, f"the process died: {process.exitcode}")
                return
    finally:
        process.kill()
        process.join()
        here.close()


def _work(answers: Connection, todo: Sequence[tuple[str, int]], seed: int) -> None:
    import torch

    from tests.fuzz.readers import READERS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _limit_memory()
    with tempfile.TemporaryDirectory() as made:
        base = Path(made) / "base"
        base.mkdir()
        answers.send("ready")
        for reader, index in todo:
            with tempfile.TemporaryDirectory(dir=made) as folder:
                answers.send(one(READERS[reader], reader, seed, index, base, Path(folder)))


def one(case, reader: str, seed: int, index: int, base: Path, folder: Path) -> Failure | None:
    """Run a case; the same numbers make the same case."""
    from trellis_core.errors import TrellisError

    before, start = _forget_peak(), time.process_time()
    try:
        case(Random(f"{seed} {reader} {index}"), base, folder)
    except TrellisError as error:
        wrong = _unfit(str(error))
        if wrong:
            return Failure(reader, seed, index, wrong, _trace())
    except Exception as error:
        return Failure(reader, seed, index, f"{type(error).__name__}: {error!s:.300}", _trace())
    taken = _peak() - before
    if taken > BYTES:
        return Failure(reader, seed, index, f"took {taken / 1e9:.1f} GB")
    if (spent := time.process_time() - start) > SECONDS:
        return Failure(reader, seed, index, f"took {spent:.0f} seconds")
    return None


def _unfit(message: str) -> str:
    """Why a message cannot be shown to a user; "" if it can."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return "a message with half a character"
    if not message.strip() or len(message) > LONGEST:
        return f"a message of {len(message)} characters: {message[:200]}"
    return ""


def _trace() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-14:])


def _limit_memory() -> None:
    if Path("/proc/self/statm").exists():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + CEILING, size + CEILING))


def _forget_peak() -> int:
    """Start to watch the largest memory anew, where the system can; returns what is taken now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name + ":")), 0)
