"""Coordinate frames: ours is z up inside the cube [-0.5, 0.5]^3, glTF's is y up."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

_MARGIN = 0.99999  # share of the unit cube that a normalised mesh fills, so that rounding keeps it inside


def y_up_to_z_up(vectors: Tensor) -> Tensor:
    """(x, y, z) -> (x, -z, y) for positions or normals [..., 3]."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([x, -z, y], -1)


def z_up_to_y_up(vectors: Tensor) -> Tensor:
    """(x, y, z) -> (x, z, -y) for positions or normals [..., 3]; undoes `y_up_to_z_up`."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([x, z, -y], -1)


def texturing_mesh_preprocess(vertices: Tensor) -> Tensor:
    """Fit a y-up mesh into our frame (docs/method/sampling.md): bounding box centred, longest side 0.99999, z up.

    Args:
        vertices: float [V, 3], V > 0.

    Returns:
        float64 [V, 3], all within [-0.5, 0.5].

    Raises:
        InputError: no vertices, vertices that are not finite, or all in one point.
    """
    if len(vertices) == 0:
        raise InputError("The mesh has no vertices.")
    vertices = vertices.double()
    low, high = vertices.amin(0), vertices.amax(0)
    extent = (high - low).max()
    if not extent.isfinite() or extent == 0:
        raise InputError("The mesh has no size: its vertices are not finite numbers or all lie in one point.")
    return y_up_to_z_up((vertices - (low + high) / 2) * (_MARGIN / extent))
