"""`python -m tests.fuzz --cases 10000 --seed N`: damage every kind of file at random, read it, and list what ends wrongly.

Wrong is any error that is not the library's own, a case of more than 10 seconds, one that takes more than 1 GB beside what
the process had, and the end of the process. A case is made anew with `--only READER --index I --seed N`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.watch import one, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="over all readers together (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", choices=list(READERS), default=list(READERS), metavar="READER", help=", ".join(READERS)
    )
    parser.add_argument("--index", type=int, help="this case of the reader alone, in this process")
    options = parser.parse_args(arguments)
    if options.index is not None:
        return _again(options.only[0], options.seed, options.index)
    start, seen = time.monotonic(), Counter()
    for done, failure in enumerate(run(options.only, options.cases, options.seed), 1):
        if failure is not None:
            seen[failure.kind] += 1
            if seen[failure.kind] == 1:
                print(f"--only {failure.reader} --index {failure.index}: {failure.what}\n{failure.trace}", flush=True)
        if done % 1000 == 0:
            print(f"{done} cases, {sum(seen.values())} failures, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{options.cases} cases of {', '.join(options.only)} with seed {options.seed}: {sum(seen.values())} failures")
    for kind, count in seen.most_common():
        print(f"{count:6d}  {kind}")
    return 1 if seen else 0


def _again(reader: str, seed: int, index: int) -> int:
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder:
        failure = one(READERS[reader], reader, seed, index, Path(base), Path(folder))
    print(failure.what if failure else "ended well", failure.trace if failure else "", sep="\n")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
