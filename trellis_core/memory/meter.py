"""Counts the bytes of live tensors while code runs: on the CPU, a GPU, or the meta device, where nothing is allocated."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMeter(TorchDispatchMode):
    """`with PeakMeter() as meter:` follows every tensor that is made inside; `meter.peak` is their largest sum in bytes.

    Tensors that were there before count nothing. What a kernel allocates for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._seen.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                weakref.finalize(storage, self._free, size)
                self.live += size
                self.peak = max(self.peak, self.live)
        return result

    def _free(self, size: int) -> None:
        self.live -= size
