"""Cutting a surface into charts that project flat: quantised normals, smoothed, joined, peeled (docs/method/mesh.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..context import QUIET, RunContext
from ..mesh.topology import Array, blocks, graph_components
from .surface import Surface

_SMALL = 4e-4
"""Charts below this share of the surface join a neighbour whose axis sees them well ..."""
_TINY = 2e-5
"""... and below this one also one that sees them at a slant."""
_WELL, _SLANT = 60.0, 83.0
_STEEPEST = 0.05
"""A face whose normal has less than this cosine to its chart's axis would be stretched 20 times or fold over."""
_LEANING = 0.02
"""Share of a chart's area that a neighbour's axis may see at a worse angle when it joins."""
_PEEL_ROUNDS = 2


@dataclass(frozen=True)
class ChartOptions:
    """How to cut; the public generation settings `uv_unwrap_*` in our own terms.

    Attributes:
        angle_threshold_deg: 0..180. How far a face may lean from its chart's axis: faces join a chart within 75/90 of
            it and small charts merge within 60/90 (the smallest within 83/90); more than 90 counts as 90. Below 45 twelve
            more axes are used; below about 25 every face still keeps its nearest axis.
        refine_iterations: >= 0. Extra rounds that straighten the borders between charts.
        global_iterations: >= 1. Rounds of joining small charts are three more than this.
        smooth_strength: >= 0. Weight of a face's neighbours in the choice of its axis; 0 makes ragged borders.
    """

    angle_threshold_deg: float = 90.0
    refine_iterations: int = 0
    global_iterations: int = 1
    smooth_strength: float = 1.0


USUAL_CHARTS = ChartOptions()


def cut_charts(surface: Surface, options: ChartOptions = USUAL_CHARTS, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Assign every face to a chart that its axis sees whole and from the front.

    Args:
        surface: with F >= 1 faces.
        options: see `ChartOptions`.
        ctx: told the progress.

    Returns:
        (chart int32 [F] in 0..C-1, axis float64 [C, 3] unit projection axes).
    """
    limit = min(options.angle_threshold_deg, 90.0) / 90.0
    label = _quantise(surface, np.cos(np.radians(75 * limit)), options, ctx.part(0.0, 0.4))
    ctx.report(0.4)
    chart = _connected(surface, label)
    for round_ in range(3 + options.global_iterations):
        merged = _merge_small(surface, chart, limit)
        if merged is None:
            break
        chart = merged
        ctx.report(0.4 + 0.3 * (round_ + 1) / (3 + options.global_iterations))
    chart = _part_steep(surface, chart)
    ctx.report(0.8)
    for _ in range(_PEEL_ROUNDS):
        below = _hidden(surface, chart)
        if not below.any():
            break
        chart = split(surface, chart, below)
        ctx.check()
    ctx.report(1.0)
    return chart, chart_axes(surface, chart)


def chart_axes(surface: Surface, chart: Array) -> Array:
    """Unit axis [C, 3] of each chart: the direction of its summed area-weighted normals (z if they cancel)."""
    total = np.stack([np.bincount(chart, surface.area * component) for component in surface.normal], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / length.clip(1e-300), [0.0, 0.0, 1.0])


def split(surface: Surface, chart: Array, apart: Array) -> Array:
    """Let the faces `apart` (bool [F]) leave their charts: those that lie side by side found a new one together."""
    rows = np.flatnonzero(apart)
    number = np.zeros(len(apart), np.int32)
    number[rows] = np.arange(len(rows))
    a, b = surface.a, surface.b
    both = np.flatnonzero(apart[a] & apart[b])
    a, b = a[both], b[both]
    same = chart[a] == chart[b]
    chart = chart.copy()
    chart[rows] = int(chart.max()) + 1 + graph_components(len(rows), number[a[same]], number[b[same]])
    return _renumbered(chart)


def _renumbered(chart: Array) -> Array:
    """Charts without gaps in their numbers, int32 [F]."""
    used = np.zeros(int(chart.max()) + 1, bool)
    used[chart] = True
    return (np.cumsum(used, dtype=np.int32) - 1).take(chart)


def _quantise(surface: Surface, limit: float, options: ChartOptions, ctx: RunContext) -> Array:
    """The nearest of 14 (or 26) axes for every face, in agreement with its neighbours (iterated conditional modes)."""
    count = len(surface.area)
    smooth = surface.normal
    for _ in range(2):  # the jitter of dual vertices must not decide; used for labels only
        smooth = _smoothed(surface, smooth)
        ctx.check()
    axes = _axes(26 if options.angle_threshold_deg < 45 else 14)

    def costs(rows: Array | slice) -> Array:
        """What every axis would cost faces, float32 [N, A]."""
        facing = surface.normal[:, rows].T @ axes.T
        forbidden = (facing < limit) & (facing < facing.max(1, keepdims=True)) & (surface.area[rows] > 0)[:, None]
        cost = -(smooth[:, rows].T @ axes.T)
        cost[forbidden] = 10.0
        return cost

    label = np.empty(count, np.int8)
    for rows in blocks(count):
        label[rows] = costs(rows).argmin(1)
    vote = 0.3 * options.smooth_strength
    rounds = (4 if vote else 0) + options.refine_iterations
    for round_ in range(rounds):
        ctx.report(0.5 + 0.5 * round_ / rounds)
        rows = np.flatnonzero(_torn(surface, label)[round_ % 2 :: 2]) * 2 + round_ % 2  # all at once would swap for ever
        price, nth = costs(rows), np.arange(len(rows))
        for across, share in zip(surface.across, surface.share, strict=True):
            price[nth, label[across[rows]]] -= vote * share[rows]
        label[rows] = price.argmin(1)
    return label


def _smoothed(surface: Surface, normal: Array) -> Array:
    """Every normal float32 [3, F] and its neighbours' mean by length of border, unit."""
    result = np.empty_like(normal)
    for rows in blocks(normal.shape[1]):
        total = normal[:, rows].copy()
        for across, share in zip(surface.across, surface.share, strict=True):
            total += share[rows] * normal.take(across[rows], axis=1)
        result[:, rows] = total / np.sqrt((total * total).sum(0)).clip(1e-30)
    return result


def _torn(surface: Surface, label: Array) -> Array:
    """Where neighbours disagree, bool [F]; elsewhere nothing can change."""
    torn = np.zeros(len(label), bool)
    for across in surface.across:
        torn |= label.take(across) != label
    return torn


def _axes(count: int) -> Array:
    """The 6 face, 8 corner and (of 26) 12 edge directions of a cube, float32 unit rows."""
    grid = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.abs(grid).sum(1)
    chosen = np.concatenate([grid[length == k] for k in (1, 3, 2)])[:count].astype(np.float32)
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


def _connected(surface: Surface, label: Array) -> Array:
    same = label.take(surface.a) == label.take(surface.b)
    return graph_components(len(label), surface.a[same], surface.b[same]).astype(np.int32)


def _merge_small(surface: Surface, chart: Array, limit: float) -> Array | None:
    """Join small charts to the larger neighbour they share the longest border with, if its axis sees nearly all of them.

    `limit` (0..1) scales the angles at which it does. None if there is nothing to join.
    """
    count = int(chart.max()) + 1
    area = np.bincount(chart, surface.area, minlength=count)
    axis = chart_axes(surface, chart)
    small = area < _SMALL * area.sum()
    a, b = chart.take(surface.a), chart.take(surface.b)
    border = np.flatnonzero(a != b)
    a, b, length = a[border].astype(np.int64), b[border], surface.length[border]
    pair, inverse = np.unique(np.concatenate([a * count + b, b * np.int64(count) + a]), return_inverse=True)
    length = np.bincount(inverse.reshape(-1), np.concatenate([length, length]), minlength=len(pair))
    source, target = pair // count, pair % count
    larger = (area[target] > area[source]) | ((area[target] == area[source]) & (target < source))
    useful = np.flatnonzero(small[source] & larger)
    useful = useful[np.lexsort((-length[useful], source[useful]))]
    source, nearest = np.unique(source[useful], return_index=True)
    if not len(source):
        return None
    into = np.arange(count, dtype=np.int32)
    into[source] = target[useful[nearest]]
    faces = np.flatnonzero((into != np.arange(count)).take(chart))
    old = chart[faces]
    least = np.cos(np.radians(np.where(area < _TINY * area.sum(), _SLANT, _WELL) * limit))
    leaning = (surface.normal[:, faces] * axis.T[:, into[old]]).sum(0) < least[old]
    blocked = np.bincount(old, surface.area[faces] * leaning, minlength=count) > _LEANING * area
    into[blocked] = np.flatnonzero(blocked)
    moving = into != np.arange(count)
    moving &= ~moving[into]  # into charts that stay; the rest follows in the next round
    if not moving.any():
        return None
    return _renumbered(np.where(moving, into, np.arange(count, dtype=np.int32)).take(chart))


def _part_steep(surface: Surface, chart: Array) -> Array:
    """Move faces that their chart's axis sees edge-on or from behind to charts of their own kind."""
    for round_ in range(4):
        steep = (surface.facing(chart_axes(surface, chart), chart) < _STEEPEST) & (surface.area > 0)
        if not steep.any():
            return chart
        if round_ < 3:
            chart = split(surface, chart, steep)
    alone = np.flatnonzero(steep)
    chart = chart.copy()
    chart[alone] = int(chart.max()) + 1 + np.arange(len(alone))
    return _renumbered(chart)


def _hidden(surface: Surface, chart: Array) -> Array:
    """Faces far below another face of their chart, seen along its axis: bool [F].

    Judged by centres on a grid of two mean edges, so it finds folds and stacked sheets, not single overlapping texels.
    """
    axis = chart_axes(surface, chart)
    cell = 2 * float(surface.length.mean()) if len(surface.length) else 1.0
    views = [np.ascontiguousarray(view.T) for view in (*basis(axis), axis)]
    points, count = np.ascontiguousarray(surface.vertices.T, np.float64), len(axis)
    seen = np.empty((3, len(chart)), np.float32)  # right, down and depth in cells
    for rows in blocks(len(chart)):
        centre = sum(points.take(surface.faces[rows, k], axis=1) for k in range(3)) / (3 * cell)
        for k, view in enumerate(views):
            seen[k, rows] = (centre * view.take(chart[rows], axis=1)).sum(0)
    low, high = np.full((2, count), np.inf, np.float32), np.full((2, count), -np.inf, np.float32)
    for k in range(2):
        np.minimum.at(low[k], chart, seen[k])
        np.maximum.at(high[k], chart, seen[k])
    wide, long = np.floor(high - low).astype(np.int64) + 1
    first = np.cumsum(wide * long) - wide * long
    right, down = (np.floor(seen[k] - low[k].take(chart)).astype(np.int64) for k in range(2))
    place = first.take(chart) + right * long.take(chart) + down
    top = np.full(int(first[-1] + wide[-1] * long[-1]), -np.inf, np.float32)
    np.maximum.at(top, place, seen[2])
    return seen[2] < top.take(place) - 4


def basis(axis: Array) -> tuple[Array, Array]:
    """Two unit vectors [C, 3] across each axis [C, 3] that see the surface unmirrored: right, and down like image rows."""
    least = np.abs(axis).argmin(1)
    right = np.cross(np.eye(3)[least], axis)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return right, np.cross(right, axis)
