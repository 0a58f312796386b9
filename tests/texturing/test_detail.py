"""Maps baked from the mesh before decimation: normals and ambient occlusion, held to what is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.helpers.solid_objects import ball, decoded
from trellis_core.asset.asset import Asset, make_asset
from trellis_core.mesh.distance import unsigned_distance
from trellis_core.mesh.topology import vertex_normals
from trellis_core.preview.asset import draw_asset
from trellis_core.settings import GenerationSettings
from trellis_core.texturing.detail import DetailSurface
from trellis_core.texturing.occlusion import ambient_occlusion
from trellis_core.texturing.raster import Interpolator, rasterise
from trellis_core.texturing.unwrap import texel_corners
from trellis_core.values import Mesh

RADIUS, HEIGHT, WAVES = 0.37, 0.008, 14.0
FEW = GenerationSettings(texture_size=1024, remesh=False, faces=1500, normal_map=True, occlusion_map=True)


def bumpy(directions: np.ndarray) -> np.ndarray:
    """Radius of the bumpy ball in directions [N, 3]."""
    return RADIUS + HEIGHT * np.sin(WAVES * directions + [0, 0.5, 1]).prod(1)


def bumpy_normals(directions: np.ndarray) -> np.ndarray:
    """Its exact unit normals [N, 3]."""
    phase = WAVES * directions + [0, 0.5, 1]
    sine, cosine = np.sin(phase), np.cos(phase)
    slope = np.stack([np.where(np.arange(3) == k, cosine, sine).prod(1) for k in range(3)], axis=1) * HEIGHT * WAVES
    along = slope - (slope * directions).sum(1, keepdims=True) * directions
    normals = directions - along / bumpy(directions)[:, None]
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def asset() -> Asset:
    vertices, faces = ball(1.0, 5)
    unit = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    return make_asset(*decoded((unit * bumpy(unit)[:, None]).astype(np.float32), faces, 96), FEW)


def shaded(asset: Asset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places, vertex normals and mapped normals [K, 3], as a renderer finds them at the texels."""
    side, faces = asset.normal_map.shape[0], asset.faces.long()
    corners = texel_corners(asset.uvs.numpy(), asset.faces.numpy(), side)
    found = []
    for texels in rasterise(corners, side):
        frame = torch.cat([asset.vertices[faces], asset.normals[faces], asset.tangents[faces][..., :3]], dim=2)
        place, normal, tangent = Interpolator(corners, frame)(texels, side).split(3, dim=1)
        normal, tangent = normalize(normal, dim=1), normalize(tangent, dim=1)
        bitangent = normalize(torch.linalg.cross(normal, tangent, dim=1), dim=1) * asset.tangents[faces[texels.face, 0], 3:]
        x, y, z = (asset.normal_map.view(-1, 3)[texels.number].float() / 255 * 2 - 1).split(1, dim=1)
        found.append((place, normal, normalize(x * tangent + y * bitangent + z * normal, dim=1)))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def test_mapped_normals_are_those_of_the_detail(asset: Asset) -> None:
    place, plain, mapped = shaded(asset)
    true = torch.from_numpy(bumpy_normals(normalize(place, dim=1).numpy().astype(np.float64))).float()
    off = [torch.rad2deg(torch.arccos((normals * true).sum(1).clamp(-1, 1))) for normals in (plain, mapped)]
    assert off[0].mean() > 4
    assert off[1].mean() < 1.6 and off[1].mean() < off[0].mean() / 4


def test_maps_are_off_unless_asked_for_and_whole_if_they_are(asset: Asset) -> None:
    assert asset.normal_map.shape == (1024, 1024, 3) and len(asset.tangents) == len(asset.vertices)
    assert (asset.normal_map[..., 2] > 100).all(), "gaps are filled with normals that point outward too"
    assert asset.metallic_roughness[..., 0].float().mean() > 230, "a ball is open on all sides"
    plain = make_asset(*decoded(*ball(), 16), GenerationSettings(texture_size=1024, remesh=False))
    assert plain.normal_map is None and plain.tangents is None and (plain.metallic_roughness[..., 0] == 255).all()


def test_a_picture_of_few_faces_with_the_map_looks_like_the_bumpy_ball(asset: Asset) -> None:
    vertices, faces = ball(1.0, 5)
    unit = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    model = decoded((unit * bumpy(unit)[:, None]).astype(np.float32), faces, 96)
    full = make_asset(*model, GenerationSettings(texture_size=1024, remesh=False))
    flat = Asset(**{**vars(asset), "normal_map": None})
    wanted, mapped, plain = (draw_asset(a, size=160).astype(float)[50:110, 50:110] for a in (full, asset, flat))
    assert np.abs(mapped - wanted).mean() < 0.5 * np.abs(plain - wanted).mean()


def test_a_refined_mesh_takes_its_detail_from_the_mesh_beside_it() -> None:
    mesh, voxels = decoded(*ball(0.4, 4), 48)
    few = ball(0.4, 2)
    low = Mesh(torch.from_numpy(few[0]), torch.from_numpy(few[1].astype(np.int32)))
    settings = GenerationSettings(texture_size=1024, normal_map=True)
    place, plain, mapped = shaded(make_asset(low, voxels, settings, refined=True, detail=mesh))
    true = normalize(place, dim=1)
    assert (mapped * true).sum(1).mean() > (plain * true).sum(1).mean()


def test_points_beside_a_wall_find_their_own_side() -> None:
    vertices, faces = ball(0.4, 4)
    inner = (vertices * 0.97, faces[:, ::-1])
    both = np.concatenate([vertices, inner[0]]), np.concatenate([faces, inner[1] + len(vertices)])
    surface = DetailSurface(*both)
    unit = normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    face, weights = surface.nearest(unit * 0.392, unit)
    assert (face < len(faces)).all()
    face, weights = surface.nearest(unit * 0.392, -unit)
    assert (face >= len(faces)).all()
    torch.testing.assert_close(normalize(surface.blend(surface.normals, face, weights), dim=1), -unit, atol=0.03, rtol=0)


def test_nearest_points_are_nearly_the_exact_ones() -> None:
    vertices, faces = ball(0.4, 4)
    surface = DetailSurface(vertices, faces)
    points = normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(1)), dim=1) * 0.405
    face, weights = surface.nearest(points, normalize(points, dim=1))
    found = surface.blend(torch.from_numpy(vertices), face, weights)
    exact = unsigned_distance(points, torch.from_numpy(vertices), torch.from_numpy(faces)).distance
    assert ((found - points).norm(dim=1) - exact).abs().max() < 1e-4


def openness(vertices: np.ndarray, faces: np.ndarray) -> torch.Tensor:
    normals = torch.from_numpy(vertex_normals(vertices, faces))
    return ambient_occlusion(torch.from_numpy(vertices), torch.from_numpy(faces.copy()), normals)


def test_openness_of_what_is_known() -> None:
    vertices, faces = ball(0.4, 3)
    assert openness(vertices, faces).min() > 0.97
    assert openness(vertices, faces[:, ::-1]).max() < 0.03
    # At the foot of a wall half of the sky is gone.
    floor = np.float32([[-1, 0, 0], [1, 0, 0], [1, 1, 0], [-1, 1, 0], [-1, 0, 1], [1, 0, 1], [0, 0.03, 0], [0, 0.9, 0]])
    corners = np.array([[0, 1, 6], [1, 2, 6], [2, 7, 6], [3, 6, 7], [0, 6, 3], [2, 3, 7], [0, 4, 1], [1, 4, 5]])
    found = openness(floor, corners)
    assert found[6] == pytest.approx(0.5, abs=0.08)
    # From 0.9 away the wall of height 1 and half width 1 hides this share (form factor of a rectangle at right angles).
    x, h, w = 0.9, 1.0, 1.0
    reach = np.hypot(x, h)
    hidden = (np.arctan(w / x) - x / reach * np.arctan(w / reach)) / np.pi
    assert found[7] == pytest.approx(1 - hidden, abs=0.04)
