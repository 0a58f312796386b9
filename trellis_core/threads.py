"""How many threads PyTorch computes with. Its threads wait for each other by spinning: where the work between two waits is
short, or other programs want the processor too, more of them are slower, by far, and take twice the processor's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PARAMETERS_A_THREAD = 25_000_000
"""Numbers in a network that give one more thread enough to do: a matrix of a small network is done before others wake up."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """At most so many threads for this thread's tensors inside; afterwards as many as before."""
    before = torch.get_num_threads()
    wanted = max(1, min(count, before))
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(network: nn.Module) -> int:
    """Threads that a network has work for on a CPU."""
    return 1 + sum(parameter.numel() for parameter in network.parameters()) // PARAMETERS_A_THREAD
