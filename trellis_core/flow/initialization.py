"""Parameters that start as noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def normal_parameter(*shape: int, std: float, **place: Any) -> nn.Parameter:
    """A parameter of normal numbers with mean 0; on the meta device, where only its shape matters, of none.

    Drawing them there would import PyTorch's compiler: seconds, at the start of every run.
    """
    blank = torch.empty(shape, **place)
    return nn.Parameter(blank if blank.is_meta else torch.randn(shape, **place) * std)
