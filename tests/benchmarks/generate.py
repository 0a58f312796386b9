"""Time and memory from a picture to a GLB: `python -m tests.benchmarks.generate [PICTURE] [generate's options]`.

Cold is a whole process of the command line, with imports and reading the picture and weights; warm is a second run in one
process. Wall-clock seconds, minimum and median; peak memory is the resident set of the cold process. Linux and macOS.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).parents[2]
EXAMPLE = HOME / "examples" / "icon_tree.png"
RUNS = 5
KILO = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in


def cold(call: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak bytes of one process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "trellis_core", *call], cwd=HOME, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"generate failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * KILO


def warm(call: Sequence[str], runs: int) -> list[float]:
    """Seconds of each of `runs` runs after a first one, in this process."""
    from trellis_core.cli.main import main

    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        if main(call):
            raise SystemExit("generate failed")
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main(arguments: Sequence[str]) -> None:
    picture, *options = arguments or [str(EXAMPLE)]
    with tempfile.TemporaryDirectory() as folder:
        call = ["generate", str(Path(picture).resolve()), "-o", str(Path(folder, "out.glb")), "--seed", "1", *options]
        processes = [cold(call) for _ in range(RUNS)]
        repeats = warm(call, RUNS)
    for name, seconds in (("cold", [s for s, _ in processes]), ("warm", repeats)):
        print(f"{name}  {min(seconds):6.2f} s minimum, {statistics.median(seconds):6.2f} s median of {RUNS}")
    print(f"peak  {max(size for _, size in processes) / 1e9:6.2f} GB on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main(sys.argv[1:])
