"""What stages hand out lies on the CPU, wherever they computed. Run on a stand-in for a GPU, as tests have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.helpers.tiny_family import make_family, picture
from trellis_core import stages
from trellis_core.asset.asset import make_asset
from trellis_core.context import RunContext
from trellis_core.family import load_family
from trellis_core.settings import GenerationSettings

FAR = torch.device("cpu", 0)
"""Told from "cpu" by its number; code that asks a tensor for its device is told the same."""
STEPS = {f"{p}_sampling_steps": 2 for p in ("ss", "shape_slat", "tex_slat")}


class FarTensor(torch.Tensor):
    """Lies on the stand-in. What is computed from it does, too, until it is fetched."""


class StandIn(TorchFunctionMode):
    """Marks what is put or made on `FAR`, unmarks what is fetched from it, and refuses NumPy what a GPU would refuse it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = self.fetched = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is torch.Tensor.device.__get__ and isinstance(first, FarTensor):
            return FAR
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(first, FarTensor):
            raise TypeError("can't convert a tensor of the device to numpy: use Tensor.cpu() first")
        made = func(*args, **kwargs)
        place = _place(func, args, kwargs)
        if place is None or not isinstance(made, torch.Tensor):
            return made
        self.sent += place == FAR
        self.fetched += place != FAR and isinstance(made, FarTensor)
        return made.as_subclass(FarTensor if place == FAR else torch.Tensor)


def _place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """Where a call says that its result shall be; None where it says nothing."""
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    wanted = kwargs.get("device", args[1] if func is torch.Tensor.to and len(args) > 1 else None)
    if isinstance(wanted, torch.Tensor):
        return FAR if isinstance(wanted, FarTensor) else torch.device("cpu")
    return torch.device(wanted) if isinstance(wanted, (str, torch.device)) else None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@pytest.mark.parametrize("resolution", [512, 1024])
def test_every_stage_fetches_its_result(tmp_path: Path, resolution: int) -> None:
    family = load_family(make_family(tmp_path / "tiny"))
    settings = GenerationSettings(**STEPS, resolution=resolution, texture_size=1024, decimation_target=5000)
    ctx, device = RunContext(FAR), StandIn()
    with device:
        condition = stages.condition(family, picture(), settings, ctx=ctx)
        structure = stages.sample_structure(family, condition, settings, 3, ctx=ctx)
        shape = stages.sample_shape(family, condition, structure, settings, ctx=ctx)
        texture = stages.sample_texture(family, condition, shape, settings, ctx=ctx)
        pairs = stages.decode(family, shape, texture, ctx=ctx)
        asset = make_asset(*pairs[0], settings, ctx)
    for value in (condition, structure, shape, texture, pairs, asset):
        found = list(_tensors(value))
        assert found and not any(isinstance(tensor, FarTensor) for tensor in found), type(value).__name__
    assert device.sent > 20 and device.fetched >= 6  # all of them did compute there
