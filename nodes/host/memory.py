"""Networks under the host's memory manager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.weight_adapter
import torch
from torch import nn

from ...trellis_core.context import RunContext
from ...trellis_core.lora.apply import Use, applied, change_of, collect
from ...trellis_core.weights.network_file import NetworkFile


class Networks:
    """Holds networks for families: each in a patcher of the host, which moves it to the device and away again.

    Patchers are kept between runs as long as together they take less than a quarter of the machine's memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[NetworkFile, int], Any] = {}
        self._clones: dict[tuple[NetworkFile, int], tuple[Any, Any]] = {}
        self._held: list[Any] = []

    @contextmanager
    def __call__(self, network: NetworkFile, ctx: RunContext, rows: int, loras: Sequence[Use] = ()) -> Iterator[nn.Module]:
        key = network, network.file.stat().st_mtime_ns
        patcher = self._kept.get(key) or _read(network, ctx)
        self._keep(key, patcher)
        beside = network.precision is not None  # no weight of rounded layers is there to be patched
        patcher = self._changed(key, patcher, () if beside else loras)
        self._held.append(patcher)
        try:
            model = patcher.model
            # All that are in use, lest one drives another out.
            mm.load_models_gpu(list(self._held), memory_required=_needed(model, rows, ctx.device))
            _bring_along(model, ctx.device)
            ctx.report(1.0)
            with applied(model, loras if beside else ()):
                yield model
        finally:
            self._held.remove(patcher)

    def _changed(self, key: tuple[NetworkFile, int], patcher: Any, loras: Sequence[Use]) -> Any:
        """The patcher with LoRAs; the last stack on a network is kept, so that the host need not patch it anew."""
        stack = [(use.adapter.digest, use.strength, tuple(use.adapter.deltas)) for use in loras if use.strength]
        if not stack:
            return patcher
        known, clone = self._clones.get(key, (None, None))
        if known != stack or not clone.is_clone(patcher):
            clone = _patched(patcher, loras)
            self._clones[key] = stack, clone
        return clone

    def _keep(self, key: tuple[NetworkFile, int], patcher: Any) -> None:
        self._kept.pop(key, None)
        while self._kept and sum(p.model_size() for p in (patcher, *self._kept.values())) > mm.total_ram * 2**20 / 4:
            oldest = next(iter(self._kept))  # the one that was used longest ago
            self._kept.pop(oldest)
            self._clones.pop(oldest, None)  # it shares the weights
        self._kept[key] = patcher


networks = Networks()
"""The one that all families of this process share."""


def _needed(model: nn.Module, rows: int, device: torch.device) -> int:
    """Bytes that the host should keep free beside the weights."""
    if device.type == "cpu":
        return 0  # where it frees none
    from ...trellis_core.memory.footprint import activation_bytes  # knows every kind of network: not at the host's start

    step = 1 << max(0, rows.bit_length() - 4)  # rounded up, so that what is found once serves the next objects too
    return activation_bytes(model.params, -(-rows // step) * step, getattr(model, "dtype", torch.float32))


def _patched(patcher: Any, loras: Sequence[Use]) -> Any:
    """A clone that shares the weights and that the host changes by these LoRAs while it is loaded."""
    clone = patcher.clone()
    clone.add_patches({name: _Change(weighted) for name, weighted in collect(loras).items()})
    return clone


class _Change(comfy.weight_adapter.WeightAdapterBase):
    """All LoRAs on one parameter, as the host's patches want them: our sum on the host's copy, device and rounding."""

    name = "trellis-core"

    def __init__(self, weighted: list[Any]) -> None:
        self.weighted, self.weights, self.loaded_keys = weighted, [], set()

    def calculate_weight(self, weight: torch.Tensor, *_args: Any, **_more: Any) -> torch.Tensor:
        return weight.copy_(weight.float() + change_of(weight, self.weighted))


def _read(network: NetworkFile, ctx: RunContext) -> Any:
    offload = mm.unet_offload_device()
    model = network.load(replace(ctx, device=offload, dtype=_torso_dtype(ctx.device)), comfy.ops.manual_cast)
    # Looked up now and not at import: hosts put a patcher with other abilities in this place when they start.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=ctx.device, offload_device=offload)


def _torso_dtype(device: torch.device) -> torch.dtype | None:
    """The host's choice; None, the checkpoint's own mixture of half precisions, where the device is good at bfloat16."""
    known = [torch.bfloat16, torch.float16, torch.float32]
    stored = mm.unet_dtype(device=device, supported_dtypes=known)
    computed = mm.unet_manual_cast(stored, device, known) or stored
    return None if computed == torch.bfloat16 else computed


def _bring_along(model: nn.Module, device: torch.device) -> None:
    """Parameters that no layer of the host owns are not moved under partial loading; they are few, so they all go."""
    for module in model.modules():
        if not hasattr(module, "comfy_cast_weights"):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(device)
