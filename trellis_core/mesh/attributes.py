"""Read a sparse attribute volume at any point (spec B 4.2): trilinear over the active corners only."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..run import QUIET, RunContext
from ..values import PbrVoxels
from .lookup import BrickTable, find_rows_reference

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
    query = (points.float() + 0.5) * voxels.resolution
    return grid_sample_3d(voxels.attrs, voxels.coords, voxels.resolution, query, nearest_if_empty=nearest_if_empty, ctx=ctx)


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
    """Sample a sparse grid (spec B 4.2).

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
    table = BrickTable.build(coords, shape)
    padded = torch.cat([feats.float(), feats.new_zeros(1, feats.shape[1]).float()])  # the row of what is not there
    sampled = padded.new_empty(len(query), feats.shape[1])
    for start in range(0, len(query), _POINTS):
        ctx.report(start / len(query))
        points = query[start : start + _POINTS].float()
        rows, weights = trilinear_corners(table, points) if mode == "trilinear" else _own_cell(table, points)
        if nearest_if_empty:
            empty = ((rows < 0).all(1) & points.isfinite().all(1)).nonzero()[:, 0]
            rows[empty, 0] = _nearest_voxel(coords, points[empty])
            weights[empty, 0] = 1
        rows = torch.where(rows < 0, len(feats), rows)
        found = torch.nn.functional.embedding_bag(rows, padded, per_sample_weights=weights, mode="sum")
        sampled[start : start + _POINTS] = found
    return sampled


def trilinear_corners(table: BrickTable, query: Tensor) -> tuple[Tensor, Tensor]:
    """Cells around `query` [P, 3], x fastest: rows int32 [P, 8], -1 = not active, and weights [P, 8] that sum to 1 or 0."""
    shifted = _bounded(query, table.shape) - 0.5
    base = shifted.floor()
    after = shifted - base
    base = base.int()
    rows = table.find_corners(base)
    (x0, y0, z0), (x1, y1, z1) = (1 - after).unbind(1), after.unbind(1)
    area = [y0 * z0, y1 * z0, y0 * z1, y1 * z1]
    weights = [(x1 if corner & 1 else x0) * area[corner >> 1] for corner in range(8)]
    rows, weight = torch.stack(rows, 1), torch.stack(weights, 1)
    weight *= rows >= 0
    return rows, weight / weight.sum(1, keepdim=True).clamp(min=1e-12)


def _own_cell(table: BrickTable, query: Tensor) -> tuple[Tensor, Tensor]:
    row = table.find(*_bounded(query, table.shape).trunc().int().unbind(1))[:, None]
    return row, torch.ones_like(row, dtype=query.dtype)


def _bounded(query: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring points that are far outside or not finite just outside, where numbers are safe to round to integers."""
    limit = torch.tensor(shape, dtype=query.dtype, device=query.device) + 2
    finite = query.isfinite().all(1, keepdim=True)
    return torch.where(finite, query.clamp(min=-2).minimum(limit), -2.0)


def _nearest_voxel(coords: Tensor, query: Tensor) -> Tensor:
    """Row (int32) of the voxel whose centre is nearest to each query, -1 if there is none."""
    if len(query) == 0 or len(coords) == 0:
        return torch.full((len(query),), -1, dtype=torch.int32, device=query.device)
    from scipy.spatial import cKDTree

    tree = cKDTree(coords.cpu().numpy() + 0.5, compact_nodes=False, balanced_tree=False)
    return torch.from_numpy(tree.query(query.cpu().numpy())[1]).int().to(query.device)


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
