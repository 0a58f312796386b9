"""Encoder of the two lossless codecs of EXT_meshopt_compression that triangle meshes need (version 0 of its bitstream).

Vertices: blocks of elements, each byte of an element its own channel, as zigzag differences to the element before, in groups
of 16 that take 0, 2, 4 or 8 bits a value. Indices: differences to the index before, as variable-length integers.
"""

from __future__ import annotations

import numpy as np

from ..mesh.ragged import ragged
from ..mesh.topology import Array

_GROUP = 16
_BITS = (0, 2, 4, 8)
_TAIL = 32
"""Least bytes behind the last block of a vertex stream."""


def encode_vertices(rows: Array) -> bytes:
    """Encode uint8 [N, stride], stride a multiple of 4 up to 256 (mode ATTRIBUTES)."""
    count, stride = rows.shape
    block = min((8192 // stride) & ~15, 256)
    before = np.concatenate([rows[:1], rows[:-1]])
    step = (rows - before).view(np.int8)
    zigzag = ((step << 1) ^ (step >> 7)).view(np.uint8)
    blocks = -(-count // block)
    groups = -(-block // _GROUP)
    padded = np.zeros((blocks * block, stride), np.uint8)
    padded[:count] = zigzag
    values = padded.reshape(blocks, groups, _GROUP, stride).transpose(0, 3, 1, 2)  # block, channel, group, value
    mode, sizes, payload = _groups(values.reshape(-1, _GROUP))

    # The last block is as short as its elements: its missing groups are left out, and so are their header bits.
    groups_of = np.full(blocks, groups)
    groups_of[-1] = -(-(count - (blocks - 1) * block) // _GROUP)
    present = (np.arange(groups) < groups_of[:, None])[:, None].repeat(stride, 1).reshape(-1)
    header_bytes = np.repeat(-(-groups_of // 4), stride)
    mode = np.where(present, mode, 0).reshape(-1, groups)
    crumbs = np.pad(mode, ((0, 0), (0, -groups % 4))).reshape(len(mode), -1, 4)
    headers = (crumbs << np.array([0, 2, 4, 6])).sum(2).astype(np.uint8)

    sizes = np.where(present, sizes, 0)
    data_of_channel = sizes.reshape(-1, groups).sum(1)
    lengths = np.stack([header_bytes, data_of_channel], axis=1).reshape(-1)
    out = np.empty(int(lengths.sum()), np.uint8)
    starts = (np.cumsum(lengths) - lengths).reshape(-1, 2)
    row, nth = ragged(header_bytes)
    out[starts[row, 0] + nth] = headers[row, nth]
    group, nth = ragged(sizes)
    inside = (np.cumsum(sizes) - sizes) - np.repeat(np.cumsum(data_of_channel) - data_of_channel, groups)
    out[(np.repeat(starts[:, 1], groups) + inside)[group] + nth] = payload[group, nth]
    return b"\xa0" + out.tobytes() + bytes(max(_TAIL - stride, 0)) + rows[0].tobytes()


def _groups(values: Array) -> tuple[Array, Array, Array]:
    """The shortest coding of groups uint8 [G, 16]: mode and bytes int64 [G], payload uint8 [G, 16] whose first bytes count."""
    nothing = np.where(values.any(1), 99, 0)
    short = [2 * bits + (values >= (1 << bits) - 1).sum(1) for bits in _BITS[1:3]]
    sizes = np.stack([nothing, *short, np.full(len(values), _GROUP)], axis=1)
    mode = sizes.argmin(1)
    payload = np.where((mode == 3)[:, None], values, 0).astype(np.uint8)
    for number, bits in enumerate(_BITS[1:3], start=1):
        rows = np.flatnonzero(mode == number)
        some = values[rows]
        sentinel = (1 << bits) - 1
        short = np.minimum(some, sentinel).reshape(len(rows), 2 * bits, 8 // bits)
        payload[rows, : 2 * bits] = (short << np.arange(8 - bits, -1, -bits, dtype=np.uint8)).sum(2)
        group, place = np.nonzero(some >= sentinel)
        nth = np.arange(len(group)) - np.searchsorted(group, group)
        payload[rows[group], 2 * bits + nth] = some[group, place]
    return mode, sizes[np.arange(len(mode)), mode], payload


def encode_indices(indices: Array) -> bytes:
    """Encode integers [N] in 0..2^31 (mode INDICES): each as its difference to the one before."""
    step = np.diff(indices.astype(np.int64), prepend=0)
    # The lowest bit names which of two running values the difference belongs to: always the first.
    code = (((step << 1) ^ (step >> 63)) << 1).astype(np.uint64)
    septets = np.stack([(code >> np.uint64(7 * k)) & np.uint64(127) for k in range(5)], axis=1).astype(np.uint8)
    length = np.sum([code >= np.uint64(1 << (7 * k)) for k in range(5)], axis=0, dtype=np.int64).clip(1)
    row, nth = ragged(length)
    more = np.where(nth + 1 < length[row], 128, 0).astype(np.uint8)
    return b"\xd1" + (septets[row, nth] | more).tobytes() + bytes(4)
