"""What the dense and the sparse flow transformer share: parameters, time embedding, layers, ends (spec A 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Batch
from .block import ModulatedTransformerCrossBlock
from .rope import additive_embedding, rotary_phases

FREQUENCIES = 256


@dataclass(frozen=True)
class FlowParams:
    """Shape of a flow transformer, named as in the published configs; `dtype` is that of the layers' linear maps."""

    resolution: int
    in_channels: int
    out_channels: int
    model_channels: int
    cond_channels: int
    num_blocks: int
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4.0
    pe_mode: str = "rope"
    share_mod: bool = False
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    dtype: str = "float32"

    @classmethod
    def from_args(cls, args: dict[str, Any]):
        """From the `args` of a published config; keys that mean nothing to inference are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in args.items() if key in known})

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels


class TimestepEmbedder(nn.Module):
    """Sinusoids of the time, then a small MLP."""

    def __init__(self, channels: int, ops: ModuleType, outer: dict[str, Any]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            ops.Linear(FREQUENCIES, channels, **outer), nn.SiLU(), ops.Linear(channels, channels, **outer)
        )

    def forward(self, t: Tensor) -> Tensor:
        """t float32 [B], 0..1000 -> [B, C]."""
        half = FREQUENCIES // 2
        # The order of these float32 operations is part of the format: at t near 1000 another one is off by 1e-4.
        steps = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class FlowTransformer(nn.Module):
    """Predicts the velocity of tokens at known positions, given the time and the tokens of a picture.

    Args:
        ops: namespace that supplies Linear and LayerNorm with the signatures of torch.nn.
        dtype: dtype of the linear maps inside the layers; None for what the config says. All else is float32.
    """

    def __init__(
        self,
        params: FlowParams,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, dtype or getattr(torch, params.dtype)
        width = params.model_channels
        outer = {"device": device, "dtype": torch.float32}
        self.t_embedder = TimestepEmbedder(width, ops, outer)
        if params.share_mod:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(width, 6 * width, **outer))
        self.input_layer = ops.Linear(params.in_channels, width, **outer)
        self.blocks = nn.ModuleList(
            ModulatedTransformerCrossBlock(
                width,
                params.cond_channels,
                params.heads,
                int(width * params.mlp_ratio),
                share_mod=params.share_mod,
                qk_norm=params.qk_rms_norm,
                qk_norm_cross=params.qk_rms_norm_cross,
                ops=ops,
                torso={"device": device, "dtype": self.dtype},
            )
            for _ in range(params.num_blocks)
        )
        self.out_norm = ops.LayerNorm(width, eps=1e-5, elementwise_affine=False, **outer)
        self.out_layer = ops.Linear(width, params.out_channels, **outer)

    def velocity(self, x: Tensor, positions: Tensor, t: Tensor, cond: Tensor, batch: Batch, context: Batch) -> Tensor:
        """Velocity of every token.

        Args:
            x: float32 [..., Cin] folded tokens.
            positions: integer [..., 3] voxel of each token, folded like x (or [L, 3] shared by even samples).
            t: float32 [B], the time times 1000.
            cond: float32 [..., Cc] folded context.

        Returns:
            float32 [..., Cout], folded like x.
        """
        h = self.input_layer(x)
        phases = None
        if self.params.pe_mode == "rope":
            phases = rotary_phases(positions, self.params.model_channels // self.params.heads)
        else:
            h = h + additive_embedding(positions, self.params.model_channels)
        mod = self.t_embedder(t)
        if self.params.share_mod:
            mod = self.adaLN_modulation(mod)
        h, mod, cond = h.to(self.dtype), mod.to(self.dtype), cond.to(self.dtype)
        for block in self.blocks:
            h = block(h, mod, cond, batch, context, phases)
        return self.out_layer(self.out_norm(h.float()))


def initialize(model: FlowTransformer, scheme: str = "scaled") -> None:
    """Fill the parameters in place for training from scratch (spec A 9); draws from torch's default generator.

    The last linear map of every branch shrinks with the depth, modulation and output start at zero: the untrained
    network predicts zero velocity and every layer passes its input on.
    """
    if scheme != "scaled":
        raise ValueError(f'Unknown initialisation "{scheme}"; only "scaled" is known.')
    width, depth = model.params.model_channels, model.params.num_blocks
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=(2 / (5 * width)) ** 0.5)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.input_layer.weight, std=model.params.in_channels**-0.5)
    for index in (0, 2):
        nn.init.normal_(model.t_embedder.mlp[index].weight, std=0.02)
    for block in model.blocks:
        for branch_end in (block.self_attn.to_out, block.cross_attn.to_out, block.mlp.mlp[2]):
            nn.init.normal_(branch_end.weight, std=(5 * depth * width) ** -0.5)
        if model.params.share_mod:
            nn.init.normal_(block.modulation, std=width**-0.5)
        else:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
    if model.params.share_mod:
        nn.init.zeros_(model.adaLN_modulation[1].weight)
    nn.init.zeros_(model.out_layer.weight)
