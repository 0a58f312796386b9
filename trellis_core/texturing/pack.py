"""Packing charts into a square atlas: a horizon ("tetris") packer on column profiles (docs/method/mesh.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..context import QUIET, RunContext
from ..errors import InputError
from ..mesh.ragged import ragged
from ..mesh.topology import Array

_SHELVED = 0.05
"""The smallest charts, whose boxes take this share of the atlas, stand in rows; only the others are fitted one by one."""
_TALLEST = 48
"""Texels of the largest chart that may stand in a row."""
_FITTED = 10_000
"""The largest charts, of which no more than these are fitted one by one."""
_FILL = 0.62
"""Share of the atlas that charts usually reach; the first guess of the scale."""
_TRIES, _CHEAP = 4, 600
"""Scales to try at least; the fewer charts than the second there are, the more."""
_ENOUGH = 0.98
"""Share of the atlas's height that ends the search for the scale."""
_TURN_SHARE = 80
"""Charts of at least this part of the atlas's side are also tried turned."""
_STEPS, _LARGEST_STEP = 32, 128
"""Columns are first tried in steps of the chart's width over the one, of no more than the other."""
_OUT = (1 << 14) - 1
"""A height in texels above every atlas."""


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
    fits: float = 0.0
    fails, best = float("inf"), None
    tries = max(_TRIES, min(_CHEAP // count, 3 * _TRIES))
    for attempt in range(40):
        layout = _place(outlines, scale, size, padding, ctx.part(attempt / 40, (attempt + 1) / 40, "pack"))
        if layout.height <= room:
            fits, best = scale, layout
        else:
            fails = scale
        if best is not None and (attempt + 1 >= tries or fits in (most, first_scale) or best.height >= _ENOUGH * room):
            break
        guess = min(scale * np.sqrt(room / layout.height) * 0.998, most)
        scale = guess if fits < guess < fails else (fits + fails) / 2 if fits else scale * 0.9
    if best is None:
        raise InputError(f"A texture of {size} texels is too small for {count} charts; take a larger texture_size.")
    pose = best.pose[owner][:, None]
    extent = np.maximum(np.ceil(box * fits), 1)[owner]
    placed = np.where(pose >= 2, outlines.sideways().points, points) * fits
    placed = np.where(pose % 2 == 1, np.where(pose >= 2, extent[:, ::-1], extent) - placed, placed)
    return placed + best.corner[owner], float(fits)


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
    upright = _Pose.of(outlines, scale, extent, padding)
    lying = _Pose.of(outlines.sideways(), scale, extent[:, ::-1], padding)
    skyline = _Skyline(size - 2 * margin, padding, base)
    fitted = np.ones(len(extent), bool)
    fitted[shelved] = False
    big = np.flatnonzero(fitted)
    big = big[np.lexsort((big, -extent[big, 1]))]
    for nth, chart in enumerate(big):
        if nth % 64 == 0:
            ctx.report(nth / len(big))
        skyline.sum_up()
        score, turn, x, y = skyline.lowest(upright.bottom(chart), extent[chart, 1])
        roof = upright.roof(chart)[turn]
        if largest[chart] * _TURN_SHARE >= size:
            other = skyline.lowest(lying.bottom(chart), extent[chart, 0])
            if other[0] < score:
                _, turn, x, y = other
                roof, turn = lying.roof(chart)[turn], turn + 2
        corner[chart], pose[chart] = (x, y), turn
        skyline.raise_to(x, y + roof)
    return _Layout(corner + margin, pose, int(skyline.tops.max()) - padding)


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


class _Skyline:
    """How high each column of the atlas is filled. Heights are int16: processors compare many of those at a time."""

    def __init__(self, width: int, padding: int, base: int) -> None:
        columns = ((width + 2 * padding) // _LARGEST_STEP + 3) * _LARGEST_STEP
        self._grown = np.full(padding + columns, _OUT, np.int16)  # `padding` columns more on the left, some on the right
        self._grown[: width + 2 * padding] = min(base, _OUT)
        self._wide = self._grown[padding:]
        self.tops = self._wide[:width]
        self._below = np.zeros(width + 1)

    def sum_up(self) -> None:
        """To be called before `lowest` whenever something has changed."""
        self.tops.cumsum(out=self._below[1:])

    def raise_to(self, x: int, roof: Array) -> None:
        """Put a chart at column x whose top, grown by the padding, is `roof` [W + 2 * padding]."""
        window = self._grown[x : x + len(roof)]
        np.maximum(window, np.minimum(roof, _OUT), out=window)

    def lowest(self, bottom: Array, height: int) -> tuple[float, int, int, int]:
        """The best place for a chart with lower profiles [2, W]: (score, which of the two, first column, its height there).

        The score, less is better, is the height that its top reaches plus the mean height of what it shuts in below.
        A coarse search over every 32nd part of the chart's width is refined around its best column.
        """
        width = bottom.shape[1]
        free = len(self.tops) - width + 1
        space = (bottom.mean(1) + height)[:, None] - (self._below[width:] - self._below[:-width]) / width
        step = min(max(1, width // _STEPS), _LARGEST_STEP)
        level = _levels(self._wide, bottom, step, -(-free // step))
        score = 2 * level + space[:, ::step]
        found = []
        for turn, place in enumerate(score.argmin(1)):
            if step == 1:
                found.append((float(score[turn, place]), turn, int(place), int(level[turn, place])))
                continue
            begin, end = max((place - 1) * step + 1, 0), min((place + 1) * step, free)
            fine = _levels(self._wide[begin:], bottom[turn : turn + 1], 1, end - begin)[0]
            exact = 2 * fine + space[turn, begin:end]
            best = int(exact.argmin())
            found.append((float(exact[best]), turn, int(begin + best), int(fine[best])))
        return min(found)


def _levels(tops: Array, bottom: Array, step: int, count: int) -> Array:
    """How high charts with lower profiles [T, W] stand over every step-th of `count` columns `tops`: int16 [T, count].

    Column place * step + across of the atlas lies at [across % step, place + across // step], so that neighbouring places
    lie side by side in memory.
    """
    turns, width = bottom.shape
    rows = -(-width // step)
    if step > 1:
        filled = np.full((turns, rows * step), _OUT // 2, np.int16)
        filled[:, :width] = bottom
        bottom = filled
        tops = np.ascontiguousarray(tops[: len(tops) // step * step].reshape(-1, step).T)
    windows = np.ndarray((rows, step, count), np.int16, tops, 0, (2, tops.strides[0], 2))
    above = windows - bottom.reshape(turns, rows, step, 1)
    return above.reshape(turns, rows * step, count).max(1)


@dataclass(frozen=True)
class _Pose:
    """All charts upright, or all lying on their side: how each looks from below and above, and turned by 180 degrees.

    A chart takes its width + 2 * padding columns from `first` on. In `floors` int16 [2, sum] the lowest texels of its own
    columns, in `roofs` the highest, grown by the padding on all sides; the second row is turned.
    """

    floors: Array
    roofs: Array
    first: Array
    width: Array
    padding: int

    def bottom(self, chart: int) -> Array:
        """Lowest texel of each column [2, W]."""
        start = self.first[chart] + self.padding
        return self.floors[:, start : start + self.width[chart]]

    def roof(self, chart: int) -> Array:
        """Highest texel of each column of the grown chart [2, W + 2 * padding]."""
        start = self.first[chart]
        return self.roofs[:, start : start + self.width[chart] + 2 * self.padding]

    @classmethod
    def of(cls, outlines: _Outlines, scale: float, extent: Array, padding: int) -> _Pose:
        width = extent[:, 0] + 2 * padding
        first = np.cumsum(width) - width
        bottom, top = _profiles(outlines, scale, extent, first + padding, int(width.sum()))
        chart = np.repeat(np.arange(len(width)), width)
        height, column = extent[chart, 1], np.arange(len(chart)) - first[chart]
        bare = (bottom > top) & (column >= padding) & (column < (width - padding)[chart])  # charts without an outline
        bottom[bare], top[bare] = 0, height[bare]
        floor, roof = bottom.copy(), top.copy()
        for shift in range(1, padding + 1):
            floor[shift:] = np.minimum(floor[shift:], bottom[:-shift])
            floor[:-shift] = np.minimum(floor[:-shift], bottom[shift:])
            roof[shift:] = np.maximum(roof[shift:], top[:-shift])
            roof[:-shift] = np.maximum(roof[:-shift], top[shift:])
        mirrored = (first + width - 1)[chart] - column
        floors = np.stack([bottom, height - top[mirrored]]).clip(-_OUT // 2, _OUT // 2).astype(np.int16)
        roofs = np.stack([roof, height - floor[mirrored]]).clip(-_OUT // 2, _OUT // 2).astype(np.int16) + np.int16(padding)
        return cls(floors, roofs, first, extent[:, 0], padding)


def _profiles(outlines: _Outlines, scale: float, extent: Array, first: Array, columns: int) -> tuple[Array, Array]:
    """Lowest and highest texel, int32 [columns], of every column of every chart, which begins at `first` [C]."""
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
    place = first[chart[edge]] + column
    bottom = np.full(columns, 1 << 28, np.int32)
    top = np.full(columns, -(1 << 28), np.int32)
    np.minimum.at(bottom, place, np.floor(low + 1e-6).astype(np.int32))
    np.maximum.at(top, place, np.ceil(high - 1e-6).astype(np.int32))
    return bottom, top
