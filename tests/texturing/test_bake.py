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


def surface(kind: str) -> torch.Tensor:
    """Alpha of a picture of 100 x 100 texels, each as large as a voxel."""
    alpha, rng = torch.ones(100, 100), torch.Generator().manual_seed(0)
    stray = torch.rand(100, 100, generator=rng)
    if kind == "strays":
        alpha[stray < 0.02] = torch.rand(int((stray < 0.02).sum()), generator=rng)
    elif kind == "veil":
        alpha = 0.85 + 0.15 * stray
    elif kind == "small spots":
        alpha[10:12, 10:12] = alpha[50:52, 50:52] = alpha[80:82, 20:22] = 0.3
    elif kind == "window":
        alpha[20:40, 20:40] = 0.4
    elif kind == "hole":
        alpha[19:41, 19:41], alpha[20:40, 20:40] = 0.5, 0.0
    elif kind == "lace":
        alpha.view(20, 5, 20, 5)[:, 1:4, :, 1:4] = 0.0
    return alpha


ALPHA = {"window": "BLEND", "hole": "MASK", "lace": "MASK"}
ALPHA |= dict.fromkeys(("plain", "strays", "veil", "small spots"), "OPAQUE")


@pytest.mark.parametrize("kind", ALPHA)
def test_the_alpha_mode_follows_what_is_clearly_and_connectedly_see_through(kind: str) -> None:
    assert decide_alpha(surface(kind).flatten(), torch.arange(10_000), 100, 1.0)[0] == ALPHA[kind]


def test_strays_and_a_veil_leave_a_solid_object_solid() -> None:
    def strays(points: np.ndarray) -> np.ndarray:
        attrs = rainbow(points)
        attrs[np.random.default_rng(1).random(len(points)) < 0.01, 5] = 0.0
        return attrs

    def veil(points: np.ndarray) -> np.ndarray:
        attrs = rainbow(points)
        attrs[:, 5] = 0.85
        return attrs

    for paint in (strays, veil):
        result = baked(paint)[0]
        assert result.alpha_mode == "OPAQUE" and (result.base_color[..., 3] == 255).all()


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
