"""Weights that a safetensors file stores as codes of 8 bits with scales, in the layouts that ComfyUI's repackagings use.

`layer.weight` is int8 or float8, beside it `layer.weight_scale` (or, older, `layer.scale_weight`) for the whole matrix or
every row, and `layer.comfy_quant`, a JSON text in bytes. With "convrot" the rows were turned, group by group of their
inputs, by a Hadamard matrix before they were rounded, which spreads outliers; turning back is the same product.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CODES = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
"""Dtypes of codes, as safetensors spells them."""

COMPANION = re.compile(r"(.*\.)?(weight_scale|scale_weight|input_scale|scale_input|comfy_quant|scaled_fp8)")
"""Names of tensors that tell how codes are to be read, or what activations were like."""

_SEED = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)


def decode(codes: Tensor, key: str, has: Callable[[str], bool], read: Callable[[str], Tensor]) -> Tensor:
    """Float32 weights of the codes at `key`; `has` and `read` are for the tensors beside it.

    Raises:
        ValueError: the layout is not known.
    """
    layer = key.removesuffix("weight")
    facts: dict[str, Any] = json.loads(bytes(read(f"{layer}comfy_quant").tolist())) if has(f"{layer}comfy_quant") else {}
    if facts.get("format", "int8_tensorwise") not in ("int8_tensorwise", "float8_e4m3fn", "float8_e5m2"):
        raise ValueError(f'the format "{facts["format"]}" is not known')
    scales = [read(layer + name) for name in ("weight_scale", "scale_weight") if has(layer + name)]
    weight = codes.float()
    if scales:
        scale = scales[0].float()
        if scale.numel() not in (1, len(weight)):
            raise ValueError(f"scales {list(scale.shape)} do not fit a weight {list(weight.shape)}")
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
    return _turned_back(weight, int(facts.get("convrot_groupsize", 256))) if facts.get("convrot") else weight


def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix [size, size] of a power of 4: products of the one of 4."""
    levels = round(math.log(size, 4)) if size > 0 else 0
    if 4**levels != size:
        raise ValueError(f"groups of {size} inputs, which is no power of 4")
    matrix = torch.ones(1, 1)
    for _ in range(levels):
        matrix = torch.kron(matrix, _SEED)
    return matrix / math.sqrt(size)


def _turned_back(weight: Tensor, group: int) -> Tensor:
    if weight.shape[1] % group:
        raise ValueError(f"{weight.shape[1]} inputs do not make groups of {group}")
    return (weight.unflatten(1, (-1, group)) @ hadamard(group)).flatten(1)
