"""Rasterising triangles in texture space: exact spans per texel row, in face order (spec F 2c). CPU and GPU alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import QUIET, RunContext

_SPANS = 1 << 20
"""Rows of triangles worked on at once; bounds the memory to some hundred megabytes."""
_TEXELS = 1 << 16
"""Texels worked on at once: few enough to stay in the processor's cache."""
_NEEDLE = 1e-3
"""Texels of height under which a triangle has one value all over."""


@dataclass(frozen=True)
class Texels:
    """Texels whose centres triangles cover: row-major number int64 [K] and face int64 [K]."""

    number: Tensor
    face: Tensor


def rasterise(corners: Tensor, size: int, ctx: RunContext = QUIET) -> Iterator[Texels]:
    """Yield the texels that triangles cover, some at a time, in face order.

    A texel belongs to a triangle if its centre (column + 0.5, row + 0.5) lies inside. Spans are half open and both
    triangles at an edge compute it alike, so texels on shared edges are covered exactly once.

    Args:
        corners: float32 [F, 3, 2] texel coordinates (column, row).
        size: texels along a side; what lies outside is left out.
        ctx: told the progress.
    """
    if not len(corners):
        return
    by_row = corners.gather(1, corners[..., 1].argsort(dim=1)[..., None].expand(-1, -1, 2))
    first = torch.ceil(by_row[:, 0, 1] - 0.5).clamp(0, size)
    rows = (torch.ceil(by_row[:, 2, 1] - 0.5).clamp(0, size) - first).long()
    ends = rows.cumsum(0)
    done = 0
    while done < len(corners):
        ctx.report(done / len(corners))
        before = int(ends[done - 1]) if done else 0
        stop = max(int(torch.searchsorted(ends, before + _SPANS, right=True)), done + 1)
        yield _spans(by_row[done:stop], first[done:stop], rows[done:stop], done, size)
        done = stop
    ctx.report(1.0)


def _spans(by_row: Tensor, first: Tensor, rows: Tensor, offset: int, size: int) -> Texels:
    tri, nth = _ragged(rows)
    row = first[tri] + nth
    centre = row + 0.5
    low, middle, high = by_row.unbind(1)
    upper = centre < middle[tri, 1]
    long = _crossing(low, high, tri, centre)
    short = torch.where(upper, _crossing(low, middle, tri, centre), _crossing(middle, high, tri, centre))
    begin = torch.ceil(torch.minimum(long, short) - 0.5).clamp_(0, size)
    end = torch.ceil(torch.maximum(long, short) - 0.5).clamp_(0, size)
    span, step = _ragged((end - begin).long())
    number = (row.long() * size + begin.long())[span] + step
    return Texels(number, tri[span] + offset)


def _crossing(a: Tensor, b: Tensor, tri: Tensor, y: Tensor) -> Tensor:
    """Column where the line from a to b (float32 [F, 2], a above) crosses row height y [N] of triangle tri [N]."""
    slope = (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1]).clamp_min(1e-12)
    return a[tri, 0] + (y - a[tri, 1]) * slope[tri]


def _ragged(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Like `ragged.ragged`, for tensors."""
    row = torch.repeat_interleave(counts)
    return row, torch.arange(len(row), device=counts.device) - (counts.cumsum(0) - counts)[row]


class Interpolator:
    """Values at texel centres from values at the corners of their triangles, by one affine map per triangle.

    Args:
        corners: float32 [F, 3, 2] texel coordinates, as rasterised.
        values: float32 [F, 3, C] at the corners.
    """

    def __init__(self, corners: Tensor, values: Tensor) -> None:
        origin, *others = corners.permute(1, 2, 0).contiguous()  # the long axis last: sums over short ones are slow
        base, *ends = values.permute(1, 2, 0).contiguous()
        a, b = (other - origin for other in others)
        p, q = (end - base for end in ends)
        cross = a[0] * b[1] - a[1] * b[0]
        longest = torch.stack([(edge * edge).sum(0) for edge in (a, b, b - a)]).amax(0)
        needle = cross.square() <= _NEEDLE**2 * longest  # rounding would throw its values far out
        inverse = torch.where(needle, 0.0, 1 / cross)
        along_column, along_row = (p * b[1] - q * a[1]) * inverse, (q * a[0] - p * b[0]) * inverse
        base = torch.where(needle, base + (p + q) / 3, base)
        # All that a texel needs lies together: one gather instead of four.
        self.maps = torch.cat([origin, base, along_column, along_row]).T.contiguous()
        self.channels = values.shape[2]

    def __call__(self, texels: Texels, size: int) -> Tensor:
        """Values float32 [K, C] at the centres of `texels` in an image of this size."""
        result = self.maps.new_empty(len(texels.number), self.channels)
        for start in range(0, len(result), _TEXELS):
            rows = slice(start, start + _TEXELS)
            number, maps = texels.number[rows], self.maps.index_select(0, texels.face[rows])
            row = torch.div(number, size, rounding_mode="floor")
            column, row = number - row * size + 0.5 - maps[:, 0], row + 0.5 - maps[:, 1]
            base, along_column, along_row = maps[:, 2:].split(self.channels, dim=1)
            torch.addcmul(base, along_column, column[:, None], out=result[rows]).addcmul_(along_row, row[:, None])
        return result
