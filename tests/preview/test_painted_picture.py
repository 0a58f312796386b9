"""Decoded voxels in their colours."""

from __future__ import annotations

import numpy as np
import torch

from trellis_core.latent_preview import BACKGROUND, painted_picture
from trellis_core.values import PbrVoxels


def test_the_nearer_voxel_is_seen_in_its_colour() -> None:
    """A red wall in front of a blue one; the front of an object looks along -y."""
    grid = torch.cartesian_prod(torch.arange(8), torch.tensor([1, 6]), torch.arange(8)).int()
    attrs = torch.zeros(len(grid), 6)
    attrs[grid[:, 1] == 1, 0] = 1.0
    attrs[grid[:, 1] == 6, 2] = 1.0
    picture = np.asarray(painted_picture(PbrVoxels(grid, attrs, 8)), int)
    drawn = picture[np.abs(picture - BACKGROUND.astype(int)).sum(-1) > 60]
    red, blue = (drawn[:, 0] > drawn[:, 2]).sum(), (drawn[:, 2] > drawn[:, 0]).sum()
    assert red > 1.5 * blue > 0, "the wall in front hides most of the one behind it"
