"""What the dense and the sparse flow transformer share: parameters, time embedding, layers, ends (docs/method/networks.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..context import QUIET, RunContext
from ..layers import Layers
from ..network_params import Count, NetworkParams, Ratio, Side, Width, needs
from .attention import Batch
from .block import ModulatedTransformerCrossBlock, Phases
from .context import Context, Tokens
from .rope import additive_embedding, rotary_phases

FREQUENCIES = 256


@dataclass(frozen=True)
class Layout:
    """Tokens' samples, and the embedding of their positions: rotary phases, or what is added to the tokens."""

    batch: Batch
    phases: Phases | None
    added: Tensor | None


@dataclass(frozen=True)
class FlowParams(NetworkParams):
    """Shape of a flow transformer, named as in the published configs, with what holds there where a name is left out.

    `dtype` is that of the layers' linear maps; `pe_mode` "rope" turns, anything else adds the tokens' positions.
    """

    resolution: Side
    in_channels: Width
    out_channels: Width
    model_channels: Width
    cond_channels: Width
    num_blocks: Count
    num_heads: Width | None = None
    num_head_channels: Width = 64
    mlp_ratio: Ratio = 4.0
    pe_mode: str = "ape"
    share_mod: bool = False
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        heads, width = self.heads, self.model_channels
        needs(0 < heads and width % heads == 0, f"a width of {width} cannot be shared out to {heads} heads")
        needs(width >= 6, f"a width of {width} has no room for positions")
        needs(
            self.pe_mode != "rope" or width // heads % 2 == 0, f"heads of {width // heads} channels cannot be turned in pairs"
        )

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels


class TimestepEmbedder(nn.Module):
    """Sinusoids of the time, then a small MLP."""

    def __init__(self, channels: int, ops: ModuleType, outer: dict[str, Any]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(ops.Linear(FREQUENCIES, channels, **outer), nn.SiLU(), ops.Linear(channels, channels, **outer))

    def forward(self, t: Tensor) -> Tensor:
        """t float32 [B], 0..1000 -> [B, C]."""
        half = FREQUENCIES // 2
        # The order of these float32 operations is part of the format: at t near 1000 another one is off by 1e-4.
        steps = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class FlowTransformer(nn.Module):
    """Predicts the velocity of tokens at known positions, given the time and the tokens of a picture.

    Calling a network does everything anew; `prepared` does what stays between the steps of a sampler only once.

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
        self.blocks = Layers(
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

    def layout(self, positions: Tensor, batch: Batch) -> Layout:
        """Positions integer [..., 3] of folded tokens (or [L, 3], shared by even samples), embedded."""
        width = self.params.model_channels
        if self.params.pe_mode == "rope":
            return Layout(batch, rotary_phases(positions, width // self.params.heads), None)
        return Layout(batch, None, additive_embedding(positions, width))

    def modulation(self, t: Tensor) -> Tensor:
        """Times t float32 [B], times 1000 -> [B, 6C] or, without sharing, [B, C], in the torso dtype."""
        mod = self.t_embedder(t.to(self.input_layer.weight.device))
        return (self.adaLN_modulation(mod) if self.params.share_mod else mod).to(self.dtype)

    def tokens(self, cond: Tensor | Sequence[Tensor]) -> Tokens:
        """Context [B, L, Cc], or one [L_b, Cc] for every sample, in its plain form."""
        batch = Batch(tuple(len(rows) for rows in cond))
        if not isinstance(cond, Tensor):
            cond = torch.stack(tuple(cond)) if batch.is_even else torch.cat(tuple(cond))
        return Tokens(batch, cond.to(self.dtype))

    def velocity(self, x: Tensor, layout: Layout, mod: Tensor, context: Context, ctx: RunContext = QUIET) -> Tensor:
        """Velocity float32 [..., Cout] of the folded tokens x float32 [..., Cin]; `mod` [B, ...] as of `modulation`."""
        h = self.input_layer(x)
        if layout.added is not None:
            h = h + layout.added
        h = h.to(self.dtype)
        for index, block in enumerate(self.blocks):
            ctx.check()
            seen = partial(context.seen, block, index, queries=layout.batch)
            h = block(h, mod, layout.batch, layout.phases, seen)
        return self.out_layer(self.out_norm(h.float()))


def initialize(model: FlowTransformer, scheme: str = "scaled") -> None:
    """Fill the parameters in place for training from scratch (docs/method/sampling.md); draws from torch's default generator.

    The last linear map of every branch shrinks with the depth, modulation and output start at zero: the untrained
    network predicts zero velocity and every layer passes its input on.
    """
    if scheme != "scaled":
        raise ValueError(f'Unknown initialisation "{scheme}"; only "scaled" is known.')
    net: Any = model  # PyTorch's containers forget of what type their layers are
    width, depth = model.params.model_channels, model.params.num_blocks
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=(2 / (5 * width)) ** 0.5)
            nn.init.zeros_(module.bias)
    nn.init.normal_(net.input_layer.weight, std=model.params.in_channels**-0.5)
    for index in (0, 2):
        nn.init.normal_(net.t_embedder.mlp[index].weight, std=0.02)
    for block in net.blocks:
        for branch_end in (block.self_attn.to_out, block.cross_attn.to_out, block.mlp.mlp[2]):
            nn.init.normal_(branch_end.weight, std=(5 * depth * width) ** -0.5)
        if model.params.share_mod:
            nn.init.normal_(block.modulation, std=width**-0.5)
        else:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
    if model.params.share_mod:
        nn.init.zeros_(net.adaLN_modulation[1].weight)
    nn.init.zeros_(net.out_layer.weight)
