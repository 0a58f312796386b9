"""Speed and memory of the submanifold convolution on one CPU thread, beside plain im2col and plain GEMM.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.sparse_conv [--large]

Voxels are a shell two to three cells thick, as a flexible dual grid activates them (about 15 of 27 neighbours exist).
Times are CPU seconds, medians of three, peers measured in turn in the same process. `useful` counts the
multiplications of neighbours that exist; `peak` is a GEMM [16384, C] x [C, C] of the same layer.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.sparse.conv import NeighborMap, submanifold_conv3d

SIZES = ((100_000, 32), (100_000, 64), (100_000, 128), (500_000, 64))
MAP_SIZES = (100_000, 500_000)
LARGE_MAP = 2_000_000
PLAIN_CHUNK = 1 << 30  # bytes of one patch matrix of the plain peer


def shell(rows: int) -> Tensor:
    """About `rows` voxels int32 [N, 4] of a spherical shell, in key order."""
    radius = math.sqrt(rows / (4 * math.pi * 1.6))
    size = 2 * math.ceil(radius + 2)
    axis = torch.arange(size) - size / 2 + 0.5
    slabs = []
    for x, offset in enumerate(axis):  # slab by slab: the dense cube of a large shell would not fit
        distance = (offset**2 + axis[:, None] ** 2 + axis[None] ** 2).sqrt()
        slabs.append(F.pad(((distance - radius).abs() < 0.8).nonzero(), (1, 0), value=x))
    return F.pad(torch.cat(slabs), (1, 0)).int()


def plain_im2col(feats: Tensor, weight: Tensor, bias: Tensor, nmap: NeighborMap) -> Tensor:
    """The textbook way: gather all 27 neighbours of many rows, zero the absent ones, one GEMM."""
    matrix = weight.flatten(1).t()
    step = max(1, PLAIN_CHUNK // (108 * feats.shape[1]))
    parts = []
    for index in nmap.table.t().split(step):
        patches = feats[index.clamp(min=0).long()] * (index >= 0)[..., None]
        parts.append(torch.addmm(bias, patches.flatten(1), matrix))
    return torch.cat(parts)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_growth(work: Callable[[], object]) -> float:
    """MB by which the largest resident size grows beyond what is resident before `work` (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory of earlier work would hide the growth
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


@torch.no_grad()
def convolution(rows: int, channels: int) -> str:
    nmap = NeighborMap.build(shell(rows))
    _ = nmap.blocks
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    layer = draw(nmap.rows, channels), draw(channels, 3, 3, 3, channels), draw(channels)
    left, right = draw(16384, channels), draw(channels, channels)
    torch.testing.assert_close(submanifold_conv3d(*layer, nmap), plain_im2col(*layer, nmap), atol=1e-3, rtol=1e-3)
    repeats = max(1, round(1e9 / left.numel() / channels))
    works = (
        lambda: submanifold_conv3d(*layer, nmap),
        lambda: plain_im2col(*layer, nmap),
        lambda: [left @ right for _ in range(repeats)],
    )
    ours, plain, gemm = (statistics.median(t) for t in zip(*[[cpu_seconds(w) for w in works] for _ in range(3)], strict=True))
    flops = 2.0 * channels * channels
    pairs = int((nmap.table >= 0).sum())
    rate, peak = flops * pairs / ours / 1e9, flops * len(left) * repeats / gemm / 1e9
    memory, plain_memory = peak_growth(works[0]), peak_growth(works[1])
    return (
        f"| {nmap.rows:>9} | {channels:>4} | {pairs / nmap.rows:5.2f} | {ours:7.3f} | {rate:6.1f} | {peak:6.1f} | "
        f"{rate / peak:6.0%} | {memory:6.0f} | {plain:7.3f} | {plain_memory:6.0f} | {plain / ours:5.2f} |"
    )


def neighbour_map(rows: int) -> str:
    coords = shell(rows)
    shuffled = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]
    works = (
        lambda: NeighborMap.build(coords),
        lambda: NeighborMap.build(coords).blocks,
        lambda: NeighborMap.build(shuffled),
    )
    times = (statistics.median(t) for t in zip(*[[cpu_seconds(w) for w in works] for _ in range(3)], strict=True))
    return f"| {len(coords):>9} | " + " | ".join(f"{t:7.3f}" for t in times) + f" | {peak_growth(works[1]):6.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also the neighbour map of two million voxels")
    large = parser.parse_args().large
    torch.set_num_threads(1)
    print("|         N |    C |  nbrs |   s     | GFLOP/s |  peak | useful |   MB   | im2col s | im2col MB | ratio |")
    for rows, channels in SIZES:
        print(convolution(rows, channels), flush=True)
    print("\n|         N | sorted  | +blocks | shuffled | MB     |")
    for rows in (*MAP_SIZES, *([LARGE_MAP] if large else [])):
        print(neighbour_map(rows), flush=True)


if __name__ == "__main__":
    main()
