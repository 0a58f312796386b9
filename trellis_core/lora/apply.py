"""Adapters on a network: beside its layers while it runs, or merged into its weights; both can be taken off again.

All of a parameter's changes are measured against its unchanged value and added up in the order of the files' digests, so
a stack gives the same bits in whatever order it was put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .deltas import Act, Delta, Hadamard, LowRank
from .read import Adapter

ROWS = 128
"""Rows of a weight that are merged at a time: with their float32 copy they stay in the processor's cache."""


@dataclass(frozen=True)
class Use:
    """An adapter, how strongly it acts (0 not at all, 1 as trained, negative the other way), and what its file is called."""

    adapter: Adapter
    strength: float
    name: str = ""


Weighted = list[tuple[Delta, float]]


class Applied:
    """Adapters on a network, until `remove`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def then(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def remove(self) -> None:
        """Give the network back as it was, bit for bit."""
        while self._undo:
            self._undo.pop()()


def attach(model: nn.Module, uses: Sequence[Use]) -> Applied:
    """Let adapters act beside the layers of a network; its weights stay as they are and are not copied.

    Loose parameters (norms, modulation, biases) are small: these are changed in place, and put back by `remove`.

    Args:
        model: a flow transformer on its device.
        uses: checked against the network (see `stack.place`).
    """
    applied = Applied()
    for name, weighted in collect(uses).items():
        layer, attribute = _owner(model, name)
        weight = getattr(layer, attribute)
        if isinstance(layer, nn.Linear) and attribute == "weight":
            handle = layer.register_forward_hook(_beside([d.acting_on(weight, s) for d, s in _joined(weighted)]))
            applied.then(handle.remove)
        else:
            _change(weight, weighted, applied)
    return applied


def merge(model: nn.Module, uses: Sequence[Use], keep: bool = True) -> Applied:
    """Add adapters to the weights, in float32 with one rounding to the weights' dtype.

    Args:
        keep: remember the unchanged parameters, so that `remove` can put them back; without, it does nothing.
    """
    applied = Applied()
    for name, weighted in collect(uses).items():
        _change(getattr(*_owner(model, name)), weighted, applied if keep else None)
    return applied


@contextmanager
def applied(model: nn.Module, uses: Sequence[Use]) -> Iterator[None]:
    """Adapters on a network that is read anew for every use, for as long as a `with` lasts.

    Float32 weights are merged, which costs nothing while sampling. Half precision would round small changes away
    (docs/method/lora.md), so there they act at run time.
    """
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    on = merge(model, uses, keep=False) if exact else attach(model, uses)
    try:
        yield
    finally:
        on.remove()


def collect(uses: Sequence[Use]) -> dict[str, Weighted]:
    """By parameter: what changes it and how strongly, in an order that depends on the files alone."""
    by_name: dict[str, Weighted] = {}
    for use in sorted(uses, key=lambda use: (use.adapter.digest, use.strength)):
        if use.strength:
            for name, delta in use.adapter.deltas.items():
                by_name.setdefault(name, []).append((delta, use.strength))
    return by_name


def change_of(weight: Tensor, weighted: Weighted) -> Tensor:
    """Sum of all differences of a parameter, float32 in its shape."""
    total = torch.zeros(weight.shape, device=weight.device)
    for delta, strength in _joined(weighted):
        total += strength * delta.matrix(weight).view(weight.shape)
    return total


def _joined(weighted: Weighted) -> Weighted:
    """The same with all plain products made one, of all their ranks."""
    flat = [(d.as_low_rank() if isinstance(d, Hadamard) and d.rank**2 < min(d.shape) / 4 else d, s) for d, s in weighted]
    plain = [(d, s) for d, s in flat if isinstance(d, LowRank)]
    if not plain:
        return flat
    down = torch.cat([d.down.float() for d, _ in plain])
    up = torch.cat([s * d.scale * d.up.float() for d, s in plain], dim=1)
    return [(LowRank(down, up, 1.0), 1.0), *(pair for pair in flat if pair not in plain)]


def _beside(acts: list[Act]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for act in acts:
            output = output + act(inputs[0])
        return output

    return hook


@torch.no_grad()
def _change(weight: Tensor, weighted: Weighted, applied: Applied | None) -> None:
    if applied is not None:
        before = weight.detach().clone()
        applied.then(lambda: _put_back(weight, before))
    joined = _joined(weighted)
    if len(joined) > 1 or not isinstance(joined[0][0], LowRank):
        weight.copy_(weight.float() + change_of(weight, weighted))
        return
    low = joined[0][0]
    down, up = low.down.to(weight.device), joined[0][1] * low.scale * low.up.to(weight.device)
    for rows, up_rows in zip(weight.split(ROWS), up.split(ROWS), strict=True):
        block = rows.float()  # the rows themselves where they are float32
        block.addmm_(up_rows, down)
        if block is not rows:
            rows.copy_(block)


@torch.no_grad()
def _put_back(weight: Tensor, before: Tensor) -> None:
    weight.copy_(before)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute
