"""Where the lines of a regular grid pierce triangles (docs/method/mesh.md): the rule that decides which voxels are active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..context import QUIET, RunContext

_TRIANGLES = 1 << 16
_ROWS = 1 << 19
_CROSSINGS = 1 << 19


@dataclass(frozen=True)
class Crossings:
    """A batch of K piercings, in the order triangle, line direction, row, column.

    Attributes:
        triangle: int64 [K].
        axis: int64 [K], direction c of the grid line; a = (c+1) % 3 and b = (c+2) % 3 are the axes across it.
        voxel: int64 [K, 3], of the four voxels around the grid edge the one with the smallest coordinates.
        point: float32 [K, 3], in the units of the triangles.
    """

    triangle: Tensor
    axis: Tensor
    voxel: Tensor
    point: Tensor


def grid_crossings(
    triangles: Tensor, voxel_size: Tensor, grid_size: int, ctx: RunContext = QUIET, axes: tuple[int, ...] = (0, 1, 2)
) -> Iterator[Crossings]:
    """All piercings of grid lines, in batches of bounded size.

    Args:
        triangles: float32 [T, 3, 3], corners relative to the low corner of the grid.
        voxel_size: float32 [3].
        grid_size: voxels per axis.
        axes: directions of the lines to look at.
    """
    for start in range(0, len(triangles), _TRIANGLES):
        ctx.report(start / len(triangles))
        chunk = triangles[start : start + _TRIANGLES]
        for batch in _chunk_crossings(chunk, voxel_size, grid_size, axes, ctx):
            yield Crossings(batch.triangle + start, batch.axis, batch.voxel, batch.point)


def split_by_count(counts: Tensor, limit: int) -> Iterator[slice]:
    """Consecutive slices of `counts` whose sums stay within `limit`, at least one entry each."""
    total = counts.cumsum(0)
    start, done = 0, 0
    while start < len(counts):
        stop = max(int(torch.searchsorted(total, done + limit, right=True)), start + 1)
        yield slice(start, stop)
        start, done = stop, int(total[stop - 1])


def spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat entry i `counts[i]` times: (entry, 0-based place among its repeats), both int64 [sum of counts]."""
    entry = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return entry, torch.arange(len(entry), device=counts.device) - first[entry]


def _chunk_crossings(
    triangles: Tensor, voxel_size: Tensor, grid_size: int, axes: tuple[int, ...], ctx: RunContext
) -> Iterator[Crossings]:
    """One entry a (triangle, axis): sorted along b into rows, each row a span of columns along a, each column one depth c."""
    directions = torch.tensor(axes, device=triangles.device)
    across = torch.stack([(directions + 1) % 3, (directions + 2) % 3, directions], 1)
    corners = triangles.double()[:, :, across].transpose(1, 2).reshape(-1, 3, 3)  # [entry, corner, (a, b, c)]
    order = corners[:, :, 1].sort(dim=1, stable=True).indices
    corners = corners.gather(1, order[:, :, None].expand(-1, -1, 3))
    axis = directions.repeat(len(triangles))
    size = voxel_size[across].repeat(len(triangles), 1)  # float32 [entry, (a, b, c)]
    cell = _cell(corners[:, :, 1], size[:, 1:2], grid_size)
    rows = cell[:, 2] - cell[:, 0]
    for part in split_by_count(rows, _ROWS):
        entry, row = spread(rows[part])
        entry = entry + part.start
        row = row + cell[entry, 0]
        low, high = _span(corners[entry], row < cell[entry, 1], (row + 1) * size[entry, 1])
        column = _cell(low[:, 0], size[entry, 0], grid_size)
        columns = (_cell(high[:, 0], size[entry, 0], grid_size) - column).clamp_(min=0)
        for piece in split_by_count(columns, _CROSSINGS):
            ctx.check()
            span, place = spread(columns[piece])
            span = span + piece.start
            at = entry[span]
            x, y = column[span] + place, row[span]
            a, b = (x + 1) * size[at, 0], (y + 1) * size[at, 1]
            c = _between(low[span], high[span], a.double(), along=0)[:, 1]
            z = (c / size[at, 2]).trunc().long()
            inside = (z >= 0) & (z < grid_size)
            back = torch.stack([(2 - axis[at]) % 3, (3 - axis[at]) % 3, (4 - axis[at]) % 3], 1)  # xyz's place in (a, b, c)
            voxel = torch.stack([x, y, z], 1).gather(1, back)
            point = torch.stack([a, b, c.float()], 1).gather(1, back)
            yield Crossings((at // len(axes))[inside], axis[at][inside], voxel[inside], point[inside])


def _cell(position: Tensor, size: Tensor, grid_size: int) -> Tensor:
    return (position / size).trunc().long().clamp_(0, grid_size - 1)


def _span(corners: Tensor, lower: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Ends (a, c), ordered along a, of the cut of triangles sorted along b with the line b = level."""
    lower = lower[:, None]
    apex = torch.where(lower, corners[:, 0], corners[:, 2])
    far = torch.where(lower, corners[:, 2], corners[:, 0])
    one = _between(apex, corners[:, 1], level.double(), along=1)[:, ::2]
    two = _between(apex, far, level.double(), along=1)[:, ::2]
    swap = (one[:, :1] > two[:, :1]).expand(-1, 2)
    return torch.where(swap, two, one), torch.where(swap, one, two)


def _between(start: Tensor, stop: Tensor, level: Tensor, along: int) -> Tensor:
    """The point of a segment whose coordinate `along` is `level`; the first end where the segment has no extent."""
    extent = stop[:, along] - start[:, along]
    t = torch.where(extent == 0, 0.0, (level - start[:, along]) / torch.where(extent == 0, 1.0, extent))
    return start + t[:, None] * (stop - start)
