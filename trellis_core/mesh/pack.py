"""Packing charts into a square atlas: a horizon ("tetris") packer on column profiles (spec F 2b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..run import QUIET, RunContext
from .ragged import ragged
from .topology import Array

_SHELVED = 0.05
"""The smallest charts, whose boxes take this share of the atlas, stand in rows; only the others are fitted one by one."""
_TALLEST = 48
"""Texels of the largest chart that may stand in a row."""
_FITTED = 10_000
"""The largest charts, of which no more than these are fitted one by one."""
_FILL = 0.62
"""Share of the atlas that charts usually reach; the first guess of the scale."""
_TRIES = 4
_ENOUGH = 0.98
"""Share of the atlas's height that ends the search for the scale."""
_TURN_SHARE = 80
"""Charts of at least this part of the atlas's side are also tried turned."""


@dataclass(frozen=True)
class _Outlines:
    """Charts without a place: points [W, 2] and chart [W] of each, rim edges [B, 2] into them; box [C, 2] per chart."""

    points: Array
    owner: Array
    rim: Array
    box: Array

    def sideways(self) -> _Outlines:
        """All charts turned by 90 degrees."""
        x, y = self.points.T
        turned = np.stack([self.box[self.owner, 1] - y, x], axis=1)
        return _Outlines(turned, self.owner, self.rim, self.box[:, ::-1])


@dataclass(frozen=True)
class _Layout:
    """Corner [C, 2] of each chart in whole texels, its pose (0, 180, 90, 270 degrees), and the height used."""

    corner: Array
    pose: Array
    height: int


def pack_charts(
    points: Array,
    owner: Array,
    rim: Array,
    size: int,
    padding: int = 2,
    ctx: RunContext = QUIET,
    first_scale: float | None = None,
) -> tuple[Array, float]:
    """Scale all charts alike, as large as fits, and place them without overlap; they may turn by quarters.

    Args:
        points: float64 [W, 2] in any common unit, each chart's bounding box starting at (0, 0).
        owner: int64 [W] chart of each point, sorted, all of 0..C-1 present.
        rim: int [B, 2] outline edges as indices of points.
        size: texels along a side of the atlas.
        padding: texels kept free between charts.
        ctx: told the progress.
        first_scale: texels per unit of which it is known that nearly the same charts fit: taken if these fit too.

    Returns:
        (texel coordinates float64 [W, 2] in 0..size, texels per unit).

    Raises:
        InputError: not even charts of one texel each would fit.
    """
    count = int(owner[-1]) + 1
    box = np.maximum.reduceat(points, np.searchsorted(owner, np.arange(count)))
    room = size - 2 * _margin(padding)
    if count * (1 + padding) ** 2 > room * room:
        raise InputError(f"A texture of {size} texels is too small for {count} charts; take a larger texture_size.")
    a, b = points[rim[:, 0]], points[rim[:, 1]]
    area = abs((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / 2
    most = (room - 1) / box.max().clip(1e-12)  # no chart may be larger than the atlas
    scale = min(first_scale or room * np.sqrt(_FILL / max(area, 1e-30)), most)
    outlines = _Outlines(points, owner, rim, box)
    fits, fails, best = 0.0, np.inf, None
    for attempt in range(40):
        layout = _place(outlines, scale, size, padding, ctx.part(attempt / 40, (attempt + 1) / 40, "pack"))
        if layout.height <= room:
            fits, best = scale, layout
        else:
            fails = scale
        if best is not None and (attempt + 1 >= _TRIES or fits in (most, first_scale) or best.height >= _ENOUGH * room):
            break
        guess = min(scale * np.sqrt(room / layout.height) * 0.998, most)
        scale = guess if fits < guess < fails else (fits + fails) / 2 if fits else scale * 0.9
    if best is None:
        raise InputError(f"A texture of {size} texels is too small for {count} charts; take a larger texture_size.")
    pose = best.pose[owner][:, None]
    extent = np.maximum(np.ceil(box * fits), 1)[owner]
    placed = np.where(pose >= 2, outlines.sideways().points, points) * fits
    placed = np.where(pose % 2 == 1, np.where(pose >= 2, extent[:, ::-1], extent) - placed, placed)
    return placed + best.corner[owner], fits


def _margin(padding: int) -> int:
    """Free texels along the border of the atlas."""
    return max(1, padding // 2)


def _place(outlines: _Outlines, scale: float, size: int, padding: int, ctx: RunContext) -> _Layout:
    """Place every chart at this scale, however high it gets."""
    extent = np.maximum(np.ceil(outlines.box * scale), 1).astype(np.int64)
    corner = np.zeros((len(extent), 2), np.int64)
    pose = np.zeros(len(extent), np.int64)
    margin = _margin(padding)
    largest = extent.max(1)
    by_size = np.argsort(largest, kind="stable")
    boxes = (extent[by_size] + padding).prod(1).cumsum()
    small = (boxes <= _SHELVED * size * size) & (largest[by_size] <= _TALLEST) | (largest[by_size] <= 2)
    small[: max(len(small) - _FITTED, 0)] = True
    shelved = by_size[small]
    base = _shelve(shelved, extent, size - 2 * margin, padding, corner, pose)
    poses = [_Pose.of(outlines, scale, extent, padding), _Pose.of(outlines.sideways(), scale, extent[:, ::-1], padding)]
    skyline = np.full(size - 2 * margin + 2 * padding, base, np.int32)  # with `padding` columns more on both sides
    inner = skyline[padding : len(skyline) - padding]
    fitted = np.ones(len(extent), bool)
    fitted[shelved] = False
    big = np.flatnonzero(fitted)
    big = big[np.lexsort((big, -extent[big, 1]))]
    for nth, chart in enumerate(big):
        if nth % 64 == 0:
            ctx.report(nth / len(big))
        options = []
        for turn in range(4 if largest[chart] * _TURN_SHARE >= size else 1):  # 0, 180, 90 and 270 degrees
            bottom, roof, height = poses[turn // 2].outline(chart, padding, turn % 2 == 1)
            options.append((*_lowest(inner, bottom, height), turn, roof))
        _, x, y, pose[chart], roof = min(options, key=lambda option: option[0])
        corner[chart] = x, y
        window = skyline[x : x + len(roof)]
        np.maximum(window, y + roof, out=window)
    return _Layout(corner + margin, pose, int(skyline.max()) - padding)


def _shelve(charts: Array, extent: Array, width: int, padding: int, corner: Array, pose: Array) -> int:
    """Stand small charts in rows of falling height, lying ones upright; fills in `corner` and `pose`, returns the height."""
    if not len(charts):
        return 0
    tall, wide = extent[charts].max(1), extent[charts].min(1) + padding
    pose[charts] = np.where(extent[charts, 0] > extent[charts, 1], 2, 0)
    order = np.lexsort((charts, wide, -tall))
    charts, tall, wide = charts[order], tall[order], wide[order]
    start = np.cumsum(wide) - wide
    row, corner[charts, 0] = np.divmod(start, width + padding - int(wide.max()) + 1)  # a row's last chart fits behind
    opens = np.unique(row, return_index=True)[1]
    below = np.cumsum(tall[opens] + padding)
    corner[charts, 1] = (below - tall[opens] - padding)[np.searchsorted(opens, np.arange(len(row)), side="right") - 1]
    return int(below[-1])


def _lowest(skyline: Array, bottom: Array, height: int) -> tuple[float, int, int]:
    """The best place for a chart with this lower profile: (score, first column, its height there).

    The score, less is better, is the height that its top reaches plus the mean height of what it shuts in below.
    A coarse search over every 16th part of the chart's width is refined around its best column.
    """
    width = len(bottom)
    count = len(skyline) - width + 1
    positions = np.ndarray((count, width), skyline.dtype, skyline, 0, skyline.strides * 2)  # every window, as a view
    below = np.empty(len(skyline) + 1)
    below[0] = 0
    skyline.cumsum(out=below[1:])
    filled = (below[width:] - below[:-width] - bottom.sum()) / width

    def search(begin: int, end: int, step: int) -> tuple[float, int, int]:
        level = (positions[begin:end:step] - bottom).max(1)
        score = 2 * level - filled[begin:end:step]
        best = int(score.argmin())
        return float(score[best]) + height, begin + best * step, int(level[best])

    step = max(1, width // 16)
    coarse = search(0, count, step)
    return coarse if step == 1 else search(max(coarse[1] - step + 1, 0), coarse[1] + step, 1)


@dataclass(frozen=True)
class _Pose:
    """All charts upright, or all lying on their side: lowest and highest texel of every column, one chart after another.

    A chart takes its width + 2 * padding columns from `first` on; `bottom` and `top` are those of the chart itself,
    `floor` and `roof` of the chart grown by the padding on all sides.
    """

    bottom: Array
    top: Array
    floor: Array
    roof: Array
    first: Array
    extent: Array

    def outline(self, chart: int, padding: int, half_turn: bool) -> tuple[Array, Array, int]:
        """(lowest texel of each column, top of the grown chart in its wider columns, height), turned by 180 degrees or not."""
        width, height = self.extent[chart]
        wide = slice(self.first[chart], self.first[chart] + width + 2 * padding)
        core = slice(wide.start + padding, wide.stop - padding)
        if half_turn:
            return height - self.top[core][::-1], height - self.floor[wide][::-1], height
        return self.bottom[core], self.roof[wide], height

    @classmethod
    def of(cls, outlines: _Outlines, scale: float, extent: Array, padding: int) -> _Pose:
        width = extent[:, 0] + 2 * padding
        first = np.cumsum(width) - width
        a, b = (outlines.points[outlines.rim[:, k]] * scale for k in range(2))
        chart = outlines.owner[outlines.rim[:, 0]]
        swap = (a[:, 0] > b[:, 0])[:, None]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        last = extent[chart, 0] - 1
        begin = np.minimum(np.floor(a[:, 0]).astype(np.int64), last)
        end = np.clip(np.ceil(b[:, 0]).astype(np.int64) - 1, begin, last)
        edge, step = ragged(end - begin + 1)
        column = begin[edge] + step
        slope = (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0]).clip(1e-12)
        low, high = np.minimum(a[:, 1], b[:, 1])[edge], np.maximum(a[:, 1], b[:, 1])[edge]
        left, right = (
            (a[edge, 1] + slope[edge] * (x - a[edge, 0])).clip(low, high)
            for x in (np.maximum(column, a[edge, 0]), np.minimum(column + 1, b[edge, 0]))
        )
        upright = (b[:, 0] - a[:, 0] < 1e-9)[edge]
        low, high = np.where(upright, low, np.minimum(left, right)), np.where(upright, high, np.maximum(left, right))
        place = first[chart[edge]] + padding + column
        bottom = np.full(int(width.sum()), 1 << 28, np.int32)
        top = np.full(len(bottom), -(1 << 28), np.int32)
        np.minimum.at(bottom, place, np.floor(low + 1e-6).astype(np.int32))
        np.maximum.at(top, place, np.ceil(high - 1e-6).astype(np.int32))
        floor, roof = bottom.copy(), top.copy()
        for shift in range(1, padding + 1):
            floor[shift:] = np.minimum(floor[shift:], bottom[:-shift])
            floor[:-shift] = np.minimum(floor[:-shift], bottom[shift:])
            roof[shift:] = np.maximum(roof[shift:], top[:-shift])
            roof[:-shift] = np.maximum(roof[:-shift], top[shift:])
        return cls(bottom, top, floor - padding, roof + padding, first, extent)
