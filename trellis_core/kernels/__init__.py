"""Triton kernels for GPUs. Every one has a readable torch twin, which is what runs wherever a kernel cannot.

Nothing here imports Triton before a tensor on a GPU asks for it. Kernels compute forward only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

GPUS = ("cuda",)
"""Types of devices that may have Triton; AMD's go by the same name."""

OLDEST = (8, 0)
"""Compute capability that an NVIDIA GPU needs."""

_wanted: ContextVar[bool] = ContextVar("kernels", default=True)
_rehearsed: ContextVar[tuple[str, bool]] = ContextVar("rehearsed", default=("meta", False))


def usable(x: Tensor) -> bool:
    """Whether kernels run where x lies: an NVIDIA or AMD GPU with a working Triton, no gradient wanted."""
    if not _wanted.get() or torch.is_grad_enabled():
        return False
    if x.device.type == "meta":
        return _rehearsed.get()[1]
    return x.device.type in GPUS and works_on(x.device)


def works_on(device: torch.device) -> bool:
    """Whether Triton works on this device; why not is logged once."""
    return device.type == "cuda" and _works(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _works(index: int) -> bool:
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < OLDEST:
        return False  # Triton has no tensor cores there
    try:
        from .probe import probe

        return probe(torch.device("cuda", index))
    except Exception as error:  # Triton without a compiler, for another GPU, half installed: anything at all may come
        log.warning(
            "Triton does not work here, plain PyTorch is used instead: %s", (str(error) or type(error).__name__).splitlines()[0]
        )
        return False


@contextmanager
def kernels(wanted: bool) -> Iterator[None]:
    """With False the torch twins compute, as long as the `with` lasts."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def acts_as(x: Tensor) -> str:
    """The type of the device that x is on, or that it stands for while `rehearsing`."""
    return _rehearsed.get()[0] if x.device.type == "meta" else x.device.type


@contextmanager
def rehearsing(device_type: str, with_kernels: bool) -> Iterator[None]:
    """What tensors on the meta device stand for, as long as the `with` lasts: tensors on such a device, where kernels run
    or not."""
    token = _rehearsed.set((device_type, with_kernels))
    try:
        yield
    finally:
        _rehearsed.reset(token)
