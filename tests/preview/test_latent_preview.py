"""Previews of what a sampler is making."""

from __future__ import annotations

import numpy as np
import torch

from trellis_core.latent_preview import BACKGROUND, voxel_picture


def _ball(grid: int) -> torch.Tensor:
    axis = (torch.arange(grid) + 0.5) / grid - 0.5
    inside = (torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")) ** 2).sum(0) < 0.4**2
    return inside.nonzero()


def test_shows_the_object_on_paper() -> None:
    for grid in (8, 64):
        picture = np.asarray(voxel_picture(_ball(grid), grid, 96)).astype(float)
        covered = (np.abs(picture - BACKGROUND) > 8).any(-1)
        radius = np.sqrt(covered.sum() / np.pi)
        assert abs(radius - 0.4 * 96 / 1.55) < 0.15 * 96 / 1.55
        assert not covered[0].any() and not covered[:, 0].any()
        assert covered[48, 48]


def test_is_lit_from_above_left() -> None:
    light = np.asarray(voxel_picture(_ball(64), 64, 96)).mean(-1)
    assert light[36, 40] > light[60, 56] + 20


def test_up_is_up_and_the_front_is_in_front() -> None:
    """A voxel on top of the cube is drawn high; one in front (-y) hides nothing but lies left of one on the right (+x)."""

    def place(x: int, y: int, z: int) -> np.ndarray:
        picture = np.asarray(voxel_picture(torch.tensor([[x, y, z]]), 9, 128)).astype(float)
        return np.argwhere((np.abs(picture - BACKGROUND) > 8).any(-1)).mean(0)

    middle, top, right, front = place(4, 4, 4), place(4, 4, 8), place(8, 4, 4), place(4, 0, 4)
    assert top[0] < middle[0] - 10
    assert right[1] > middle[1] + 10
    assert front[0] > middle[0] and front[1] < middle[1]
