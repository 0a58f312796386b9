"""Read a sparse attribute volume at any point (docs/method/mesh.md): trilinear over the active corners only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..errors import InputError
from ..values import PbrVoxels
from .brick_table import BrickTable, find_rows_reference

_POINTS = 1 << 16


def sample_attributes(voxels: PbrVoxels, points: Tensor, *, nearest_if_empty: bool = True, ctx: RunContext = QUIET) -> Tensor:
    """PBR attributes at points of object space.

    Args:
        voxels: the attribute volume on the cube [-0.5, 0.5]^3.
        points: float [P, 3] in object space, on the device of the voxels.
        nearest_if_empty: take the nearest voxel where none of the eight around a point is active; the reference leaves zeros,
            which bake to black, transparent texels.

    Returns:
        float32 [P, 6], not clamped. Zeros for points that are not finite.
    """
    side = voxels.resolution
    place = lambda some: (points[some].float() + 0.5) * voxels.resolution  # noqa: E731
    return _sample(voxels.attrs, voxels.coords, side, place, len(points), "trilinear", nearest_if_empty, ctx)


def grid_sample_3d(
    feats: Tensor,
    coords: Tensor,
    shape: int | tuple[int, int, int],
    query: Tensor,
    *,
    mode: str = "trilinear",
    nearest_if_empty: bool = False,
    ctx: RunContext = QUIET,
) -> Tensor:
    """Sample a sparse grid (docs/method/mesh.md).

    Args:
        feats: float [N, C].
        coords: integer [N, 3], or [N, 4] with the sample number first; inside `shape`.
        shape: cells per axis.
        query: float [P, 3] in voxel units, cell c spanning c..c+1; or [B, L, 3] with coords [N, 4], item b asking sample b.
        mode: "trilinear": weighted mean over those of the eight cells around a point that are active, weights made to sum to 1;
            "nearest": the cell the point lies in.
        nearest_if_empty: where no such cell is active take the active voxel with the nearest centre, instead of zeros.

    Returns:
        float32 [P, C] or [B, L, C], zeros where nothing is found or a query is not finite.

    Raises:
        InputError: unknown mode, or query and coords disagree on the batch.
    """
    if mode not in ("trilinear", "nearest"):
        raise InputError(f'Sampling mode must be "trilinear" or "nearest", not "{mode}".')
    if (query.ndim, coords.shape[1]) == (3, 4):
        of_sample = [coords[:, 0] == b for b in range(len(query))]
        parts = [
            grid_sample_3d(feats[of], coords[of, 1:], shape, q, mode=mode, nearest_if_empty=nearest_if_empty, ctx=ctx)
            for of, q in zip(of_sample, query, strict=True)
        ]
        return torch.stack(parts)
    if (query.ndim, coords.shape[1]) != (2, 3):
        raise InputError(f"Queries {tuple(query.shape)} do not fit coordinates {tuple(coords.shape)}: batch both or neither.")
    place = lambda some: query[some].float()  # noqa: E731
    return _sample(feats, coords, shape, place, len(query), mode, nearest_if_empty, ctx)


def _sample(
    feats: Tensor,
    coords: Tensor,
    shape: int | tuple[int, int, int],
    place: Callable[[slice | Tensor], Tensor],
    count: int,
    mode: str,
    nearest_if_empty: bool,
    ctx: RunContext,
) -> Tensor:
    """`grid_sample_3d` of one sample at `count` points that `place` tells some at a time."""
    sampler = Trilinear(feats, coords, shape) if mode == "trilinear" else None
    table = sampler.table if sampler else BrickTable.build(coords, shape)
    sampled = torch.zeros(count, feats.shape[1], device=feats.device)
    found = torch.zeros(count, dtype=torch.bool, device=feats.device)
    for start in range(0, count, _POINTS):
        ctx.report(start / count)
        some = slice(start, start + _POINTS)
        if sampler:
            sampled[some], found[some] = sampler(place(some))
        else:
            row = table.find(*_bounded(place(some).T + 0.5, table.shape).int())
            found[some] = row >= 0
            sampled[some][found[some]] = feats[row[row >= 0].long()].float()
    if nearest_if_empty and len(coords):
        empty = (~found).nonzero()[:, 0]
        lost = place(empty)
        finite = lost.isfinite().all(1)
        sampled[empty[finite]] = feats[nearest_voxel(coords, lost[finite], ctx)].float()
    return sampled


class Trilinear:
    """Weighted means over those of the eight cells around a point that are active, prepared for any number of points.

    Args:
        feats: float [N, C].
        coords: integer [N, 3], inside `shape`.
        shape: cells per axis.
    """

    def __init__(self, feats: Tensor, coords: Tensor, shape: int | tuple[int, int, int]) -> None:
        self.table = BrickTable.build(coords, shape)
        self.channels = feats.shape[1]
        # Row 0 is what is not there, the column behind the values counts the weights; rows of 32 bytes are summed fastest.
        self.rows = torch.zeros(len(feats) + 1, -(-(self.channels + 1) // 8) * 8, device=feats.device)
        self.rows[1:, : self.channels] = feats
        self.rows[1:, self.channels] = 1

    def __call__(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Values float32 [P, C] at points float32 [P, 3] in voxel units, and where there are any, bool [P]."""
        rows, weights = _corners(self.table, query)
        sums = torch.nn.functional.embedding_bag(rows.add_(1), self.rows, per_sample_weights=weights, mode="sum")
        weight = sums[:, self.channels]
        return sums[:, : self.channels] / weight.clamp_min(1e-12)[:, None], weight > 0


def trilinear_corners(table: BrickTable, query: Tensor) -> tuple[Tensor, Tensor]:
    """Cells around `query` [P, 3], x fastest: rows int32 [P, 8], -1 = not active, and weights [P, 8] that sum to 1 or 0."""
    rows, weight = _corners(table, query)
    weight *= rows >= 0
    return rows, weight / weight.sum(1, keepdim=True).clamp(min=1e-12)


def corner_rows(table: BrickTable, query: Tensor) -> Tensor:
    """Rows int32 [P, 8] of the cells around `query` [P, 3], x fastest, -1 = not active."""
    return table.find_corners(_bounded(query.T, table.shape).floor().int())


def _corners(table: BrickTable, query: Tensor) -> tuple[Tensor, Tensor]:
    """Like `trilinear_corners`, but the weights of all eight cells sum to 1."""
    place = _bounded(query.T, table.shape)
    base = place.floor()
    after = place - base
    (x0, y0, z0), (x1, y1, z1) = 1 - after, after
    weight = torch.empty(len(query), 8, dtype=query.dtype, device=query.device)
    for k, area in enumerate((y0 * z0, y1 * z0, y0 * z1, y1 * z1)):
        torch.mul(x0, area, out=weight[:, 2 * k])
        torch.mul(x1, area, out=weight[:, 2 * k + 1])
    return table.find_corners(base.int()), weight


def _bounded(query: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Points [3, P] relative to the centre of cell 0; those that are not finite or far outside come just outside."""
    place = (query - 0.5).contiguous()
    for axis, size in zip(place, shape, strict=True):
        axis.clamp_(-2, size)
    return place.nan_to_num_(-2.0)


def nearest_voxel(coords: Tensor, query: Tensor, ctx: RunContext = QUIET) -> Tensor:
    """Row int64 [P] of the voxel of `coords` [N, 3], N >= 1, whose centre is nearest to each finite point [P, 3]."""
    if not len(query):
        return torch.zeros(0, dtype=torch.int64, device=query.device)
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

    tree = cKDTree(coords.cpu().numpy() + 0.5, compact_nodes=False, balanced_tree=False)
    found = []
    for some in query.cpu().split(_POINTS):
        ctx.check()
        found.append(torch.from_numpy(tree.query(some.numpy())[1]))
    return torch.cat(found).to(query.device)


def grid_sample_3d_reference(feats: Tensor, coords: Tensor, query: Tensor) -> Tensor:
    """Readable twin of the trilinear mode without fallback: feats [N, C], coords [N, 3], finite query [P, 3] -> [P, C]."""
    total = torch.zeros(len(query), feats.shape[1], device=feats.device)
    weight_sum = torch.zeros(len(query), 1, device=feats.device)
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=query.device)
        cell = (query - 0.5).floor().long() + step
        row = find_rows_reference(coords, cell)
        weight = (1 - (query - cell - 0.5).abs()).prod(1, keepdim=True) * (row >= 0)[:, None]
        total += weight * feats[row.clamp(min=0)] if len(feats) else 0
        weight_sum += weight
    return total / weight_sum.clamp(min=1e-12)
