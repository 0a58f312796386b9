"""Rasterising triangles in texture space: exact spans per texel row, in face order (docs/method/mesh.md). CPU and GPU alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import QUIET, RunContext

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


def rasterise(corners: Tensor, size: int, ctx: RunContext = QUIET, height: int | None = None) -> Iterator[Texels]:
    """Yield the texels that triangles cover, some at a time, in face order.

    A texel belongs to a triangle if its centre (column + 0.5, row + 0.5) lies inside. Spans are half open and both
    triangles at an edge compute it alike, so texels on shared edges are covered exactly once.

    Args:
        corners: float32 [F, 3, 2] texel coordinates (column, row).
        size: texels along a side; what lies outside is left out.
        ctx: told the progress.
        height: rows, if they are not as many as the columns.
    """
    height = height or size
    if not len(corners):
        return
    by_row = corners.gather(1, corners[..., 1].argsort(dim=1)[..., None].expand(-1, -1, 2))
    low, middle, high = by_row.unbind(1)
    lines = [_line(low, high), torch.stack([_line(low, middle), _line(middle, high)], dim=1).view(-1, 3)]
    first = torch.ceil(low[:, 1] - 0.5).clamp(0, height)
    rows = (torch.ceil(high[:, 1] - 0.5).clamp(0, height) - first).long()
    ends = rows.cumsum(0)
    done = 0
    while done < len(corners):
        ctx.report(done / len(corners))
        before = int(ends[done - 1]) if done else 0
        stop = max(int(torch.searchsorted(ends, before + _SPANS, right=True)), done + 1)
        some = slice(done, stop)
        yield _spans(lines[0][some], lines[1][2 * done : 2 * stop], middle[some, 1], first[some], rows[some], done, size)
        done = stop
    ctx.report(1.0)


def _line(a: Tensor, b: Tensor) -> Tensor:
    """Of lines from a to b, float32 [F, 2] with a above: column and row of a, columns per row [F, 3]."""
    slope = (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1]).clamp_min(1e-12)
    return torch.cat([a, slope[:, None]], dim=1)


def _spans(long: Tensor, short: Tensor, middle: Tensor, first: Tensor, rows: Tensor, offset: int, size: int) -> Texels:
    """Texels of triangles [F] between their longest side [F, 3] and the others [2 F, 3], which meet at row `middle` [F]."""
    tri, row = _ragged(rows, first)
    centre = row + 0.5
    other = 2 * tri + (centre >= middle.index_select(0, tri))
    left, right = _crossing(long.index_select(0, tri), centre), _crossing(short.index_select(0, other), centre)
    begin = torch.ceil(torch.minimum(left, right) - 0.5).clamp_(0, size)
    count = (torch.ceil(torch.maximum(left, right) - 0.5).clamp_(0, size) - begin).long()
    number = _ragged(count, row.long() * size + begin.long())[1]
    return Texels(number, torch.repeat_interleave(tri + offset, count))


def _crossing(line: Tensor, y: Tensor) -> Tensor:
    """Column [N] where lines [N, 3] cross row heights y [N]."""
    return line[:, 0] + (y - line[:, 1]) * line[:, 2]


def _ragged(counts: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """For rows with `counts` [N] items that are numbered from `first` [N] on: row and number of every item."""
    row = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return row, torch.arange(len(row), device=counts.device) + (first - before).index_select(0, row)


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
