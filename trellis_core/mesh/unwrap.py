"""UV unwrapping: charts, their projections, and their places in the atlas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..run import QUIET, RunContext
from .charts import ChartOptions, basis, chart_axes, cut_charts, split
from .pack import pack_charts
from .raster import Texels, rasterise
from .topology import Array, edges, face_normals, manifold_pairs

_ANGLES = 16
_OVERLAP = 2e-4
"""Share of covered texels that may be covered twice before the folds that cause it are cut off."""
_UNFOLD_ROUNDS = 4


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
    vertices: Array,
    faces: Array,
    size: int,
    options: ChartOptions = ChartOptions(),
    padding: int = 2,
    ctx: RunContext = QUIET,
) -> Unwrap:
    """Cut, flatten and pack a surface into a square atlas.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], consistently wound, F >= 1.
        size: texels along a side of the atlas.
        options: see `ChartOptions`.
        padding: texels kept free between charts at `size`.
        ctx: told the progress.

    Raises:
        InputError: more charts than the atlas has room for.
    """
    chart, axis = cut_charts(vertices, faces, options, ctx.part(0.0, 0.3, "unwrap"))
    scale = None
    for round_ in range(_UNFOLD_ROUNDS + 1):
        part = ctx.part(1 - 0.7 / 2**round_, 1 - 0.35 / 2**round_, "unwrap")
        flat, scale = _lay_out(vertices, faces, chart, axis, size, padding, part, scale)
        if flat.overlap <= _OVERLAP * len(flat.texels.number) or round_ == _UNFOLD_ROUNDS:
            break
        pair = manifold_pairs(edges(faces))[1] // 3
        chart = split(pair[:, 0], pair[:, 1], chart, _behind(vertices, faces, flat))
        axis = chart_axes(face_normals(vertices.astype(np.float64), faces), chart)
    ctx.report(1.0)
    return flat


def _lay_out(
    vertices: Array,
    faces: Array,
    chart: Array,
    axis: Array,
    size: int,
    padding: int,
    ctx: RunContext,
    scale: float | None,
) -> tuple[Unwrap, float]:
    """Project charts [F] along their axes [C, 3], pack (at this scale if they fit) and rasterise them."""
    new_faces, source, owner = _open(faces, chart)
    right, down = basis(axis)
    points = vertices[source].astype(np.float64)
    flat = np.stack([(points * side[owner]).sum(1) for side in (right, down)], axis=1)
    part = ctx.part(0.0, 0.8, "unwrap")
    texels, scale = pack_charts(_turn(flat, owner), owner, _rim(new_faces), size, padding, part, scale)
    uvs = (texels / size).astype(np.float32)
    parts = list(rasterise(texel_corners(uvs, new_faces, size), size, ctx.part(0.8, 1.0, "unwrap")))
    covered = Texels(torch.cat([part.number for part in parts]), torch.cat([part.face for part in parts]))
    once = torch.zeros(size * size, dtype=torch.bool)
    once[covered.number] = True
    return Unwrap(new_faces, source, uvs, chart, axis, covered, len(covered.number) - int(once.sum())), scale


def texel_corners(uvs: Array, faces: Array, size: int) -> Tensor:
    """Corners float32 [F, 3, 2] of triangles in texels."""
    return torch.from_numpy(uvs[faces]) * size


def _behind(vertices: Array, faces: Array, flat: Unwrap) -> Array:
    """Faces bool [F] that share a texel with one in front of them, seen along the axis of their chart."""
    depth = (vertices[faces].mean(1) * flat.axis[flat.chart]).sum(1)
    rank = torch.empty(len(faces), dtype=torch.int64)
    rank[torch.from_numpy(np.argsort(depth, kind="stable"))] = torch.arange(len(faces))
    number, face = flat.texels.number, flat.texels.face
    front = torch.full((int(number.max()) + 1,), -1).scatter_reduce_(0, number, rank[face], "amax")
    behind = torch.zeros(len(faces), dtype=torch.bool)
    behind[face[rank[face] < front[number]]] = True
    return behind.numpy()


def _open(faces: Array, chart: Array) -> tuple[Array, Array, Array]:
    """Give every chart its own vertices: (faces int32, old vertex int64 [W], chart int64 [W]), grouped by chart."""
    span = int(faces.max()) + 1
    key = chart[:, None] * span + faces
    unique, inverse = np.unique(key, return_inverse=True)
    return inverse.reshape(-1, 3).astype(np.int32), unique % span, unique // span


def _rim(faces: Array) -> Array:
    """Edges [B, 2] with a face on one side only: the outlines of charts that have their own vertices."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2).astype(np.int64)
    key = sides.min(1) * (int(faces.max()) + 1) + sides.max(1)
    order = np.argsort(key, kind="stable")
    opens = np.ones(len(key) + 1, bool)
    opens[1:-1] = key[order[1:]] != key[order[:-1]]
    return sides[order[opens[:-1] & opens[1:]]]


def _turn(flat: Array, owner: Array) -> Array:
    """Turn every chart so that its bounding box is smallest, upright, with its corner at the origin."""
    start = np.searchsorted(owner, np.arange(int(owner.max()) + 1))
    angle = np.arange(_ANGLES) * (np.pi / 2 / _ANGLES)
    boxes = []
    for cosine, sine in zip(np.cos(angle), np.sin(angle), strict=True):
        turned = flat @ np.array([[cosine, sine], [-sine, cosine]])
        boxes.append(np.maximum.reduceat(turned, start) - np.minimum.reduceat(turned, start))
    boxes = np.stack(boxes)
    best = boxes.prod(2).argmin(0)
    box = boxes[best, np.arange(len(start))]
    turn = angle[best] + np.where(box[:, 0] > box[:, 1], np.pi / 2, 0)
    cosine, sine = np.cos(turn)[owner], np.sin(turn)[owner]
    x, y = flat.T
    flat = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)
    return flat - np.minimum.reduceat(flat, start)[owner]
