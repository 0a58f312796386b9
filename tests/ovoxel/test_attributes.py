"""Sampling of sparse volumes, textured meshes to volumes, coordinate frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.errors import InputError
from trellis_core.mesh.frames import texturing_mesh_preprocess, y_up_to_z_up, z_up_to_y_up
from trellis_core.ovoxel import attributes
from trellis_core.ovoxel.attributes import grid_sample_3d, grid_sample_3d_reference, sample_attributes
from trellis_core.values import PbrVoxels

SEEDS = st.integers(0, 2**31)


def random_volume(seed: int, size: int, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    rng = torch.Generator().manual_seed(seed)
    coords = (torch.rand(size, size, size, generator=rng) < share).nonzero().int()
    return torch.randn(len(coords), 4, generator=rng), coords, rng


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 20), st.floats(0, 1))
def test_brick_sampling_agrees_with_its_twin(seed: int, size: int, share: float) -> None:
    feats, coords, rng = random_volume(seed, size, share)
    query = torch.rand(300, 3, generator=rng) * (size + 6) - 3
    fast = grid_sample_3d(feats, coords, size, query)
    torch.testing.assert_close(fast, grid_sample_3d_reference(feats, coords, query), atol=2e-5, rtol=1e-5)


def test_a_linear_field_is_reproduced_inside_a_full_grid() -> None:
    size, slope = 9, torch.tensor([[1.0, -2.0], [0.5, 3.0], [-4.0, 0.25]])
    coords = torch.ones(size, size, size).nonzero().int()
    query = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * (size - 1) + 0.5
    sampled = grid_sample_3d((coords + 0.5) @ slope, coords, size, query)
    torch.testing.assert_close(sampled, query @ slope, atol=1e-4, rtol=1e-4)


def test_missing_corners_do_not_darken() -> None:
    coords = torch.tensor([[2, 2, 2], [2, 3, 2]])
    feats = torch.tensor([[1.0], [3.0]])
    inside, outside = [[2.9, 2.5, 2.9], [2.9, 3.0, 2.1]], [[4.2, 2.5, 2.5], [0.5, 0.5, 0.5]]
    query = torch.tensor([*inside, *outside, [torch.nan, 2, 2], [torch.inf, 2, 2]])
    assert grid_sample_3d(feats, coords, 5, query)[:, 0].tolist() == pytest.approx([1, 2, 0, 0, 0, 0])
    filled = grid_sample_3d(feats, coords, 5, query, nearest_if_empty=True)[:, 0]
    assert filled.tolist() == pytest.approx([1, 2, 1, 1, 0, 0])
    nearest = grid_sample_3d(feats, coords, 5, torch.tensor([[2.1, 3.9, 2.9], [2.1, 4.0, 2.9]]), mode="nearest")
    assert nearest[:, 0].tolist() == [3, 0]


def test_samples_of_a_batch_do_not_mix() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    sampled = grid_sample_3d(torch.tensor([[5.0], [7.0]]), coords, 3, torch.full((2, 4, 3), 1.5))
    assert sampled[..., 0].tolist() == [[5] * 4, [7] * 4]


def test_object_space_and_empty_volumes() -> None:
    voxels = PbrVoxels(torch.tensor([[0, 3, 1]], dtype=torch.int32), torch.arange(6.0)[None], 4)
    centre = (voxels.coords + 0.5) / 4 - 0.5
    assert torch.equal(sample_attributes(voxels, centre), voxels.attrs)
    assert torch.equal(sample_attributes(voxels, -centre), voxels.attrs)
    assert not sample_attributes(voxels, -centre, nearest_if_empty=False).any()
    nothing = PbrVoxels(voxels.coords[:0], voxels.attrs[:0], 4)
    assert not sample_attributes(nothing, centre).any()
    assert sample_attributes(voxels, centre[:0]).shape == (0, 6)


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, coords, rng = random_volume(0, 8, 0.1)
    query = torch.rand(50, 3, generator=rng) * 8
    whole = grid_sample_3d(feats, coords, 8, query, nearest_if_empty=True)
    monkeypatch.setattr(attributes, "_POINTS", 7)
    assert torch.equal(whole, grid_sample_3d(feats, coords, 8, query, nearest_if_empty=True))


def test_unfit_queries_are_refused() -> None:
    feats, coords, _ = random_volume(0, 4, 0.5)
    with pytest.raises(InputError, match="batch"):
        grid_sample_3d(feats, coords, 4, torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="mode"):
        grid_sample_3d(feats, coords, 4, torch.zeros(2, 3), mode="cubic")


def test_texturing_frame() -> None:
    box = torch.tensor([[0.0, 10, 0], [2, 14, 1]])
    fitted = texturing_mesh_preprocess(box)
    expected = torch.tensor([[-0.25, 0.125, -0.5], [0.25, -0.125, 0.5]]).double() * 0.99999
    torch.testing.assert_close(fitted, expected)
    assert torch.equal(z_up_to_y_up(y_up_to_z_up(box)), box)
    for bad in (box[:0], box[:1], box * torch.nan):
        with pytest.raises(InputError):
            texturing_mesh_preprocess(bad)
