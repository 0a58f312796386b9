"""What the networks share: lists of layers whose type is known, and parameters that start as noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


class Layers(nn.ModuleList, Generic[Layer]):
    """A `ModuleList` of layers of one type, for type checkers; PyTorch's own forgets it."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[Layer] = ()) -> None: ...
        def __iter__(self) -> Iterator[Layer]: ...
        def __getitem__(self, idx: int) -> Layer: ...


def normal_parameter(*shape: int, std: float, **place: Any) -> nn.Parameter:
    """A parameter of normal numbers with mean 0; on the meta device, where only its shape matters, of none.

    Drawing them there would import PyTorch's compiler: seconds, at the start of every run.
    """
    blank = torch.empty(shape, **place)
    return nn.Parameter(blank if blank.is_meta else torch.randn(shape, **place) * std)
