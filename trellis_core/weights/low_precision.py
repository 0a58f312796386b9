"""Lower precision for the linear maps of the flow transformers, which hold nearly all their weights; opt-in.

"int8" keeps weights as whole numbers of 8 bits with a scale for every output, and multiplies in the torso's dtype: half the
memory. "fp8" keeps float8 (e4m3) likewise and rounds the inputs to float8 too, token by token: GPUs that can multiply
float8 do so, and others compute the same from the rounded numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

PRECISIONS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""Name -> dtype of the codes, and the largest of them."""


def round_rows(x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Codes [..., C] of rows, and float32 scales [..., 1]: x is about codes * scale."""
    dtype, largest = PRECISIONS[precision]
    wide = x.float()
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / largest
    codes = wide / scale
    return (codes.round_() if precision == "int8" else codes.clamp_(-largest, largest)).to(dtype), scale


class LowLinear(nn.Linear):
    """A linear map whose weight [out, in] is kept as codes and scales.

    Attributes:
        codes: int8 or float8 [out, in]; scale: float32 [out, 1].
        weight: the weight that these stand for, made anew at every access, in `dtype`.
    """

    def __init__(self, like: nn.Linear, precision: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.precision = like.in_features, like.out_features, precision
        self.dtype, device = like.weight.dtype, like.weight.device
        codes = torch.empty(like.weight.shape, dtype=PRECISIONS[precision][0], device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(len(codes), 1, device=device), requires_grad=False)
        self.register_parameter("bias", like.bias)

    @property
    def weight(self) -> Tensor:
        return self.codes.float().mul_(self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.precision == "int8":
            return F.linear(x, self.weight, self.bias)
        codes, scale = round_rows(x, "fp8")
        if _multiplies_float8(x.device) and self.in_features % 16 == 0 and self.out_features % 16 == 0:
            y = _scaled_product(codes.flatten(0, -2), scale.flatten(0, -2), self.codes, self.scale)
            y = y.to(x.dtype).unflatten(0, x.shape[:-1])
            return y if self.bias is None else y + self.bias
        return F.linear(codes.float().mul_(scale).to(x.dtype), self.weight, self.bias)


def lower(model: nn.Module, precision: str) -> dict[str, LowLinear]:
    """Replace the linear maps of a flow transformer's layers in place; by the name of the weight that each replaces.

    The small maps that make modulation, and all outside the layers, stay.
    """
    if precision not in PRECISIONS:
        raise InputError(f'There is no precision "{precision}". Choose one of: {", ".join(PRECISIONS)}.')
    replaced = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and "adaLN" not in name:
            parent, _, attribute = name.rpartition(".")
            replaced[f"{name}.weight"] = low = LowLinear(module, precision)
            setattr(model.get_submodule(parent), attribute, low)
    return replaced


def rounded(key: str, weight: Tensor, precision: str) -> dict[str, Tensor]:
    """Tensors of a `LowLinear` by their names, for the weight named `key`."""
    codes, scale = round_rows(weight, precision)
    layer = key.removesuffix("weight")
    return {f"{layer}codes": codes, f"{layer}scale": scale}


def _multiplies_float8(device: torch.device) -> bool:
    if device.type != "cuda" or not hasattr(torch, "_scaled_mm") or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _scaled_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both float8 with a scale for every row: [M, N], bfloat16 or float32."""
    if torch.cuda.get_device_capability(a.device) >= (9, 0):
        return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)
    one = torch.ones((), device=a.device)  # no scales for rows there: they come after
    y: Any = torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True)
    return y.mul_(a_scale).mul_(b_scale.t())
