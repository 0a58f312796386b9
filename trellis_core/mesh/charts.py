"""Cutting a surface into charts that a flat projection unfolds: quantised normals, smoothed, joined, peeled (spec F 2b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..run import QUIET, RunContext
from .topology import Array, edges, face_normals, graph_components, manifold_pairs, next_side

_SMALL = 4e-4
"""Charts below this share of the surface join a neighbour whose axis sees them well ..."""
_TINY = 2e-5
"""... and below this one also one that sees them at a slant."""
_WELL, _SLANT = 60.0, 83.0
_STEEPEST = 0.05
"""A face whose normal has less than this cosine to its chart's axis would be stretched 20 times or fold over."""
_PEEL_ROUNDS = 2


@dataclass(frozen=True)
class ChartOptions:
    """How to cut; the public generation settings `uv_unwrap_*` in our own terms.

    Attributes:
        angle_threshold_deg: 0..180. How far a face may lean from its chart's axis: faces join a chart within 75/90 of
            it and small charts merge within 60/90 (the smallest within 83/90); more than 90 counts as 90. Below 45 twelve more axes are used;
            below about 25 every face still keeps its nearest axis.
        refine_iterations: >= 0. Extra rounds that straighten the borders between charts.
        global_iterations: >= 1. Rounds of joining small charts are three more than this.
        smooth_strength: >= 0. Weight of a face's neighbours in the choice of its axis; 0 makes ragged borders.
    """

    angle_threshold_deg: float = 90.0
    refine_iterations: int = 0
    global_iterations: int = 1
    smooth_strength: float = 1.0


@dataclass(frozen=True)
class _Surface:
    """Unit normals [F, 3], areas [F], centres [F, 3]; neighbour pairs a, b [M] with edge lengths [M].

    `across` int64 [F, 3] is the neighbour over each side (the face itself for none), `share` float32 [F, 3] the side's
    part of the length of all sides with neighbours.
    """

    normal: Array
    area: Array
    centre: Array
    a: Array
    b: Array
    length: Array
    across: Array
    share: Array

    @classmethod
    def of(cls, vertices: Array, faces: Array) -> _Surface:
        points = vertices.astype(np.float64)
        normal = face_normals(points, faces)
        twice = np.linalg.norm(normal, axis=1)
        p, q = manifold_pairs(edges(faces))[1].T
        flat = faces.reshape(-1)
        length = np.linalg.norm(points[flat[next_side(p)]] - points[flat[p]], axis=1)
        unit = np.divide(normal, twice[:, None], out=np.zeros_like(normal), where=twice[:, None] > 0)
        a, b = p // 3, q // 3
        across, share = np.repeat(np.arange(len(faces)), 3), np.zeros(len(flat), np.float32)
        across[p], across[q] = b, a
        share[p] = share[q] = length
        share = share.reshape(-1, 3)
        share /= share.sum(1, keepdims=True).clip(1e-30)
        centre = (points[faces[:, 0]] + points[faces[:, 1]] + points[faces[:, 2]]) / 3
        return cls(unit, twice / 2, centre, a, b, length, across.reshape(-1, 3), share)


def cut_charts(
    vertices: Array, faces: Array, options: ChartOptions = ChartOptions(), ctx: RunContext = QUIET
) -> tuple[Array, Array]:
    """Assign every face to a chart that its axis sees whole and from the front.

    Args:
        vertices: float [V, 3].
        faces: int [F, 3], consistently wound, F >= 1.
        options: see `ChartOptions`.
        ctx: told the progress.

    Returns:
        (chart int64 [F] in 0..C-1, axis float64 [C, 3] unit projection axes).
    """
    surface = _Surface.of(vertices, faces)
    limit = min(options.angle_threshold_deg, 90.0) / 90.0
    ctx.report(0.2)
    label = _quantise(surface, np.cos(np.radians(75 * limit)), options)
    ctx.report(0.5)
    chart = _connected(surface, label)
    for round_ in range(3 + options.global_iterations):
        merged = _merge_small(surface, chart, limit)
        if merged is None:
            break
        chart = merged
        ctx.report(0.5 + 0.3 * (round_ + 1) / (3 + options.global_iterations))
    chart = _part_steep(surface, chart)
    for _ in range(_PEEL_ROUNDS):
        below = _hidden(surface, chart)
        if not below.any():
            break
        chart = split(surface.a, surface.b, chart, below)
    ctx.report(1.0)
    return chart, chart_axes(surface.normal * surface.area[:, None], chart)


def chart_axes(weighted_normals: Array, chart: Array) -> Array:
    """Unit axis [C, 3] of each chart: the direction of its summed area-weighted normals [F, 3] (z if they cancel)."""
    total = _sums(weighted_normals, chart)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / length.clip(1e-300), [0.0, 0.0, 1.0])


def split(a: Array, b: Array, chart: Array, apart: Array) -> Array:
    """Renumber charts so that the faces `apart` (bool [F]) leave theirs; pairs a, b [M] hold connected faces together."""
    same = (chart[a] == chart[b]) & (apart[a] == apart[b])
    return graph_components(len(chart), a[same], b[same])


def _quantise(surface: _Surface, limit: float, options: ChartOptions) -> Array:
    """The nearest of 14 (or 26) axes for every face, in agreement with its neighbours (iterated conditional modes)."""
    count = len(surface.area)
    across, share = surface.across, surface.share
    smooth = surface.normal.astype(np.float32)
    for _ in range(2):  # the jitter of dual vertices must not decide; used for labels only
        smooth = smooth + sum(share[:, k, None] * smooth[across[:, k]] for k in range(3))
        smooth /= np.linalg.norm(smooth, axis=1, keepdims=True).clip(1e-30)
    axes = _axes(26 if options.angle_threshold_deg < 45 else 14)
    cost = -(smooth @ axes.T)
    facing = surface.normal.astype(np.float32) @ axes.T
    forbidden = (facing < limit) & (facing < facing.max(1, keepdims=True))
    cost[forbidden & (surface.area > 0)[:, None]] = 10.0
    label = cost.argmin(1)
    vote = 0.3 * options.smooth_strength
    for round_ in range((4 if vote else 0) + options.refine_iterations):
        torn = (label[across] != label[:, None]).any(1)  # where all agree nothing changes
        rows = np.flatnonzero(torn & (np.arange(count) % 2 == round_ % 2))  # all at once would make neighbours swap for ever
        price, nth = cost[rows], np.arange(len(rows))
        for k in range(3):
            price[nth, label[across[rows, k]]] -= vote * share[rows, k]
        label[rows] = price.argmin(1)
    return label


def _axes(count: int) -> Array:
    """The 6 face, 8 corner and (of 26) 12 edge directions of a cube, float32 unit rows."""
    grid = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.abs(grid).sum(1)
    chosen = np.concatenate([grid[length == k] for k in (1, 3, 2)])[:count].astype(np.float32)
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


def _connected(surface: _Surface, label: Array) -> Array:
    same = label[surface.a] == label[surface.b]
    return graph_components(len(label), surface.a[same], surface.b[same])


def _merge_small(surface: _Surface, chart: Array, limit: float) -> Array | None:
    """Join small charts to the larger neighbour they share the longest border with, if its axis sees all their faces.

    `limit` (0..1) scales the angles at which it does. None if there is nothing to join.
    """
    count = int(chart.max()) + 1
    area = np.bincount(chart, surface.area, minlength=count)
    axis = chart_axes(surface.normal * surface.area[:, None], chart)
    small = area < _SMALL * area.sum()
    a, b = chart[surface.a], chart[surface.b]
    border = np.flatnonzero(a != b)
    key = np.concatenate([a[border] * count + b[border], b[border] * count + a[border]])
    pair, inverse = np.unique(key, return_inverse=True)
    length = np.bincount(inverse.reshape(-1), np.tile(surface.length[border], 2), minlength=len(pair))
    source, target = pair // count, pair % count
    larger = (area[target] > area[source]) | ((area[target] == area[source]) & (target < source))
    useful = np.flatnonzero(small[source] & larger)
    useful = useful[np.lexsort((-length[useful], source[useful]))]
    source, nearest = np.unique(source[useful], return_index=True)
    if not len(source):
        return None
    into = np.arange(count)
    into[source] = target[useful[nearest]]
    faces = np.flatnonzero(into[chart] != chart)
    least = np.cos(np.radians(np.where(area < _TINY * area.sum(), _SLANT, _WELL) * limit))[chart[faces]]
    leans = (surface.normal[faces] * axis[into[chart[faces]]]).sum(1) < least
    sliver = surface.area[faces] < 1e-2 * area[chart[faces]]
    blocked = np.unique(chart[faces[leans & ~sliver]])
    into[blocked] = blocked
    moving = into != np.arange(count)
    moving &= ~moving[into]  # into charts that stay; the rest follows in the next round
    if not moving.any():
        return None
    return np.unique(np.where(moving, into, np.arange(count))[chart], return_inverse=True)[1].reshape(-1)


def _part_steep(surface: _Surface, chart: Array) -> Array:
    """Move faces that their chart's axis sees edge-on or from behind to charts of their own kind."""
    for _ in range(3):
        axis = chart_axes(surface.normal * surface.area[:, None], chart)
        steep = ((surface.normal * axis[chart]).sum(1) < _STEEPEST) & (surface.area > 0)
        if not steep.any():
            return chart
        chart = split(surface.a, surface.b, chart, steep)
    axis = chart_axes(surface.normal * surface.area[:, None], chart)
    steep = ((surface.normal * axis[chart]).sum(1) < _STEEPEST) & (surface.area > 0)
    alone = np.where(steep, int(chart.max()) + 1 + np.arange(len(chart)), chart)
    return np.unique(alone, return_inverse=True)[1].reshape(-1)


def _hidden(surface: _Surface, chart: Array) -> Array:
    """Faces far below another face of their chart, seen along its axis: bool [F].

    Judged by centres on a grid of two mean edges, so it finds folds and stacked sheets, not single overlapping texels.
    """
    axis = chart_axes(surface.normal * surface.area[:, None], chart)
    across, up = basis(axis)
    cell = 2 * float(surface.length.mean()) if len(surface.length) else 1.0
    place = [np.floor((surface.centre * side[chart]).sum(1) / cell).astype(np.int64) for side in (across, up)]
    depth = (surface.centre * axis[chart]).sum(1)
    place = [value - value.min() for value in place]
    span = int(place[1].max()) + 1
    key = (chart * (int(place[0].max()) + 1) + place[0]) * span + place[1]
    _, inverse = np.unique(key, return_inverse=True)
    inverse = inverse.reshape(-1)
    top = np.full(int(inverse.max()) + 1, -np.inf)
    np.maximum.at(top, inverse, depth)
    return depth < top[inverse] - 4 * cell


def basis(axis: Array) -> tuple[Array, Array]:
    """Two unit vectors [C, 3] across each axis [C, 3] that see the surface unmirrored: right, and down like image rows."""
    least = np.abs(axis).argmin(1)
    right = np.cross(np.eye(3)[least], axis)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return right, np.cross(right, axis)


def _sums(values: Array, labels: Array) -> Array:
    return np.stack([np.bincount(labels, values[:, k]) for k in range(3)], axis=1)
