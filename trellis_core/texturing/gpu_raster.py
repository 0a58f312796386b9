"""Rasterising in texture space with the nvdiffrast package, for machines that have it and users who ask for it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..errors import InputError
from .raster import Texels

_FACES = 1 << 23
"""Triangles in one call: the package counts them in float32, which is exact up to 2^24."""


def rasterise_with_nvdiffrast(corners: Tensor, size: int) -> Texels:
    """The texels that triangles cover, in face order; the twin of `raster.rasterise`, which the tests hold it to.

    Texels of overlapping triangles belong to one of them only.

    Args:
        corners: float32 [F, 3, 2] texel coordinates (column, row), on a CUDA device.
        size: texels along a side.

    Raises:
        InputError: the package is missing, or the tensors are not on a GPU.
    """
    return draw(library(corners.device), corners, size)


def library(device: torch.device) -> ModuleType:
    """The package, after a look whether it can draw on this device; the same errors."""
    try:
        import nvdiffrast.torch as dr
    except Exception as error:  # half-installed CUDA packages raise anything at all on import
        raise InputError(f'nvdiffrast cannot be used ({error}): set rasterizer to "torch", or install it.') from error
    if device.type != "cuda":
        raise InputError('nvdiffrast draws on NVIDIA GPUs only: set rasterizer to "torch", or the device to cuda.')
    return dr


def draw(dr: ModuleType, corners: Tensor, size: int) -> Texels:
    """`rasterise_with_nvdiffrast` with the package at hand."""
    context = dr.RasterizeCudaContext(device=corners.device)
    found = []
    for start in range(0, len(corners), _FACES):
        flat = corners[start : start + _FACES].reshape(-1, 2) * (2 / size) - 1  # clip space; its first row is row 0
        clip = torch.cat([flat, torch.zeros_like(flat[:, :1]), torch.ones_like(flat[:, :1])], dim=1)
        faces = torch.arange(len(flat), dtype=torch.int32, device=corners.device).view(-1, 3)
        drawn, _ = dr.rasterize(context, clip[None].contiguous(), faces, resolution=[size, size])
        face = drawn[0, ..., 3].reshape(-1).long() - 1
        number = (face >= 0).nonzero()[:, 0]
        found.append((number, face[number] + start))
    number, face = (torch.cat(parts) for parts in zip(*found, strict=True)) if found else torch.zeros(2, 0, dtype=torch.int64)
    order = face.argsort(stable=True)
    return Texels(number[order], face[order])
