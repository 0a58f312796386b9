"""What the exact shortcuts save: `python -m tests.benchmarks.shortcuts [--golden DIR]`.

Twelve guided steps of a sampler, in turn the plain way (the network called anew for each branch of each step: keys and
values, modulation, rotary phases, both branches) and the way that is taken, in one process. CPU-seconds, medians; and how
far apart the results are, beside the largest number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trellis_core.flow.prepared import prepare_slat
from trellis_core.flow.sampler import SamplerParams, flow_schedule, sample

from .flow_cases import FlowCase, golden, mini, of_width

USUAL = SamplerParams(12, 7.5, 0.5, (0.6, 1.0), 3.0)


def plain(case: FlowCase) -> Tensor:
    """As the method reads on paper."""
    call = lambda x, t, cond: case.model(x, case.coords, t, cond, case.known)  # noqa: E731
    return sample(call, case.rows, USUAL, cond=case.cond, neg=torch.zeros_like(case.cond), sample_rows=case.coords[:, 0].long())


def taken(case: FlowCase) -> Tensor:
    """With all shortcuts, getting ready included."""
    times = flow_schedule(USUAL.steps, USUAL.rescale_t)
    ready = prepare_slat(case.model, case.coords, case.cond, times, case.known)
    rows = case.coords[:, 0].long()
    return sample(ready, case.rows, USUAL, cond=ready.cond, neg=ready.neg, both=ready.both, sample_rows=rows)


def seconds(work: Callable[[FlowCase], Tensor], case: FlowCase) -> float:
    started = time.process_time()
    work(case)
    return time.process_time() - started


def measure(case: FlowCase, repeats: int) -> float:
    """Print a row; how many times as fast the way that is taken is."""
    difference = float((plain(case) - taken(case)).abs().max() / plain(case).abs().max())
    pairs = [(seconds(plain, case), seconds(taken, case)) for _ in range(repeats)]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{case.name:36} {slow:8.3f} {fast:8.3f} {slow / fast:7.2f} {difference:11.1e}", flush=True)
    return slow / fast


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="folder with golden cases; without, a network of their size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=512, help="of the wide network")
    options = parser.parse_args(argv)
    print(f"{'network':36} {'plain':>8} {'taken':>8} {'ratio':>7} {'difference':>11}")
    for case in (mini(), *golden(options.golden), of_width(options.width, 2, 384, 1029)):
        measure(case, options.repeats)


if __name__ == "__main__":
    main()
