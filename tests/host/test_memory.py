"""What many prompts in a row leave behind."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .conftest import Host, find, workflow

PROMPTS = 30
SETTLED = 3
"""Prompts after which everything that is kept has been read."""
GROWTH = 30 * 2**20


def _resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_memory_does_not_grow_with_prompts(host: Host) -> None:
    node = find(workflow("one_node"), "Generate")
    sizes = []
    for number in range(PROMPTS):
        outcome = host.client.run(workflow("one_node", **{f"n{node}_seed": 1000 + number}))
        assert outcome.how == "success", outcome.message()
        sizes.append(_resident(host.process))
    after = [f"{size / 2**20:.0f}" for size in sizes]
    print("MiB after each prompt:", " ".join(after))
    # The allocator's own sawtooth is as large as the growth looked for, but it comes back: medians see growth alone.
    settled = sizes[SETTLED:]
    assert median(settled[-9:]) - median(settled[:9]) < GROWTH, after
