"""Textures and textured meshes -> volumes of PBR attributes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trellis_core.errors import EmptyResultError, InputError
from trellis_core.ovoxel.mipmap import Texture2D
from trellis_core.ovoxel.textured_mesh import BLEND, MASK, OPAQUE, Material, TexturedMesh, textured_mesh_to_attributes
from trellis_core.ovoxel.voxelize import mesh_to_dual_grid

BASE = torch.zeros(1, dtype=torch.float64)  # a footprint of no texels: the base level


def uv_at(x: float, y: float, size: int) -> torch.Tensor:
    """Texture coordinates of column x, row y of a picture, texel centres at +0.5."""
    return torch.tensor([[x / size, 1 - y / size]], dtype=torch.float64)


def square(material: Material, height: float = 0.01) -> TexturedMesh:
    """The unit square at z = height, facing up, with uv = (x, y) + 0.5."""
    corners = torch.tensor([[-0.5, -0.5, height], [0.5, -0.5, height], [0.5, 0.5, height], [-0.5, 0.5, height]])
    triangles = corners[torch.tensor([[0, 1, 2], [0, 2, 3]])]
    normals = torch.tensor([0.0, 0, 1]).expand(2, 3, 3)
    return TexturedMesh(triangles, normals, triangles[..., :2] + 0.5, torch.zeros(2, dtype=torch.int64), (material,))


def test_bilinear_lookup_and_wrap_modes() -> None:
    image = (torch.arange(16).view(4, 4) * 10).to(torch.uint8)
    texture = Texture2D.build(image)
    assert texture.sample(uv_at(1.5, 2.5, 4), BASE)[0, 0] * 255 == pytest.approx(90)
    assert texture.sample(uv_at(2.0, 2.5, 4), BASE)[0, 0] * 255 == pytest.approx(95)
    assert texture.sample(uv_at(1.5, 1.0, 4), BASE)[0, 0] * 255 == pytest.approx(30)
    beyond = {"repeat": 90, "clamp": 110, "mirror": 100}  # column 5.5 of row 2, of columns 0..3
    for wrap, value in beyond.items():
        for linear in (True, False):
            found = Texture2D.build(image, wrap=wrap, linear=linear).sample(uv_at(5.5, 2.5, 4), BASE)
            assert found[0, 0] * 255 == pytest.approx(value)


def test_mip_levels_are_truncated_means_and_blend() -> None:
    image = torch.tensor([[1, 2], [3, 5]], dtype=torch.uint8)  # mean 2.75
    texture = Texture2D.build(image)
    centre = torch.tensor([[0.25, 0.75]], dtype=torch.float64)  # of the top left texel
    for texels, value in ((0.5, 1), (1.0, 1), (2.0, 2), (64.0, 2), (2**0.5, 1.5)):
        footprint = torch.tensor([texels / 2], dtype=torch.float64)
        assert texture.sample(centre, footprint)[0, 0] * 255 == pytest.approx(value)


def test_pictures_that_have_no_mip_chain_are_refused() -> None:
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="6 x 4"):
        Texture2D.build(image)
    with pytest.raises(InputError, match="wrap"):
        Texture2D.build(image[:, :4], wrap="border")
    assert Texture2D.build(image, linear=False).sample(uv_at(1.5, 1.5, 4), BASE).shape == (1, 3)


def test_voxels_carry_the_picture_of_the_surface() -> None:
    ramp = (torch.arange(64) * 4).to(torch.uint8)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 51, dtype=torch.uint8)], 2)
    mesh = square(Material(base_color=Texture2D.build(picture, wrap="clamp"), roughness_factor=0.25))
    found = textured_mesh_to_attributes(mesh, 16)
    grid = mesh_to_dual_grid(mesh.triangles.view(-1, 3), torch.arange(6).view(2, 3), 16)
    assert {tuple(c) for c in found.coords.tolist()} == {tuple(c) for c in grid.coords.tolist()}
    # u grows with x; v grows with y and the picture's rows run downwards.
    centre = (found.coords + 0.5) / 16
    assert (found.base_color[:, 0] * 255 - (centre[:, 0] * 256 - 2)).abs().max() < 3
    assert (found.base_color[:, 1] * 255 - ((1 - centre[:, 1]) * 256 - 2)).abs().max() < 3
    torch.testing.assert_close(found.base_color[:, 2], torch.full_like(found.roughness, 0.2))
    torch.testing.assert_close(found.roughness, torch.full_like(found.roughness, 0.25))
    torch.testing.assert_close(found.normal, torch.tensor([0.0, 0, 1]).expand_as(found.normal))
    voxels = found.to_voxels(16)
    assert torch.equal(voxels.attrs[:, :3], found.base_color) and torch.equal(voxels.attrs[:, 4], found.roughness)
    assert (found.to_uint8().roughness == 63).all()  # 63.75 truncated


def test_alpha_modes() -> None:
    half = Texture2D.build(torch.full((1, 1), 127, dtype=torch.uint8))
    for mode, cutoff, value in ((OPAQUE, 0.9, 1.0), (MASK, 0.9, 0.0), (MASK, 0.1, 1.0), (BLEND, 0.9, 127 / 255 / 2)):
        material = Material(alpha=half, alpha_factor=0.5, alpha_mode=mode, alpha_cutoff=cutoff)
        alpha = textured_mesh_to_attributes(square(material), 4).alpha
        torch.testing.assert_close(alpha, torch.full_like(alpha, value))


def test_normal_map_tilts_along_the_texture() -> None:
    tilt = Texture2D.build(torch.tensor([[[255, 127, 127]]], dtype=torch.uint8))  # along u
    normal = textured_mesh_to_attributes(square(Material(normal=tilt)), 4).normal
    torch.testing.assert_close(normal, torch.tensor([1.0, 0, 0]).expand_as(normal), atol=0.01, rtol=0)


def test_each_triangle_has_its_own_material() -> None:
    mesh = square(Material(metallic_factor=0.2))
    two = replace(mesh, materials=(*mesh.materials, Material(metallic_factor=0.8)), material_ids=torch.tensor([0, 1]))
    found = textured_mesh_to_attributes(two, 8)
    x, y = found.coords[:, :2].unbind(1)
    assert torch.allclose(found.metallic[x > y + 1], torch.tensor(0.2))
    assert torch.allclose(found.metallic[y > x + 1], torch.tensor(0.8))


def test_a_material_may_be_on_nothing() -> None:
    mesh = square(Material(metallic_factor=0.2))
    spare = replace(mesh, materials=(*mesh.materials, Material()))
    assert torch.equal(textured_mesh_to_attributes(spare, 8).metallic, textured_mesh_to_attributes(mesh, 8).metallic)


def test_a_mesh_between_grid_lines_has_no_voxels() -> None:
    with pytest.raises(EmptyResultError):
        textured_mesh_to_attributes(replace(square(Material()), triangles=torch.full((2, 3, 3), 0.01)), 4)
