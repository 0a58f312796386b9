"""Other people's submanifold convolutions for GPUs, if they are installed and asked for.

They see all rows of a level at once, so a decoder's chunks bound its memory less than with our own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Convolve = Callable[[Tensor, Tensor, Tensor, Tensor, dict[Any, Any]], Tensor]
"""feats [N, Ci], weight [Co, 3, 3, 3, Ci], bias [Co], coords int32 [N, 4], what it may keep with these coords -> [N, Co]."""


def _box(coords: Tensor, kept: dict[Any, Any]) -> tuple[int, list[int]]:
    """Samples and size of the grid that holds the voxels."""
    if "box" not in kept:
        kept["box"] = (coords.amax(0) + 1).tolist()
    samples, *sides = kept["box"]
    return samples, sides


def _flex_gemm(library: Any) -> Convolve:
    def convolve(feats: Tensor, weight: Tensor, bias: Tensor, coords: Tensor, kept: dict[Any, Any]) -> Tensor:
        samples, sides = _box(coords, kept)
        shape = torch.Size((samples, feats.shape[1], *sides))
        out, kept["flex_gemm"] = library.sparse_submanifold_conv3d(feats, coords, shape, weight, bias, kept.get("flex_gemm"))
        return out

    _ = library.sparse_submanifold_conv3d
    return convolve


def _spconv(library: Any) -> Convolve:
    def convolve(feats: Tensor, weight: Tensor, bias: Tensor, coords: Tensor, kept: dict[Any, Any]) -> Tensor:
        samples, sides = _box(coords, kept)
        layer = library.SubMConv3d(weight.shape[4], weight.shape[0], 3, indice_key="level").to(feats.device, feats.dtype)
        layer.weight.data, layer.bias.data = weight, bias
        tensor = library.SparseConvTensor(feats, coords, sides, samples, indice_dict=kept.setdefault("spconv", {}))
        return layer(tensor).features

    _ = library.SubMConv3d, library.SparseConvTensor
    return convolve


LIBRARIES = {"flex_gemm": ("flex_gemm.ops.spconv", _flex_gemm), "spconv": ("spconv.pytorch", _spconv)}
"""Names for `use_convolution`: the module that must be there, and how to call it."""
_chosen: ContextVar[Convolve | None] = ContextVar("convolution", default=None)


def chosen(x: Tensor) -> Convolve | None:
    """What was asked for, where it can work: on a GPU, without gradient."""
    return None if x.device.type != "cuda" or torch.is_grad_enabled() else _chosen.get()


@contextmanager
def use_convolution(name: str) -> Iterator[None]:
    """Convolve by a name of LIBRARIES, or with "ours", for as long as the `with` lasts.

    Raises:
        InputError: the name is unknown, or its package is not installed or broken.
    """
    token = _chosen.set(_choose(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def _choose(name: str) -> Convolve | None:
    if name == "ours":
        return None
    if name not in LIBRARIES:
        raise InputError(f'There is no convolution "{name}". Choose one of: ours, {", ".join(LIBRARIES)}.')
    module, make = LIBRARIES[name]
    try:
        return make(importlib.import_module(module))
    except Exception as error:  # half-installed CUDA packages raise anything at all on import
        raise InputError(
            f'Convolution "{name}" needs the package {module.split(".")[0]}, which cannot be used: {error}.'
        ) from error
