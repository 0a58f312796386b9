"""Back-projection: points of a coarse surface find the fine one."""

from __future__ import annotations

import numpy as np
import torch

from tests.helpers.solid_objects import ball
from trellis_core.texturing.back_projection import BackProjector
from trellis_core.texturing.bake import bake
from trellis_core.texturing.surface import Surface
from trellis_core.texturing.unwrap import texel_corners, unwrap
from trellis_core.values import PbrVoxels

RESOLUTION = 64


def test_points_come_back_onto_a_sphere() -> None:
    back = BackProjector(*ball(0.3, 5), RESOLUTION)
    direction = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    for off in (-0.4, 0.0, 0.4):
        found = back((0.3 * RESOLUTION + off) * direction + RESOLUTION / 2, direction) - RESOLUTION / 2
        assert (found.norm(dim=1) - 0.3 * RESOLUTION).abs().mean() < 0.05
        assert (torch.nn.functional.normalize(found, dim=1) * direction).sum(1).min() > 0.999, "along the normal"


def test_which_way_the_surface_is_wound_does_not_matter() -> None:
    vertices, faces = ball(0.3, 5)
    direction = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    points = (0.3 * RESOLUTION + 0.3) * direction + RESOLUTION / 2
    outward, inward = (BackProjector(vertices, f, RESOLUTION)(points, direction) for f in (faces, faces[:, ::-1]))
    torch.testing.assert_close(outward, inward, atol=1e-4, rtol=0)


def test_points_on_a_sharp_edge_and_far_from_everything_stay() -> None:
    steps = np.linspace(-0.25, 0.25, 33)
    u, v = (x.reshape(-1) for x in np.meshgrid(steps, steps, indexing="ij"))
    sides = [np.stack([u, v, np.full_like(u, 0.25)], 1), np.stack([np.full_like(u, 0.25), u, v], 1)]  # an edge at x = z
    grid = np.arange(33 * 33).reshape(33, 33)
    a, b, c, d = (g.reshape(-1) for g in (grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]))
    quads = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    points = np.round(np.concatenate(sides), 6).astype(np.float32)
    merged, inverse = np.unique(points, axis=0, return_inverse=True)
    faces = inverse.reshape(-1)[np.concatenate([quads, quads + 33 * 33])]
    back = BackProjector(merged, faces, RESOLUTION)
    on_top = torch.tensor([[0.1, 0.03, 0.25], [0.24, 0.01, 0.25], [-0.4, -0.4, -0.4], [9.0, 9.0, 9.0]])
    up = torch.tensor([[0.0, 0, 1]]).expand(4, 3)
    found = back((on_top + 0.5) * RESOLUTION, up) / RESOLUTION - 0.5
    assert (found - on_top).abs().max() * RESOLUTION < 0.05
    assert torch.equal(found[2:], on_top[2:])


def test_baked_colours_are_those_of_the_fine_surface() -> None:
    """Colour changes across the surface, so that a coarse mesh, which lies inside the ball, finds a darker one."""
    fine, coarse = ball(0.4, 5), ball(0.4, 3)

    coords = torch.cartesian_prod(*[torch.arange(RESOLUTION, dtype=torch.int32)] * 3)
    depth = ((coords + 0.5) / RESOLUTION - 0.5).norm(dim=1) - 0.4
    coords, depth = coords[depth.abs() < 3 / RESOLUTION], depth[depth.abs() < 3 / RESOLUTION]
    voxels = PbrVoxels(coords, (depth * RESOLUTION / 4 + 0.5)[:, None].expand(-1, 6), RESOLUTION)
    flat = unwrap(Surface.of(*coarse), 128)
    corners, points = texel_corners(flat.uvs, flat.faces, 128), torch.from_numpy(coarse[0][coarse[1]])
    direct, back = (
        bake(corners, points, flat.texels, voxels, 128, back=projector).base_color.view(-1, 4)[flat.texels.number, 0]
        for projector in (None, BackProjector(*fine, RESOLUTION))
    )
    missed = [float((found / 255 - 0.5).abs().mean()) for found in (direct, back)]
    assert missed[1] < 0.1 * missed[0], missed
