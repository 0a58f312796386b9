"""Weights that a safetensors file stores as codes of 8 bits with scales, in the layouts that ComfyUI's repackagings use.

`layer.weight` is int8 or float8, beside it `layer.weight_scale` (or, older, `layer.scale_weight`) for the whole matrix or
every row, and `layer.comfy_quant`, a JSON text in bytes. With "convrot" the rows were turned, group by group of their
inputs, by a Hadamard matrix before they were rounded, which spreads outliers; turning back is the same product.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..outside import checked, parse_object

CODES = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
"""Dtypes of codes, as safetensors spells them."""

COMPANION = re.compile(r"(.*\.)?(weight_scale|scale_weight|input_scale|scale_input|comfy_quant|scaled_fp8)")
"""Names of tensors that tell how codes are to be read, or what activations were like."""

_SEED = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)


@dataclass(frozen=True)
class Facts:
    """What `comfy_quant` says of a layer's codes."""

    format: Literal["int8_tensorwise", "float8_e4m3fn", "float8_e5m2"] = "int8_tensorwise"
    convrot: bool = False
    convrot_groupsize: Annotated[int, Field(ge=1, le=1 << 12)] = 256


def decode(codes: Tensor, key: str, has: Callable[[str], bool], read: Callable[[str], Tensor]) -> Tensor:
    """Float32 weights of the codes at `key`; `has` and `read` are for the tensors beside it.

    Raises:
        ValueError: the layout is not known.
    """
    layer = key.removesuffix("weight")
    facts = _facts(read(f"{layer}comfy_quant")) if has(f"{layer}comfy_quant") else Facts()
    scales = [read(layer + name) for name in ("weight_scale", "scale_weight") if has(layer + name)]
    weight = codes.float()
    if scales:
        scale = scales[0].float()
        if scale.numel() not in (1, len(weight)):
            raise ValueError(f"scales {list(scale.shape)} do not fit a weight {list(weight.shape)}")
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
    return _turned_back(weight, facts.convrot_groupsize) if facts.convrot else weight


def _facts(text: Tensor) -> Facts:
    if text.dtype != torch.uint8 or text.numel() > 1 << 16:
        raise ValueError(f'"comfy_quant" is {text.numel()} numbers of {text.dtype}, not a short text in bytes')
    values = parse_object(bytes(text.flatten().tolist()), '"comfy_quant"', raising=ValueError)
    return checked(Facts, values, '"comfy_quant"', raising=ValueError)


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
    if weight.dim() != 2 or weight.shape[1] % group:
        raise ValueError(f"a weight {list(weight.shape)} does not make groups of {group} inputs")
    return (weight.unflatten(1, (-1, group)) @ hadamard(group)).flatten(1)
