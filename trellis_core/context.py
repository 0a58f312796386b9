"""What a run is allowed to use and whom it tells: device, dtype, memory budget, progress, cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .errors import Cancelled

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class RunContext:
    """Handed down every long call; nothing below it picks a device or talks to a host on its own.

    Attributes:
        device: where networks compute. Results always come back on the CPU.
        dtype: torso dtype of the networks; None keeps what the checkpoint's config says where the device is fast in it.
        memory_budget: bytes the run may use, None for no limit.
        attention: what `flow.attention.use_attention` takes: "torch", a package's name, or a host's kernel.
        convolution: what `sparse.libraries.use_convolution` takes: "ours" or a package's name.
        frugal: trade some speed for memory: no context kept between steps, guided branches one by one, small chunks.
        on_progress: called with (fraction of the whole run in 0..1, name of the step).
        is_cancelled: polled often; True makes the next `report` or `check` raise `Cancelled`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    memory_budget: int | None = None
    attention: str | Callable[..., Any] = "torch"
    convolution: str = "ours"
    frugal: bool = False
    on_progress: Report | None = None
    is_cancelled: Callable[[], bool] | None = None
    _span: tuple[float, float] = (0.0, 1.0)
    _name: str = ""

    def check(self) -> None:
        """Raise `Cancelled` if the user asked to stop. Call at least every half second of work."""
        if self.is_cancelled is not None and self.is_cancelled():
            raise Cancelled("The run was cancelled.")

    def report(self, fraction: float, name: str = "") -> None:
        """Say that `fraction` (0..1) of this context's part is done, and `check`."""
        self.check()
        if self.on_progress is not None:
            start, stop = self._span
            self.on_progress(start + (stop - start) * min(max(fraction, 0.0), 1.0), name or self._name)

    def part(self, start: float, stop: float, name: str = "") -> RunContext:
        """A context for a sub-step whose 0..1 is this context's start..stop; without a name it keeps this one's."""
        low, high = self._span
        width = high - low
        return replace(self, _span=(low + width * start, low + width * stop), _name=name or self._name)

    def split(self, count: int) -> list[RunContext]:
        """Contexts for `count` sub-steps of equal length."""
        return [self.part(index / count, (index + 1) / count) for index in range(count)]


QUIET = RunContext()
"""A context on the CPU that nobody listens to: the default of every public function."""

_obeyed: ContextVar[RunContext] = ContextVar("obeyed", default=QUIET)


@contextmanager
def obeying(ctx: RunContext) -> Iterator[None]:
    """Inside, `check_obeyed` asks this context: for small functions of the mesh package that loop over blocks."""
    token = _obeyed.set(ctx)
    try:
        yield
    finally:
        _obeyed.reset(token)


def check_obeyed() -> None:
    """Raise `Cancelled` if the run that this is part of is to stop."""
    _obeyed.get().check()
