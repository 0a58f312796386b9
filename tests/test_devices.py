"""Code that is to run wherever tensors live: nothing may be made on a device of its own choice."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from tests.helpers.solid_objects import ball
from trellis_core.errors import InputError
from trellis_core.texturing.bake import bake
from trellis_core.texturing.gpu_raster import draw, rasterise_with_nvdiffrast
from trellis_core.texturing.occlusion import ambient_occlusion
from trellis_core.texturing.raster import Interpolator, Texels, rasterise
from trellis_core.texturing.tangents import to_tangent_space
from trellis_core.values import PbrVoxels

SIZE = 64


def triangles(count: int = 40) -> torch.Tensor:
    """Corners of separate triangles in texels, float32 [count, 3, 2]."""
    generator = torch.Generator().manual_seed(3)
    cell = torch.stack([torch.arange(count) % 7, torch.arange(count) // 7], 1)[:, None] * 9.0
    return cell + torch.rand(count, 3, 2, generator=generator) * 8.5


def test_nothing_chooses_its_own_device() -> None:
    """Tensors made without a device would land on "meta" here, and meet those on the CPU with an error."""
    corners = triangles()
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(len(corners), 3, 3, generator=generator) - 0.5
    grid = torch.stack(torch.meshgrid(*[torch.arange(8, dtype=torch.int32)] * 3, indexing="ij"), -1).view(-1, 3)
    voxels = PbrVoxels(grid, torch.rand(len(grid), 6, generator=generator), 8)
    vertices, faces = (torch.from_numpy(array) for array in ball(0.4, 2))
    normals = torch.nn.functional.normalize(vertices, dim=1)
    expected = bake(corners, points, _all(corners), voxels, SIZE), ambient_occlusion(vertices, faces, normals)
    with torch.device("meta"):
        texels = _all(corners)
        values = Interpolator(corners, points)(texels, SIZE)
        baked = bake(corners, points, texels, voxels, SIZE)
        seen = ambient_occlusion(vertices, faces, normals)
        tilts = to_tangent_space(normals[:, [1, 2, 0]], normals, normals[:, [2, 0, 1]], normals[:, 0].sign())
    assert {t.device.type for t in (texels.number, values, baked.base_color, baked.metallic_roughness, seen, tilts)} == {"cpu"}
    torch.testing.assert_close(baked.base_color, expected[0].base_color)
    torch.testing.assert_close(seen, expected[1])


def _all(corners: torch.Tensor) -> Texels:
    parts = list(rasterise(corners, SIZE))
    return Texels(torch.cat([p.number for p in parts]), torch.cat([p.face for p in parts]))


def test_nvdiffrast_and_our_own_rasteriser_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that draws by its rules: clip space, first row at y = -1, face numbers from 1 in the last channel."""

    def rasterize(_: object, clip: torch.Tensor, faces: torch.Tensor, resolution: list[int]) -> tuple[torch.Tensor, None]:
        height, width = resolution
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([x / width, y / height], -1).view(-1, 1, 2) * 2 - 1
        a, b, c = clip[0, :, :2][faces.long()].unbind(1)

        def side(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
            return (q - p)[:, 0] * (centre - p)[..., 1] - (q - p)[:, 1] * (centre - p)[..., 0]

        sides = torch.stack([side(a, b), side(b, c), side(c, a)])
        inside = (sides > 0).all(0) | (sides < 0).all(0)
        number = torch.where(inside.any(1), inside.int().argmax(1) + 1, 0).float()
        return torch.stack([torch.zeros_like(number)] * 3 + [number], 1).view(1, height, width, 4), None

    module = types.ModuleType("nvdiffrast.torch")
    module.RasterizeCudaContext, module.rasterize = lambda device: None, rasterize
    package = types.ModuleType("nvdiffrast")
    package.torch = module
    corners = triangles()
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    with pytest.raises(InputError, match="nvdiffrast cannot be used"):
        rasterise_with_nvdiffrast(corners, SIZE)
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    with pytest.raises(InputError, match="GPU"):
        rasterise_with_nvdiffrast(corners, SIZE)

    own, theirs = _all(corners), draw(module, corners, SIZE)
    torch.testing.assert_close(theirs.face, own.face)
    assert set(zip(theirs.number.tolist(), theirs.face.tolist(), strict=True)) == set(
        zip(own.number.tolist(), own.face.tolist(), strict=True)
    )
