"""Mesh -> dual grid: what the grid must know of a surface, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, EmptyResultError, InputError
from trellis_core.mesh.distance import unsigned_distance
from trellis_core.ovoxel import voxelize
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.ovoxel.quadric import line_quadrics, minimise_in_boxes, plane_quadrics, point_quadrics
from trellis_core.ovoxel.voxelize import mesh_to_dual_grid

SEEDS = st.integers(0, 2**31)


def sphere(radius: float, rings: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Closed welded sphere: vertices [V, 3], faces [F, 3]."""
    polar = torch.linspace(0, torch.pi, rings + 1)[1:-1]
    turn = torch.arange(2 * rings) * torch.pi / rings
    ring = torch.stack([turn.cos(), turn.sin()], 1)
    body = torch.cat([polar.sin()[:, None, None] * ring, polar.cos()[:, None, None].expand(-1, 2 * rings, 1)], 2).view(-1, 3)
    vertices = torch.cat([torch.tensor([[0, 0, 1.0], [0, 0, -1.0]]), body]) * radius
    index = 2 + torch.arange((rings - 1) * 2 * rings).view(rings - 1, -1)
    after = index.roll(-1, 1)
    quads = torch.stack([index[:-1], index[1:], after[1:], after[:-1]], -1).view(-1, 4)
    top = torch.stack([torch.zeros_like(index[0]), index[0], after[0]], 1)
    bottom = torch.stack([torch.ones_like(index[0]), after[-1], index[-1]], 1)
    return vertices, torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]], top, bottom])


def random_soup(seed: int, triangles: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(3 * triangles, 3, generator=rng) * 0.9 - 0.45, torch.arange(3 * triangles).view(-1, 3)


@pytest.mark.parametrize("size", [16, 31])
def test_sphere_there_and_back(size: int) -> None:
    vertices, faces = sphere(0.4)
    grid = mesh_to_dual_grid(vertices, faces, size)
    mesh = dual_grid_to_mesh(grid.coords, grid.dual_vertices, grid.intersected, None, size)
    assert len(mesh.faces) == 2 * grid.intersected.sum()
    assert unsigned_distance(mesh.vertices, vertices, faces).distance.max() < 0.3 / size
    # Every grid edge with one end inside and one end outside is flagged, so that the mesh separates the two.
    radius = torch.stack(torch.meshgrid(*[torch.arange(size + 1) / size - 0.5] * 3, indexing="ij"), -1).norm(dim=-1)
    inside, outside = radius < 0.39, radius > 0.401
    flags = torch.zeros(size, size, size, 3, dtype=torch.bool)
    flags[tuple(grid.coords.long().unbind(1))] = grid.intersected
    for axis in range(3):
        lead = [slice(1, size + 1)] * 3  # the edge of voxel (x, y, z) runs along `axis` at the far corner across
        start, stop = list(lead), list(lead)
        start[axis], stop[axis] = slice(0, size), slice(1, size + 1)
        apart = (inside[tuple(start)] & outside[tuple(stop)]) | (outside[tuple(start)] & inside[tuple(stop)])
        assert apart.any() and flags[..., axis][apart].all()


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(4, 20))
def test_any_soup_comes_back_within_a_voxel(seed: int, size: int) -> None:
    vertices, faces = random_soup(seed, 5)
    grid = mesh_to_dual_grid(vertices, faces, size)
    low = grid.coords / size - 0.5
    assert len(torch.unique(grid.coords, dim=0)) == len(grid.coords)
    assert 0 <= grid.dual_vertices.min() and grid.dual_vertices.max() <= 1
    # A voxel is active because the surface meets its closed box.
    away = unsigned_distance(low + 0.5 / size, vertices, faces).distance
    assert away.max() <= 0.5 * 3**0.5 / size + 1e-5


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_flags_are_the_grid_edges_that_triangles_cross(seed: int) -> None:
    size = 8
    vertices, faces = random_soup(seed, 3)
    grid = mesh_to_dual_grid(vertices, faces, size)
    flags = torch.zeros(size, size, size, 3, dtype=torch.bool)
    flags[tuple(grid.coords.long().unbind(1))] = grid.intersected
    start = (torch.stack(torch.meshgrid(*[torch.arange(size - 1)] * 3, indexing="ij"), -1) / size).double() - 0.5
    for axis in range(3):
        step = torch.eye(3, dtype=torch.float64)[axis]
        origin = start + (1 - step) / size
        margin = _crosses(vertices.double()[faces], origin.view(-1, 1, 3), step / size)
        crossed, sure = (margin > 0).any(1), (margin.abs() > 1e-5).all(1)
        mine = flags[: size - 1, : size - 1, : size - 1, axis].reshape(-1)
        assert torch.equal(mine[sure], crossed[sure])


def _crosses(triangles: torch.Tensor, origin: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Positive where the segment origin..origin+step pierces a triangle; the size says by how much (Moeller-Trumbore)."""
    a, b, c = triangles.unbind(1)
    p = torch.linalg.cross(step.expand_as(a), c - a)
    det = ((b - a) * p).sum(-1)
    s = origin - a
    u = (s * p).sum(-1) / det
    q = torch.linalg.cross(s, (b - a).expand_as(s))
    v = (step * q).sum(-1) / det
    t = ((c - a) * q).sum(-1) / det
    return torch.stack([u, v, 1 - u - v, t, 1 - t], -1).amin(-1)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_box_minimum_beats_every_point_of_the_box(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    planes = plane_quadrics(torch.rand(40, 3, 3, generator=rng) * 2 - 0.5)
    quadric = planes[:20] + 0.3 * planes[20:] + 1e-3 * point_quadrics(torch.rand(20, 3, generator=rng).double())
    low = torch.rand(20, 3, generator=rng)
    best = minimise_in_boxes(quadric, low, low + 0.5)
    assert ((best >= low - 1e-9) & (best <= low + 0.5 + 1e-9)).all()
    other = low + 0.5 * torch.rand(200, 20, 3, generator=rng)
    assert (_error(quadric, best) <= _error(quadric, other) + 1e-9).all()


def _error(quadric: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    x, y, z = point.double().unbind(-1)
    one = torch.ones_like(x)
    terms = torch.stack([x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z, 2 * x, 2 * y, 2 * z, one], -1)
    return (terms * quadric).sum(-1)


def test_quadrics_are_squared_distances() -> None:
    rng = torch.Generator().manual_seed(1)
    point, start = torch.rand(2, 30, 3, generator=rng, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.rand(30, 3, generator=rng, dtype=torch.float64), dim=1)
    square = torch.linalg.cross(point - start, direction).square().sum(1)
    torch.testing.assert_close(_error(line_quadrics(start, direction), point), square)
    torch.testing.assert_close(_error(point_quadrics(start), point), (point - start).square().sum(1))
    triangle = torch.tensor([[[0.0, 0, 2], [1, 0, 2], [0, 3, 2]], [[1.0, 1, 1]] * 3])
    assert _error(plane_quadrics(triangle), torch.tensor([[7.0, 7, 5], [7, 7, 5]])).tolist() == [9, 0]


def test_sharp_edge_is_kept() -> None:
    corner = 0.23
    vertices = torch.tensor([[x, y, z] for x in (-corner, corner) for y in (-corner, corner) for z in (-corner, corner)])
    quads = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    grid = mesh_to_dual_grid(vertices, faces, 16)
    placed = (grid.coords + grid.dual_vertices) / 16 - 0.5
    nearest = (placed[:, None] - vertices).norm(dim=2).amin(0)
    assert nearest.max() < 0.05 / 16


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = random_soup(3, 40)
    whole = mesh_to_dual_grid(vertices, faces, 24)
    from trellis_core.ovoxel import crossings

    for module, name in ((crossings, "_TRIANGLES"), (crossings, "_ROWS"), (crossings, "_CROSSINGS"), (voxelize, "_CANDIDATES")):
        monkeypatch.setattr(module, name, 7)
    monkeypatch.setattr(voxelize, "_TRIANGLES", 5)
    parts = mesh_to_dual_grid(vertices, faces, 24)
    assert torch.equal(whole.coords, parts.coords) and torch.equal(whole.intersected, parts.intersected)
    torch.testing.assert_close(whole.dual_vertices, parts.dual_vertices, atol=1e-6, rtol=0)


def test_bad_meshes_are_refused_and_runs_can_be_cancelled() -> None:
    vertices, faces = sphere(0.4, 6)
    with pytest.raises(InputError, match="beyond"):
        mesh_to_dual_grid(vertices, faces + 1, 8)
    with pytest.raises(InputError, match="finite"):
        mesh_to_dual_grid(vertices * torch.nan, faces, 8)
    with pytest.raises(EmptyResultError):
        mesh_to_dual_grid(vertices * 0.01 + 0.03, faces, 8)
    with pytest.raises(EmptyResultError):
        mesh_to_dual_grid(vertices, faces[:0], 8)
    with pytest.raises(Cancelled):
        mesh_to_dual_grid(vertices, faces, 8, ctx=RunContext(is_cancelled=lambda: True))
