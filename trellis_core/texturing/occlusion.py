"""Ambient occlusion: the share of the surroundings that each point of a surface sees, weighted by the cosine.

The surface is looked at from many directions, evenly spread; a point sees a direction if nothing in that direction's depth
map lies before it. Depth maps are drawn as dots, close enough to leave no holes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..context import QUIET, RunContext

AXES = 36
"""Each is looked along both ways."""
_MAP = 384
"""Dots along a side of a depth map, over the diameter of the bounding sphere."""
_SPACING = 0.7
"""Dots lie at most this many map cells apart."""
_SLACK = 1.5
"""Map cells by which a blocker must lie before a point at right angles to the view."""


def ambient_occlusion(vertices: Tensor, faces: Tensor, normals: Tensor, ctx: RunContext = QUIET) -> Tensor:
    """Openness float32 [V] in 0..1 of the vertices of a mesh, 1 in the open; on the device of its arguments.

    Args:
        vertices: float32 [V, 3].
        faces: int64 [F, 3].
        normals: float32 [V, 3] unit.
        ctx: told the progress.
    """
    low, high = vertices.amin(0), vertices.amax(0)
    radius = float((high - low).norm()) / 2
    points = vertices - (low + high) / 2
    cell = max(2 * radius, 1e-12) / _MAP
    dots = _dots(points, faces, _SPACING * cell)
    seen, whole = torch.zeros(2, len(points), device=points.device)
    for number, view in enumerate(_half_sphere(AXES).to(points.device)):
        ctx.report(number / AXES)
        axes = torch.stack([*_across(view), view], dim=1)
        drawn, at = dots @ axes, points @ axes
        place, cosine = _cells(at, cell, radius), normals @ view
        # On a slope the surface itself rises towards the view within a cell.
        slack = cell * (_SLACK + (1 - cosine.square()).clamp_min(0).sqrt() / cosine.abs().clamp_min(0.1))
        empty = torch.full(((_MAP + 2) ** 2,), torch.inf, device=points.device)
        of_dot = _cells(drawn, cell, radius)
        highest = (-empty).scatter_reduce_(0, of_dot, drawn[:, 2], "amax")
        lowest = empty.scatter_reduce_(0, of_dot, drawn[:, 2], "amin")
        hidden = torch.where(cosine > 0, highest[place] - at[:, 2] > slack, at[:, 2] - lowest[place] > slack)
        whole += cosine.abs()
        seen += torch.where(hidden, 0.0, cosine.abs())
    return seen / whole.clamp_min(1e-6)


def _cells(at: Tensor, cell: float, radius: float) -> Tensor:
    column, row = ((at[:, k] + radius).div(cell).long().clamp_(0, _MAP) for k in range(2))
    return (row + 1) * (_MAP + 2) + column + 1


def _half_sphere(count: int) -> Tensor:
    """Unit vectors float32 [count, 3] along a golden spiral over half the sphere."""
    k = torch.arange(count, dtype=torch.float64, device="cpu") + 0.5
    z = 1 - k / count
    turn = k * math.pi * (1 + 5**0.5)
    reach = (1 - z * z).sqrt()
    return torch.stack([reach * turn.cos(), reach * turn.sin(), z], dim=1).float()


def _across(view: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors at right angles to a unit vector [3] and to each other."""
    least = torch.zeros_like(view)
    least[int(view.abs().argmin())] = 1.0
    right = torch.nn.functional.normalize(torch.linalg.cross(least, view, dim=0), dim=0)
    return right, torch.linalg.cross(view, right, dim=0)


def _dots(vertices: Tensor, faces: Tensor, spacing: float) -> Tensor:
    """Points [N, 3] on a surface, at most `spacing` apart: its vertices, and a grid on each larger triangle."""
    triangles = vertices[faces]
    longest = (triangles - triangles.roll(1, dims=1)).norm(dim=2).amax(1)
    large = longest > spacing
    triangles = triangles[large]
    pieces = (longest[large] / spacing).ceil().clamp_(1, 4 * _MAP).long()
    counts = (pieces + 1) * (pieces + 2) // 2
    owner = torch.repeat_interleave(counts)
    place = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    row = ((8 * place.double() + 1).sqrt() - 1).div(2).floor().long()
    column = place - row * (row + 1) // 2
    n = pieces[owner]
    weights = torch.stack([n - row, row - column, column], dim=1) / n[:, None]
    return torch.cat([vertices, (weights[:, :, None] * triangles[owner]).sum(1)])
