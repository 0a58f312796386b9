"""What waiting threads cost: `python -m tests.benchmarks.threads [--busy N]`.

The command line's main job in new processes, in turn as it is started by default, with threads that wait without spinning
(OMP_WAIT_POLICY=passive), and with one thread; beside N other processes that want the processor. Seconds and processor
seconds, medians, and how much longer each takes than the best.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAYS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}, "one thread": {"OMP_NUM_THREADS": "1"}}
SPIN = "while True: pass"


def run(environment: dict[str, str], target: Path) -> tuple[float, float]:
    """Seconds, and seconds of all processors, of one model."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    picture = ROOT / "examples" / "photo_toadstool_cut.png"
    command = [sys.executable, "-m", "trellis_core", "generate", str(picture), "-o", str(target), "--seed", "42"]
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--texture-size", "1024"], env=clean | environment, cwd=ROOT, check=True, capture_output=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=0, help="processes beside it that never wait (default: 0)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.busy)]
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(options.rounds):
                for way, environment in WAYS.items():
                    taken[way].append(run(environment, Path(folder) / "model.glb"))
    finally:
        for other in others:
            other.kill()
    medians = {way: [statistics.median(column) for column in zip(*times, strict=True)] for way, times in taken.items()}
    best = min(seconds for seconds, _ in medians.values())
    for way, (seconds, work) in medians.items():
        print(f"{way:12} {seconds:6.1f} s  {work:6.1f} s of processors  {seconds / best:4.2f} x the best")


if __name__ == "__main__":
    main()
