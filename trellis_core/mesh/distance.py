"""Closest point on a triangle mesh, exact, for any number of queries (docs/method/mesh.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..errors import InputError
from ..ovoxel.crossings import spread

_PAIRS = 1 << 16
_FIRST_NEIGHBOURS = 16
_SHORT = 1e-6  # a shorter edge counts as its first end
_NO_AREA = 1e-24  # of the squared normal


@dataclass(frozen=True)
class Nearest:
    """Where a mesh is closest to each of Q points.

    Attributes:
        distance: float32 [Q].
        face: int64 [Q]; of several equally near faces any one.
        uvw: float32 [Q, 3], weights of the face's three corners, 0..1, sum 1; finite for degenerate faces too.
        point: float32 [Q, 3], the closest point.
    """

    distance: Tensor
    face: Tensor
    uvw: Tensor
    point: Tensor


class TriangleIndex:
    """Answers closest-point queries on one mesh; build once, query often. On the CPU, needs SciPy.

    Triangles are covered by patches whose points all lie within `radius` of the patch's centre; large triangles are cut into
    several. A KD-tree hands out centres in order of distance, and a query is settled when the next centre is further away than
    the best triangle so far plus `radius`: the answer is exact.
    """

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        """Vertices float [V, 3], faces integer [F, 3] with F > 0; raises `InputError` for an empty or not finite mesh."""
        vertices, faces = vertices.detach().cpu().double(), faces.detach().cpu().long()
        if len(faces) == 0:
            raise InputError("The mesh has no faces, so nothing is close to it.")
        self.triangles = vertices[faces]
        if not self.triangles.isfinite().all():
            raise InputError("The mesh has vertices that are not finite numbers.")
        reach = (self.triangles - self.triangles.mean(1, keepdim=True)).norm(dim=2).amax(1)
        # Cut only what is well above the usual size: about as many patches come out as there are triangles.
        limit = 1.5 * (reach.square().sum() / (len(faces) + 1000)).sqrt().clamp_(min=torch.finfo(torch.float64).tiny)
        pieces = (reach / limit).ceil().clamp_(min=1).long()
        self.radius = float((reach / pieces).max())
        self.owner, self.centres = _patches(self.triangles, pieces)

    @cached_property
    def _tree(self):  # noqa: ANN202  scipy is imported on first use
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

        return cKDTree(self.centres.numpy())

    def query(self, points: Tensor, *, ctx: RunContext = QUIET) -> Nearest:
        """Closest points to `points` float [Q, 3]; fastest near the surface, tens of microseconds a query."""
        points = points.detach().cpu().double()
        if not points.isfinite().all():
            raise InputError("Some query points are not finite numbers.")
        square = torch.full((len(points),), torch.inf, dtype=torch.float64)
        face = torch.zeros(len(points), dtype=torch.int64)
        open_rows, seen, wanted = torch.arange(len(points)), 0, _FIRST_NEIGHBOURS
        while len(open_rows):
            wanted = min(wanted, len(self.centres))
            still_open = []
            for rows in open_rows.split(max(_PAIRS // wanted, 1)):
                ctx.report(1 - len(open_rows) / len(points))
                still_open.append(self._improve(points, rows, seen, wanted, square, face))
            open_rows = torch.cat(still_open)
            seen, wanted = wanted, 2 * wanted
        uvw = torch.zeros_like(points)
        for rows in torch.arange(len(points)).split(_PAIRS):
            uvw[rows] = closest_weights(points[rows], self.triangles[face[rows]])
        closest = (uvw[:, :, None] * self.triangles[face]).sum(1)
        return Nearest(square.sqrt().float(), face, uvw.float(), closest.float())

    def _improve(self, points: Tensor, rows: Tensor, seen: int, wanted: int, square: Tensor, face: Tensor) -> Tensor:
        """Try the patches from the `seen`-th to the `wanted`-th nearest of `rows`; returns the rows that need more."""
        far, patch = self._tree.query(points[rows].numpy(), k=range(seen + 1, wanted + 1))
        far, patch = torch.from_numpy(far), torch.from_numpy(patch)
        near = far < square[rows].sqrt()[:, None] + self.radius
        query, place = near.nonzero(as_tuple=True)
        corner = self.triangles[self.owner[patch[query, place]]].permute(1, 2, 0).contiguous()
        found = torch.full(near.shape, torch.inf, dtype=torch.float64)
        found[query, place] = _closest(points[rows[query]].T.contiguous(), corner)[0]
        least, best = found.min(1)
        better = least < square[rows]
        square[rows[better]] = least[better]
        face[rows[better]] = self.owner[patch[better, best[better]]]
        if wanted == len(self.centres):
            return rows[:0]
        return rows[far[:, -1] < square[rows].sqrt() + self.radius]


def unsigned_distance(points: Tensor, vertices: Tensor, faces: Tensor, *, ctx: RunContext = QUIET) -> Nearest:
    """Closest points on a mesh: points float [Q, 3], vertices float [V, 3], faces integer [F, 3]; see `TriangleIndex`."""
    return TriangleIndex(vertices, faces).query(points, ctx=ctx)


def closest_weights(points: Tensor, triangles: Tensor) -> Tensor:
    """Barycentric weights [K, 3] of the point of each triangle [K, 3, 3] closest to each point [K, 3]; use float64.

    The foot of the perpendicular if it lies inside, else the nearest point of the three edges (of equals ab, then bc, then ca).
    """
    return _closest(points.T.contiguous(), triangles.permute(1, 2, 0).contiguous())[1].T


def _closest(point: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [K] and weights [3, K] for points [3, K] and triangles [corner, 3, K].

    Components come first because sums over a short last axis cost many times more.
    """
    a, b, c = corner
    ab, ac, ap = b - a, c - a, point - a
    normal = _cross(ab, ac)
    area = _dot(normal, normal)
    v, w = _dot(_cross(ap, ac), normal), _dot(_cross(ab, ap), normal)
    u = area - v - w
    within = (u >= 0) & (v >= 0) & (w >= 0) & (area >= _NO_AREA)
    square = torch.where(within, _dot(ap, normal).square() / area, torch.inf)
    weights = torch.stack([u, v, w]) / torch.where(within, area, 1.0)
    for side, (start, stop) in enumerate(((a, b), (b, c), (c, a))):
        edge, arm = stop - start, point - start
        length = _dot(edge, edge)
        t = torch.where(length < _SHORT**2, 0.0, (_dot(arm, edge) / length).clamp(0, 1))
        gap = arm - t * edge
        gap = torch.where(within, torch.inf, _dot(gap, gap))
        nearer = gap < square
        square = torch.where(nearer, gap, square)
        ends = torch.zeros_like(weights)
        ends[side], ends[(side + 1) % 3] = 1 - t, t
        weights = torch.where(nearer, ends, weights)
    return square, weights


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _patches(triangles: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each triangle into pieces^2 similar ones: (triangle int64 [P], centre [P, 3])."""
    owner, place = spread(pieces.square())
    row = place.double().sqrt().floor()
    place = place - row * row
    column, downward = (place / 2).floor(), place % 2
    level = row + (2 - downward) / 3  # from corner a to the side bc
    along = column + (1 + downward) / 3  # from ab to ac
    v, w = (level - along) / pieces[owner], along / pieces[owner]
    mix = torch.stack([1 - v - w, v, w], 1)
    return owner, (mix[:, :, None] * triangles[owner]).sum(1)
