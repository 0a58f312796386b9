"""What importing the library costs beyond PyTorch's own import: `python -m tests.benchmarks.import_time`.

Each statement runs in fresh processes, in turn with the others; CPU seconds of the statement alone.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

STATEMENTS = tuple(f"import trellis_core{room}" for room in ("", ".settings", ".stages", ".cli.generate"))
RUNS = 7
TIMED = "import time, torch; started = time.process_time(); {}; print(time.process_time() - started)"


def seconds(statement: str) -> float:
    code = TIMED.format(statement)
    home = Path(__file__).parents[2]
    return float(subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    runs = [[seconds(statement) for statement in STATEMENTS] for _ in range(RUNS)]
    for statement, times in zip(STATEMENTS, zip(*runs, strict=True), strict=True):
        print(f"{statement:<36} {min(times):.3f} s minimum, {statistics.median(times):.3f} s median of {RUNS}")


if __name__ == "__main__":
    main()
