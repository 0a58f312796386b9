"""Closest point on a mesh: exact against brute force, whatever the triangles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.errors import InputError
from trellis_core.mesh.distance import TriangleIndex, closest_weights, unsigned_distance

SEEDS = st.integers(0, 2**31)


def brute_force(points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    corners = vertices.double()[faces]
    pairs = torch.cartesian_prod(torch.arange(len(points)), torch.arange(len(faces)))
    query, triangle = points.double()[pairs[:, 0]], corners[pairs[:, 1]]
    closest = (closest_weights(query, triangle)[:, :, None] * triangle).sum(1)
    return (query - closest).norm(dim=1).view(len(points), -1).amin(1)


def mixed_mesh(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random triangles from tiny to large, slivers and degenerate ones among them."""
    rng = torch.Generator().manual_seed(seed)
    size = 10 ** -(3 * torch.rand(40, 1, 1, generator=rng))
    corners = torch.rand(40, 1, 3, generator=rng) + size * torch.randn(40, 3, 3, generator=rng)
    corners[0, 1] = corners[0, 0]
    corners[1] = corners[1, :1]
    corners[2, 2] = (corners[2, 0] + corners[2, 1]) / 2
    return corners.view(-1, 3), torch.arange(120).view(-1, 3)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_no_triangle_is_nearer_than_the_one_found(seed: int) -> None:
    vertices, faces = mixed_mesh(seed)
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
    found = unsigned_distance(points, vertices, faces)
    torch.testing.assert_close(found.distance.double(), brute_force(points, vertices, faces), atol=1e-6, rtol=1e-6)
    assert found.uvw.min() >= 0 and torch.allclose(found.uvw.sum(1), torch.ones(60), atol=1e-6)
    on_face = (found.uvw[:, :, None] * vertices[faces[found.face]]).sum(1)
    torch.testing.assert_close(on_face, found.point, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((points - found.point).norm(dim=1), found.distance, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_no_point_of_the_triangle_is_nearer(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    triangle, point = torch.randn(30, 3, 3, generator=rng).double(), torch.randn(30, 3, generator=rng).double()
    weights = closest_weights(point, triangle)
    least = ((weights[:, :, None] * triangle).sum(1) - point).norm(dim=1)
    some = torch.rand(300, 30, 3, generator=rng).double()
    others = ((some / some.sum(2, keepdim=True))[..., None] * triangle).sum(2)
    assert (least <= (others - point).norm(dim=2) + 1e-12).all()


def test_each_region_of_a_triangle() -> None:
    triangle = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [0, 4, 0]]], dtype=torch.float64)
    points = {
        (1.0, 1.0, 5.0): (0.5, 0.25, 0.25), (2.0, -3.0, 1.0): (0.5, 0.5, 0.0), (5.0, 5.0, 0.0): (0.0, 0.5, 0.5),
        (-1.0, 1.0, 0.0): (0.75, 0.0, 0.25), (-1.0, -1.0, 2.0): (1.0, 0.0, 0.0), (9.0, -1.0, 0.0): (0.0, 1.0, 0.0),
    }  # fmt: skip
    for point, weights in points.items():
        found = closest_weights(torch.tensor([point], dtype=torch.float64), triangle)[0]
        assert found.tolist() == pytest.approx(weights)


def test_queries_may_be_none_or_on_the_surface() -> None:
    vertices, faces = mixed_mesh(0)
    index = TriangleIndex(vertices, faces)
    assert index.query(torch.zeros(0, 3)).point.shape == (0, 3)
    assert index.query(vertices).distance.max() < 1e-6


def test_unusable_input_is_refused() -> None:
    vertices, faces = mixed_mesh(0)
    with pytest.raises(InputError, match="no faces"):
        TriangleIndex(vertices, faces[:0])
    with pytest.raises(InputError, match="mesh has vertices"):
        TriangleIndex(vertices / 0, faces)
    with pytest.raises(InputError, match="query points"):
        TriangleIndex(vertices, faces).query(vertices / 0)
