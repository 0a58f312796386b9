"""UV unwrapping: charts, their projections, and their places in the atlas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..mesh.topology import Array, blocks, stable_order
from .charts import USUAL_CHARTS, ChartOptions, basis, chart_axes, cut_charts, split
from .pack import pack_charts
from .raster import Texels, rasterise
from .surface import Surface

_ANGLES = 16
_OVERLAP = 1e-4
"""Share of texels that may be covered twice before the folds that cause it are cut off."""
_UNFOLD_ROUNDS = 4
_SKETCH, _FILL = 0.5, 0.6
"""Scale at which folds are looked for, against that in the atlas; and the share of the atlas that charts usually reach."""


@dataclass(frozen=True)
class Unwrap:
    """A surface cut open along its charts.

    Attributes:
        faces: int32 [F, 3] into the new vertices, order and winding of the old faces.
        source: int64 [W] old vertex of each new vertex; new vertices are grouped by chart.
        uvs: float32 [W, 2] in 0..1, v down as in the image (row 0 is v = 0). No chart is mirrored.
        chart: int64 [F] chart of each face.
        axis: float64 [C, 3] direction from which each chart was projected.
        texels: what the faces cover in the atlas; `overlap` of them are covered twice.
    """

    faces: Array
    source: Array
    uvs: Array
    chart: Array
    axis: Array
    texels: Texels
    overlap: int


def unwrap(
    surface: Surface,
    size: int,
    options: ChartOptions = USUAL_CHARTS,
    padding: int = 2,
    ctx: RunContext = QUIET,
) -> Unwrap:
    """Cut, flatten and pack a surface into a square atlas.

    Args:
        surface: with F >= 1 faces.
        size: texels along a side of the atlas.
        options: see `ChartOptions`.
        padding: texels kept free between charts at `size`.
        ctx: told the progress.

    Raises:
        InputError: more charts than the atlas has room for.
    """
    chart, axis = cut_charts(surface, options, ctx.part(0.0, 0.3, "unwrap"))
    suspects = np.arange(len(chart))
    for round_ in range(_UNFOLD_ROUNDS):
        part = ctx.part(0.3 + 0.05 * round_, 0.35 + 0.05 * round_, "unwrap")
        suspects = _folded(surface, suspects, chart, axis, size, part)
        if not len(suspects):
            break
        apart = np.zeros(len(chart), bool)
        apart[suspects] = True
        chart = split(surface, chart, apart)  # what stays has no folds; what leaves may have
        axis = chart_axes(surface, chart)
    flat = _lay_out(surface, chart, axis, size, padding, ctx.part(0.5, 1.0, "unwrap"))
    ctx.report(1.0)
    return flat


def _lay_out(surface: Surface, chart: Array, axis: Array, size: int, padding: int, ctx: RunContext) -> Unwrap:
    """Project charts [F] along their axes [C, 3], pack and rasterise them."""
    faces, source, owner = _open(surface.faces, chart, len(surface.vertices))
    points = surface.vertices[source].T.astype(np.float64)
    flat = np.stack([(points * side.T.take(owner, axis=1)).sum(0) for side in basis(axis)], axis=1)
    rim = _rim(surface, faces, chart)
    part = ctx.part(0.0, 0.8, "unwrap")
    texels = pack_charts(_turn(flat, owner, rim), owner, rim, size, padding, part)[0]
    uvs = (texels / size).astype(np.float32)
    return Unwrap(faces, source, uvs, chart, axis, *covered_texels(uvs, faces, size, ctx.part(0.8, 1.0, "unwrap")))


def covered_texels(uvs: Array, faces: Array, size: int, ctx: RunContext) -> tuple[Texels, int]:
    """What faces cover in the atlas, and how many texels twice."""
    parts = list(rasterise(texel_corners(uvs, faces, size), size, ctx))
    covered = Texels(torch.cat([part.number for part in parts]), torch.cat([part.face for part in parts]))
    once = torch.zeros(size * size, dtype=torch.bool)
    once[covered.number] = True
    return covered, len(covered.number) - int(once.sum())


def texel_corners(uvs: Array, faces: Array, size: int) -> Tensor:
    """Corners float32 [F, 3, 2] of triangles in texels."""
    return torch.from_numpy(uvs[faces]) * size


def _folded(surface: Surface, faces: Array, chart: Array, axis: Array, size: int, ctx: RunContext) -> Array:
    """Which of some `faces` int64 [N] lie behind others of them in their chart, seen along its axis; none while they are few.

    All charts are drawn side by side, at a coarser scale than in an atlas of `size`.
    """
    views = [np.ascontiguousarray(view.T, np.float32) for view in basis(axis)]
    points = np.ascontiguousarray(surface.vertices.T)
    owner = chart[faces]
    flat = np.empty((2, 3, len(faces)), np.float32)
    for rows in blocks(len(faces)):
        right, down = (view.take(owner[rows], axis=1) for view in views)
        for k in range(3):
            x, y, z = points.take(surface.faces[faces[rows], k], axis=1)
            flat[0, k, rows] = x * right[0] + y * right[1] + z * right[2]
            flat[1, k, rows] = x * down[0] + y * down[1] + z * down[2]
    low, high = np.full((2, len(axis)), np.inf, np.float32), np.full((2, len(axis)), -np.inf, np.float32)
    for side in range(2):
        a, b, c = flat[side]
        np.minimum.at(low[side], owner, np.minimum(np.minimum(a, b), c))
        np.maximum.at(high[side], owner, np.maximum(np.maximum(a, b), c))
    box = np.maximum(high.astype(np.float64) - low, 0).T
    area = float((surface.area * surface.facing(axis, chart)).sum())
    boxes = box.prod(1).sum()
    scale = _SKETCH * size / max(np.sqrt(area / _FILL), box.max(), np.sqrt(boxes / 2), 1e-300)  # wires have large boxes
    corner, width, height = _in_rows(np.ceil(scale * box).astype(np.int64) + 1, size)
    shift = (corner.T - scale * low).astype(np.float32)
    for rows in blocks(len(faces)):
        flat[:, :, rows] *= np.float32(scale)
        flat[:, :, rows] += shift.take(owner[rows], axis=1)[:, None]
    parts = list(rasterise(torch.from_numpy(flat).permute(2, 1, 0), width, ctx, height))
    number, face = torch.cat([part.number for part in parts]), torch.cat([part.face for part in parts])
    crowded = torch.bincount(number, minlength=1)[number] > 1
    number, face = number[crowded].numpy(), faces[face[crowded].numpy()]
    if len(face) <= 2 * _OVERLAP * len(crowded):
        return faces[:0]
    centre = surface.vertices[surface.faces[face]].mean(1)
    depth = (centre * axis[chart[face]]).sum(1)
    order = np.lexsort((face, -depth, number))
    return np.unique(face[order][1:][number[order][1:] == number[order][:-1]])


def _in_rows(extent: Array, width: int) -> tuple[Array, int, int]:
    """Stand boxes [C, 2] in rows, the highest first: corner [C, 2] of each, and the sides of the whole."""
    order = np.argsort(-extent[:, 1], kind="stable")
    wide, tall = extent[order].T
    row, x = np.divmod(np.cumsum(wide) - wide, width)
    tallest = np.maximum.reduceat(tall, np.searchsorted(row, np.unique(row)))
    y = (np.cumsum(tallest) - tallest)[np.unique(row, return_inverse=True)[1].reshape(-1)]
    corner = np.empty_like(extent)
    corner[order] = np.stack([x, y], axis=1)
    return corner, width + int(wide.max()), int(tallest.sum())


def _open(faces: Array, chart: Array, count: int) -> tuple[Array, Array, Array]:
    """Give every chart its own of the `count` vertices: (faces int32, old vertex int64 [W], chart int64 [W]), by chart."""
    home = np.full(count, -1, np.int32)  # one of the charts around each vertex; the others get copies
    for k in range(3):
        home[faces[:, k]] = chart
    away = [np.flatnonzero(home.take(faces[:, k]) != chart) for k in range(3)]
    key = np.concatenate([chart[rows] * np.int64(count) + faces[rows, k] for k, rows in enumerate(away)])
    copies, inverse = np.unique(key, return_inverse=True)
    used = np.flatnonzero(home >= 0)
    owner, source = np.concatenate([home[used], copies // count]), np.concatenate([used, copies % count])
    order, owner = stable_order(owner.astype(np.int64))
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    number = np.empty(count, np.int32)
    number[used] = rank[: len(used)]
    result = number.take(faces)
    copied = np.split(rank[len(used) + inverse.reshape(-1)], np.cumsum([len(rows) for rows in away])[:-1])
    for k, rows in enumerate(away):
        result[rows, k] = copied[k]
    return result, source[order], owner


def _rim(surface: Surface, faces: Array, chart: Array) -> Array:
    """Edges int32 [B, 2] of opened faces along the outlines of their charts."""
    parts = []
    for k, across in enumerate(surface.across):
        rows = np.flatnonzero((across == np.arange(len(chart))) | (chart.take(across) != chart))
        parts.append(np.stack([faces[rows, k], faces[rows, (k + 1) % 3]], axis=1))
    return np.concatenate(parts)


def _turn(flat: Array, owner: Array, rim: Array) -> Array:
    """Turn every chart so that its bounding box is smallest, upright, with its corner at the origin."""
    outer = np.zeros(len(flat), bool)
    outer[rim] = True
    outer[1:] |= owner[1:] != owner[:-1]  # one point at least of charts without an outline
    outer[0] = True
    outer = np.flatnonzero(outer)
    start = np.searchsorted(owner[outer], np.arange(int(owner.max()) + 1))
    angle = np.arange(_ANGLES) * (np.pi / 2 / _ANGLES)
    boxes = []
    for cosine, sine in zip(np.cos(angle), np.sin(angle), strict=True):
        turned = flat[outer] @ np.array([[cosine, sine], [-sine, cosine]])
        boxes.append(np.maximum.reduceat(turned, start) - np.minimum.reduceat(turned, start))
    boxes = np.stack(boxes)
    best = boxes.prod(2).argmin(0)
    box = boxes[best, np.arange(len(start))]
    turn = angle[best] + np.where(box[:, 0] > box[:, 1], np.pi / 2, 0)
    cosine, sine = np.cos(turn)[owner], np.sin(turn)[owner]
    x, y = flat.T
    flat = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)
    return flat - np.minimum.reduceat(flat[outer], start)[owner]
