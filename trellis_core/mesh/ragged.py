"""Rows of different lengths as flat arrays."""

from __future__ import annotations

import numpy as np

from .topology import Array


def ragged(counts: Array) -> tuple[Array, Array]:
    """For rows with `counts` [N] >= 0 items: the row and the place in its row of every item, both int64 [sum]."""
    counts = np.asarray(counts, np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
