"""Which cut suits which convolution: a small table that ships, and how to measure a new one.

The choice depends on shapes alone and never on a measurement at run time: another cut adds up in another order, and the
same seed must give the same bytes on every run. `python -m tests.benchmarks.gpu --tune` measures and prints a table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from .tiles import Tiling, shared_memory

CANDIDATES = tuple(
    Tiling(rows, columns, depth, warps, stages)
    for rows, columns, warps in (
        (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4),
    )
    for depth in (32, 64)
    for stages in (3, 5, 7)
)  # fmt: skip
"""What `fastest` tries."""

TABLE: dict[tuple[int, int, int], Tiling] = {
    (2, 1024, 1024): Tiling(128, 128, 64, 8, 5),
    (2, 1024, 4096): Tiling(128, 256, 64, 8, 5),
    (2, 512, 512): Tiling(128, 128, 64, 8, 5),
    (2, 512, 2048): Tiling(128, 256, 64, 8, 5),
    (2, 256, 256): Tiling(128, 128, 64, 8, 5),
    (2, 256, 1024): Tiling(128, 256, 64, 8, 5),
    (2, 128, 128): Tiling(128, 128, 64, 8, 5),
    (2, 128, 512): Tiling(128, 256, 64, 8, 5),
    (2, 64, 64): Tiling(128, 64, 64, 4, 5),
}
"""(bytes of the dtype, input channels, output channels) -> cut, for the layers of the published decoders on an H100-class
GPU. Set by the sizes of its shared memory and registers; no GPU was at hand to measure it."""

SMALL = Tiling(64, 32, 32, 4, 3)


def choose(x: Tensor, inputs: int, outputs: int) -> Tiling:
    """The cut for x on its GPU: that of the table, or one by size; made smaller until the GPU's shared memory holds it."""
    index = 0 if x.device.type != "cuda" else x.device.index or 0
    limit = shared_memory(index) if x.device.type == "cuda" else 1 << 20
    return _choose(x.dtype.itemsize, inputs, outputs, limit)


@cache
def _choose(itemsize: int, inputs: int, outputs: int, limit: int) -> Tiling:
    config = TABLE.get((itemsize, inputs, outputs)) or _by_size(itemsize, inputs, outputs)
    while config.shared_bytes(itemsize) > limit:
        config = _smaller(config)
    return config


def _by_size(itemsize: int, inputs: int, outputs: int) -> Tiling:
    columns = min(128, max(16, 1 << (outputs - 1).bit_length()))
    depth = min(64 if itemsize == 2 else 32, max(16, 1 << (inputs - 1).bit_length()))
    return Tiling(128 if columns >= 64 else 64, columns, depth, 8 if columns == 128 else 4, 5)


def _smaller(config: Tiling) -> Tiling:
    """Fewer stages first, they only hide waiting; then fewer columns and rows."""
    if config.stages > 3:
        return Tiling(config.rows, config.columns, config.depth, config.warps, config.stages - 2)
    if config.columns > 64:
        return Tiling(config.rows, config.columns // 2, config.depth, 4, config.stages)
    return SMALL


def fastest(measure: Callable[[Tiling], float], itemsize: int, limit: int) -> tuple[Tiling, float]:
    """The candidate with the least time, in the unit of `measure`; those that do not fit or do not compile are left out."""
    found: list[tuple[float, Tiling]] = []
    for config in CANDIDATES:
        if config.shared_bytes(itemsize) <= limit:
            try:
                found.append((measure(config), config))
            except Exception:  # compilers refuse in many ways, and another cut will do
                continue
    time, config = min(found, key=lambda pair: pair[0])
    return config, time
