"""Filling gaps, choosing the alpha mode, and colours that arrive where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.solid_objects import ball, decoded, rainbow
from trellis_core.texturing.bake import Bake, bake, decide_alpha
from trellis_core.texturing.fill import GapFiller
from trellis_core.texturing.raster import Interpolator
from trellis_core.texturing.surface import Surface
from trellis_core.texturing.unwrap import Unwrap, texel_corners, unwrap
from trellis_core.values import PbrVoxels

SIZE = 128


def baked(paint=rainbow, alpha_mode: str | None = None) -> tuple[Bake, Unwrap, torch.Tensor]:
    """A painted ball, its charts, and the place [K, 3] of each covered texel."""
    vertices, faces = ball(0.4, 3)
    _, voxels = decoded(vertices, faces, 32, paint)
    flat = unwrap(Surface.of(vertices, faces), SIZE)
    corners, points = texel_corners(flat.uvs, flat.faces, SIZE), torch.from_numpy(vertices[faces])
    result = bake(corners, points, flat.texels, voxels, SIZE, alpha_mode)
    return result, flat, Interpolator(corners, points)(flat.texels, SIZE)


def test_colours_and_materials_arrive_where_they_belong() -> None:
    result, flat, place = baked()
    number = flat.texels.number
    color = result.base_color.view(-1, 4)[number].float() / 255
    assert (color[:, :3] - (place + 0.5)).abs().max() < 1.2 / 32
    packed = result.metallic_roughness.view(-1, 3)[number].float() / 255
    inner = (place.abs() > 2 / 32).all(1)
    truth = torch.from_numpy(rainbow(place.numpy())).float()
    assert (packed[inner, 1] - truth[inner, 4]).abs().max() < 0.01, "green is roughness"
    assert (packed[inner, 2] - truth[inner, 3]).abs().max() < 0.01, "blue is metallic"
    assert (result.metallic_roughness[..., 0] == 255).all()
    assert result.alpha_mode == "OPAQUE" and (result.base_color[..., 3] == 255).all()
    assert int(result.texels_of_face.sum()) == len(number)


def test_values_are_rounded_not_cut_off() -> None:
    result, flat, _ = baked(lambda p: np.full((len(p), 6), 100.7 / 255))
    assert (result.base_color[..., :3] == 101).all()


def test_values_outside_the_range_are_clamped() -> None:
    result, _, _ = baked(lambda p: np.tile([1.4, -0.3, 0.5, 2.0, -1.0, 1.2], (len(p), 1)))
    assert result.base_color[0, 0].tolist() == [255, 0, 128, 255]
    assert result.metallic_roughness[0, 0].tolist() == [255, 0, 255]


def test_no_texel_is_black_even_far_from_voxels() -> None:
    vertices, faces = ball(0.4, 2)
    flat = unwrap(Surface.of(vertices, faces), SIZE)
    voxels = PbrVoxels(torch.tensor([[0, 0, 0]], dtype=torch.int32), torch.tensor([[0.5, 0.6, 0.7, 0, 1, 1]]), 64)
    corners, points = texel_corners(flat.uvs, flat.faces, SIZE), torch.from_numpy(vertices[faces])
    result = bake(corners, points, flat.texels, voxels, SIZE)
    assert (result.base_color[..., :3].int() - torch.tensor([128, 153, 179])).abs().max() <= 1
    assert (result.metallic_roughness == torch.tensor([255, 255, 0])).all()


@pytest.mark.parametrize(
    ("clear", "half", "mode"), [(0.0, 0.0, "OPAQUE"), (0.001, 0.002, "OPAQUE"), (0.3, 0.1, "MASK"), (0.0, 0.4, "BLEND")]
)
def test_the_alpha_mode_follows_the_data(clear: float, half: float, mode: str) -> None:
    alpha = torch.ones(10_000)
    alpha[: round(clear * 10_000)] = 0.0
    alpha[5000 : 5000 + round(half * 10_000)] = 0.5
    assert decide_alpha(alpha)[0] == mode


def test_colour_is_kept_where_alpha_is_zero_and_the_mode_can_be_forced() -> None:
    def holed(points: np.ndarray) -> np.ndarray:
        attrs = rainbow(points)
        attrs[points[:, 2] > 0, 5] = 0
        return attrs

    masked, flat, place = baked(holed)
    assert masked.alpha_mode == "MASK" and 0.4 < masked.see_through < 0.6
    texel = masked.base_color.view(-1, 4)[flat.texels.number]
    cut = place[:, 2] > 2 / 32
    assert (texel[cut, 3] == 0).all() and (texel[place[:, 2] < -2 / 32, 3] == 255).all()
    assert ((texel[cut, :3].float() / 255) - (place[cut] + 0.5)).abs().max() < 1.2 / 32
    assert (baked(holed, "OPAQUE")[0].base_color[..., 3] == 255).all()
    assert baked(holed, "BLEND")[0].alpha_mode == "BLEND"


@pytest.mark.parametrize("size", [1, 2, 16, 23])
def test_gaps_are_filled_from_their_surroundings(size: int) -> None:
    covered = torch.rand(size, size, generator=torch.Generator().manual_seed(size)) < 0.1
    covered[size // 2, size // 2] = True
    image = torch.randint(60, 200, (size, size, 4), dtype=torch.uint8) * covered[..., None]
    filled = GapFiller(covered)(image)
    assert filled.shape == image.shape and torch.equal(filled[covered], image[covered])
    low, high = image[covered].amin(0), image[covered].amax(0)
    assert ((filled >= low) & (filled <= high)).all()


def test_a_gap_takes_the_nearest_colour() -> None:
    covered = torch.zeros(16, 16, dtype=torch.bool)
    covered[:, 0], covered[:, 15] = True, True
    image = torch.zeros(16, 16, 4, dtype=torch.uint8)
    left, right = (torch.tensor(color, dtype=torch.uint8) for color in ([50, 0, 255, 3], [200, 255, 0, 7]))
    image[:, 0], image[:, 15] = left, right
    filled = GapFiller(covered)(image)
    assert (filled[:, :8] == left).all() and (filled[:, 8:] == right).all()
    nothing = torch.zeros(8, 8, 4, dtype=torch.uint8)
    assert torch.equal(GapFiller(torch.zeros(8, 8, dtype=torch.bool))(nothing), nothing)


def test_a_gap_between_colours_takes_their_mean() -> None:
    covered = torch.tensor([[True, True], [True, False]])
    image = torch.tensor([[10, 40], [70, 0]], dtype=torch.uint8)[..., None].expand(2, 2, 4)
    assert (GapFiller(covered)(image)[1, 1] == 40).all()
