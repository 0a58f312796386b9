"""Coordinates of sparse voxels, and the 64-bit keys that order them.

A coordinate row is int32 (sample, x, y, z). Rows of one sample are contiguous and samples appear in order 0..B-1
(docs/method/index.md). Features are plain tensors, row for row on such coordinates; neighbour maps and resampling plans are
passed by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXIS_BITS = 16
"""Bits a packed key spends on each of x, y and z; the sample index has the rest."""


def pack_keys(coords: Tensor) -> Tensor:
    """int64 [N] keys of coords [N, 4] that sort like the rows, lexicographically (sample, x, y, z).

    Every coordinate is stored plus one, so that the key of a neighbour one cell outside the grid never runs into
    another row's field. Coordinates must lie in 0..65533, samples in 0..32767.
    """
    sample, x, y, z = coords.long().unbind(1)
    return ((((sample << AXIS_BITS) + x + 1 << AXIS_BITS) + y + 1) << AXIS_BITS) + z + 1


def unpack_keys(keys: Tensor) -> Tensor:
    """coords int32 [N, 4] from the keys of `pack_keys`."""
    mask = (1 << AXIS_BITS) - 1
    x, y, z = ((keys >> shift & mask) - 1 for shift in (2 * AXIS_BITS, AXIS_BITS, 0))
    return torch.stack([keys >> 3 * AXIS_BITS, x, y, z], dim=1).int()


def unique_coords(coords: Tensor) -> Tensor:
    """Distinct rows of coords [N, 4] in lexicographic order, int32."""
    return unpack_keys(torch.unique(pack_keys(coords)))
