"""The reference's UV unwrap (docs/method/mesh.md): greedy clustering of faces by normal cones, then xatlas on every cluster.

Sums run in float32 in face order, because which of two nearly equal merges happens depends on the last bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..context import QUIET, RunContext
from ..errors import TrellisError
from ..mesh.ragged import ragged
from ..mesh.topology import Array, Edges, edges, face_normals, graph_components, manifold_pairs

AREA_WEIGHT = np.float32(0.1)
PERIMETER_WEIGHT = np.float32(1e-4)
DAMPING = np.float32(1e-5)


class ChartSettings(NamedTuple):
    """Defaults are those of the GLB export; the class defaults of the original are refine 100, rounds 3.

    Attributes:
        max_cost: merge limit; called a cone half angle in radians, though the cost also counts area and perimeter.
        refine: rounds in which faces may change over to a neighbour's chart.
        rounds: repetitions of merging and refining.
        smooth: weight of the shared edge length against the cosine to the chart's axis while refining.
    """

    max_cost: float = math.pi / 2
    refine: int = 0
    rounds: int = 1
    smooth: float = 1.0


AS_EXPORTED = ChartSettings()


class _Surface(NamedTuple):
    """What clustering needs of a mesh: unit normals [F, 3], areas [F], and the faces at both sides of inner edges."""

    normals: Array
    areas: Array
    found: Edges
    pairs: Array
    lengths: Array  # of every edge


def cluster(vertices: Array, faces: Array, settings: ChartSettings = AS_EXPORTED, ctx: RunContext = QUIET) -> Array:
    """Chart number int64 [F] of every face; charts are connected and numbered by their lowest face."""
    surface = _measure(vertices, faces)
    chart = np.arange(len(faces))
    for _ in range(settings.rounds):
        while (merged := _merge(surface, chart, settings.max_cost)) is not None:
            ctx.check()
            chart = merged
        for _ in range(settings.refine):
            ctx.check()
            chart = _refine(surface, chart, settings.smooth)
        same = chart[surface.pairs[:, 0]] == chart[surface.pairs[:, 1]]
        chart = graph_components(len(faces), *surface.pairs[same].T)
    return chart


def _measure(vertices: Array, faces: Array) -> _Surface:
    found = edges(faces)
    raw = face_normals(vertices, faces)
    norm = np.sqrt(_dot(raw, raw))
    normals = raw * np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)[:, None]
    step = vertices[found.pairs[:, 0]] - vertices[found.pairs[:, 1]]
    _, corners = manifold_pairs(found)
    return _Surface(normals, np.float32(0.5) * norm, found, corners // 3, np.sqrt(_dot(step, step)))


def _dot(a: Array, b: Array) -> Array:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _sum(index: Array, values: Array, count: int) -> Array:
    total = np.zeros((count, *values.shape[1:]), np.float32)
    np.add.at(total, index, values)
    return total


def _axes(surface: _Surface, chart: Array) -> Array:
    """Unit mean normal of every chart, float32 [C, 3]."""
    total = _sum(chart, surface.normals, int(chart.max()) + 1)
    norm = np.sqrt(_dot(total, total))[:, None]
    return np.divide(total, norm, out=total, where=norm > 0)


def _merge(surface: _Surface, chart: Array, max_cost: float) -> Array | None:
    """One round: every pair of charts that is the cheapest merge of both its charts; None when no pair is left."""
    count = int(chart.max()) + 1
    sides = np.sort(chart[surface.pairs], axis=1)
    inner = surface.lengths[surface.found.counts == 2]
    apart = sides[:, 0] != sides[:, 1]
    if not apart.any():
        return None
    keys, row = np.unique(sides[apart, 0] * count + sides[apart, 1], return_inverse=True)
    length = _sum(row.reshape(-1), inner[apart], len(keys))
    first, second = keys // count, keys % count
    pair = np.stack([first, second], axis=1)
    perimeter = _sum(pair.reshape(-1), np.repeat(length, 2), count)
    area = _sum(chart, surface.areas, count)
    axis = _axes(surface, chart)
    half = np.zeros(count, np.float32)
    np.maximum.at(half, chart, np.arccos(np.clip(_dot(axis[chart], surface.normals), -1, 1)))

    between = np.arccos(np.clip(_dot(axis[first], axis[second]), -1, 1))
    low = np.minimum(-half[first], between - half[second])
    high = np.maximum(half[first], between + half[second])
    joint = area[first] + area[second]
    outline = perimeter[first] + perimeter[second] - 2 * length
    cost = (high - low) * np.float32(0.5) + AREA_WEIGHT * joint
    with np.errstate(divide="ignore", invalid="ignore"):
        cost += PERIMETER_WEIGHT * (outline * outline / joint)

    rank = np.empty(len(keys), np.int64)
    rank[np.argsort(cost, kind="stable")] = np.arange(len(keys))
    best = np.full(count, len(keys))
    np.minimum.at(best, pair.reshape(-1), np.repeat(rank, 2))
    chosen = (cost <= np.float32(max_cost)) & (best[pair] == rank[:, None]).all(axis=1)
    if not chosen.any():
        return None
    onto = np.arange(count)
    onto[second[chosen]] = first[chosen]
    return np.unique(onto[chart], return_inverse=True)[1].reshape(-1)


def _refine(surface: _Surface, chart: Array, smooth: float) -> Array:
    """Let every face change to the chart, of its own and its neighbours', whose axis and shared edges suit it best."""
    axis = _axes(surface, chart)
    face, candidate, shared = _candidates(surface, chart)
    start = np.flatnonzero(np.diff(face, prepend=-1))
    size = np.diff(start, append=len(face))
    best, best_score = chart.copy(), np.full(len(chart), np.float32(-1e9))
    for place in range(4):
        at = np.flatnonzero(size > place)
        row = start[at] + place
        cosine = _dot(axis[candidate[row]], surface.normals[at])
        score = cosine + shared[row] * np.float32(smooth)
        if place == 0:
            best_score[at] = np.where(cosine > 0, score, best_score[at])
            continue
        gain = score - best_score[at]
        better = (gain > DAMPING) | ((np.abs(gain) <= DAMPING) & (candidate[row] < best[at]))
        better &= cosine > 0
        best[at[better]], best_score[at[better]] = candidate[row[better]], score[better]
    return np.unique(best, return_inverse=True)[1].reshape(-1)


def _candidates(surface: _Surface, chart: Array) -> tuple[Array, Array, Array]:
    """Rows (face, chart, length of edges shared with that chart), faces ascending, own chart first, then as met."""
    found = surface.found
    flat = found.of_face.reshape(-1)
    by_edge = np.argsort(flat, kind="stable")
    start = np.cumsum(found.counts) - found.counts
    amount = found.counts[flat]
    corner, within = ragged(amount)
    other = by_edge[start[flat[corner]] + within] // 3
    face = corner // 3
    keep = other != face
    face, other, length = face[keep], other[keep], surface.lengths[flat[corner[keep]]]

    face = np.concatenate([np.arange(len(chart)), face])
    option = np.concatenate([chart, chart[other]])
    length = np.concatenate([np.zeros(len(chart), np.float32), length])
    _, first, group = np.unique(face * (int(chart.max()) + 1) + option, return_index=True, return_inverse=True)
    shared = _sum(group.reshape(-1), length, len(first))
    order = np.lexsort([first, face[first]])
    return face[first[order]], option[first[order]], shared[order]


def unwrap(vertices: Array, faces: Array, chart: Array, ctx: RunContext = QUIET) -> tuple[Array, Array, Array, Array]:
    """Parameterise every chart with xatlas and pack all into one atlas, with its default options (no padding).

    Returns:
        vertices float32 [W, 3], faces int32 [F, 3] (charts one after another), uv float32 [W, 2] in 0..1,
        source int64 [W] = index in `vertices` of each new vertex.

    Raises:
        TrellisError: the optional package xatlas is missing.
    """
    try:
        import xatlas
    except ImportError as error:
        raise TrellisError("The reference unwrap needs the package xatlas: pip install xatlas") from error
    atlas = xatlas.Atlas()
    sources = []
    order = np.argsort(chart, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(chart))[:-1]):
        used, local = np.unique(faces[members], return_inverse=True)
        atlas.add_mesh(vertices[used], local.reshape(-1, 3).astype(np.uint32))
        sources.append(used)
        ctx.check()
    atlas.generate()
    parts = [atlas[k] for k in range(len(sources))]
    source = np.concatenate([used[mapping] for used, (mapping, _, _) in zip(sources, parts, strict=True)])
    offsets = np.cumsum([0] + [len(mapping) for mapping, _, _ in parts[:-1]])
    new_faces = np.concatenate([part[1].astype(np.int64) + offset for part, offset in zip(parts, offsets, strict=True)])
    return vertices[source], new_faces.astype(np.int32), np.concatenate([uv for _, _, uv in parts]), source
