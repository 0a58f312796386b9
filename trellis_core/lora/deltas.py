"""What an adapter does to one parameter: a difference, in the form the file has it in (docs/method/lora.md).

Every kind can make its difference as a matrix, to merge it, and can act on a layer's input without ever making it where
its form allows that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Act = Callable[[Tensor], Tensor]
"""Layer input [..., in] -> what is added to the layer's output [..., out]."""


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of one parameter. Tensors are as stored; arithmetic is float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter it is for."""
        raise NotImplementedError

    @property
    def rank(self) -> int | None:
        """Inner width of low-rank forms, None for others."""
        return None

    def matrix(self, weight: Tensor) -> Tensor:
        """The difference, float32 on the device of the unchanged `weight`."""
        raise NotImplementedError

    def acting_on(self, weight: Tensor, strength: float) -> Act:
        """How it acts beside a linear layer with `weight`, in the dtype of that; keeps nothing of the layer's size."""

        def act(x: Tensor) -> Tensor:
            return F.linear(x, (strength * self.matrix(weight)).to(weight.dtype))

        return act

    def norm(self, weight: Tensor) -> float:
        """Frobenius norm of the difference."""
        return self.matrix(weight).norm().item()


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """LoRA: scale * up @ down.

    Attributes:
        down: [r, in]; up: [out, r].
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def matrix(self, weight: Tensor) -> Tensor:
        down, up = (t.to(weight.device, torch.float32) for t in (self.down, self.up))
        return (self.scale * up) @ down

    def acting_on(self, weight: Tensor, strength: float) -> Act:
        down, up = self.down.to(weight), (strength * self.scale * self.up.float()).to(weight)
        return lambda x: F.linear(F.linear(x, down), up)

    def norm(self, weight: Tensor) -> float:
        down, up = self.down.double(), self.up.double()
        return abs(self.scale) * ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()


@dataclass(frozen=True, eq=False)
class Decomposed(Delta):
    """DoRA (Liu et al. 2024): the changed weight's rows get the lengths that are written, instead of their own.

    LyCORIS also writes the lengths of columns; then it is the layer's inputs that are scaled.

    Attributes:
        inner: the change without that, of a whole weight.
        magnitude: [out], or [in] if `over_inputs`.
        over_inputs: whether it is columns.
    """

    inner: Delta
    magnitude: Tensor
    over_inputs: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    def matrix(self, weight: Tensor) -> Tensor:
        base = weight.float()
        changed = base + self.inner.matrix(weight)
        gain = self._gain(changed)
        return (gain if self.over_inputs else gain[:, None]) * changed - base

    def acting_on(self, weight: Tensor, strength: float) -> Act:
        gain = self._gain(weight.float() + self.inner.matrix(weight))
        rest, gain = (strength * (gain - 1)).to(weight.dtype), gain.to(weight.dtype)
        act = self.inner.acting_on(weight, strength)
        if self.over_inputs:
            return lambda x: F.linear(rest * x, weight) + act(gain * x)
        return lambda x: rest * F.linear(x, weight) + gain * act(x)

    def _gain(self, changed: Tensor) -> Tensor:
        """Factors that give the rows or columns of `changed` [out, in] their magnitude; those of zeros stay so."""
        return self.magnitude.to(changed) / changed.norm(dim=0 if self.over_inputs else 1).clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class Kronecker(Delta):
    """LoKr: scale * kron(first, second), factors multiplied out."""

    first: Tensor
    second: Tensor
    scale: float
    inner: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(self.first.shape, self.second.shape, strict=True))

    @property
    def rank(self) -> int | None:
        return self.inner

    def matrix(self, weight: Tensor) -> Tensor:
        first, second = (t.to(weight.device, torch.float32) for t in (self.first, self.second))
        return torch.kron(self.scale * first, second)

    def acting_on(self, weight: Tensor, strength: float) -> Act:
        first, second = (strength * self.scale * self.first.float()).to(weight), self.second.to(weight)

        def act(x: Tensor) -> Tensor:
            folded = x.unflatten(-1, (first.shape[1], second.shape[1]))
            return (first @ folded @ second.T).flatten(-2)

        return act

    def norm(self, weight: Tensor) -> float:
        return abs(self.scale) * self.first.float().norm().item() * self.second.float().norm().item()


@dataclass(frozen=True, eq=False)
class Hadamard(Delta):
    """LoHa: scale * (up1 @ down1) * (up2 @ down2), the outer product taken entry by entry."""

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up1.shape[0], self.down1.shape[1]

    @property
    def rank(self) -> int:
        return self.down1.shape[0]

    def matrix(self, weight: Tensor) -> Tensor:
        up1, down1, up2, down2 = (t.to(weight.device, torch.float32) for t in (self.up1, self.down1, self.up2, self.down2))
        return self.scale * (up1 @ down1) * (up2 @ down2)

    def as_low_rank(self) -> LowRank:
        """The same as one product: its rank is the product of the two ranks."""
        up = (self.up1.float()[:, :, None] * self.up2.float()[:, None]).flatten(1)
        down = (self.down1.float()[:, None] * self.down2.float()[None]).flatten(0, 1)
        return LowRank(down, up, self.scale)


@dataclass(frozen=True, eq=False)
class Difference(Delta):
    """A full difference, of any parameter."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def matrix(self, weight: Tensor) -> Tensor:
        return self.value.to(weight.device, torch.float32)


@dataclass(frozen=True, eq=False)
class Replacement(Delta):
    """A new value for the whole parameter; the difference is what is missing to it."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def matrix(self, weight: Tensor) -> Tensor:
        return self.value.to(weight.device, torch.float32) - weight.float()
