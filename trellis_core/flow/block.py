"""One layer of the flow transformers: modulated self-attention and MLP, cross-attention between (docs/method/networks.md)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import normal_parameter
from .attention import Batch, attend
from .elementwise import added_and_modulated, gated, heads, modulated, normed

Phases = tuple[Tensor, Tensor]


class HeadNorm(nn.Module):
    """Scales every head vector to length sqrt(d), then by a learnt gain; float32 inside."""

    def __init__(self, heads: int, width: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width, device=device, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, d] -> the same shape and dtype."""
        return heads(x, self.gamma, None)


class SelfAttention(nn.Module):
    """Attention among the tokens of a sample."""

    def __init__(self, channels: int, heads: int, qk_norm: bool, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = ops.Linear(channels, 3 * channels, **torso)
        self.q_rms_norm, self.k_rms_norm = _head_norms(qk_norm, channels, heads, torso)
        self.to_out = ops.Linear(channels, channels, **torso)

    def forward(self, x: Tensor, batch: Batch, phases: Phases | None) -> Tensor:
        """x [..., C] folded tokens -> the same shape; `phases` None means no rotary embedding."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k = (heads(x, getattr(norm, "gamma", None), phases) for norm, x in ((self.q_rms_norm, q), (self.k_rms_norm, k)))
        return self.to_out(attend(q, k, v, batch, batch))


class CrossAttention(nn.Module):
    """Attention of the tokens of a sample to its own context."""

    def __init__(self, channels: int, context: int, heads: int, qk_norm: bool, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(channels, channels, **torso)
        self.to_kv = ops.Linear(context, 2 * channels, **torso)
        self.q_rms_norm, self.k_rms_norm = _head_norms(qk_norm, channels, heads, torso)
        self.to_out = ops.Linear(channels, channels, **torso)

    def keys_values(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """cond [..., Cc] folded context -> keys and values [..., H, d]."""
        k, v = self.to_kv(cond).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return self.k_rms_norm(k), v

    def answer(self, token: Tensor) -> Tensor:
        """What `forward` gives for a context of nothing but this token [1, Cc]: [C]."""
        return self.to_out(self.to_kv(token).chunk(2, dim=-1)[1])[0]

    def forward(self, x: Tensor, batch: Batch, keys_values: tuple[Tensor, Tensor], context: Batch) -> Tensor:
        """x [..., C] folded tokens, `keys_values` of the folded context -> the shape of x."""
        q = self.q_rms_norm(self.to_q(x).unflatten(-1, (self.heads, -1)))
        return self.to_out(attend(q, *keys_values, batch, context))


class FeedForward(nn.Module):
    """Two linear layers around a GELU (tanh form)."""

    def __init__(self, channels: int, hidden: int, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            ops.Linear(channels, hidden, **torso), nn.GELU(approximate="tanh"), ops.Linear(hidden, channels, **torso)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class ModulatedTransformerCrossBlock(nn.Module):
    """A layer whose self-attention and MLP are shifted, scaled and gated by the time; cross-attention is not.

    Args:
        share_mod: the network computes the modulation once and the layer adds its own constant; otherwise the layer
            computes it from the time embedding.
        torso: device and dtype of the linear layers; everything else is float32.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        heads: int,
        hidden: int,
        *,
        share_mod: bool,
        qk_norm: bool,
        qk_norm_cross: bool,
        ops: ModuleType,
        torso: dict[str, Any],
    ) -> None:
        super().__init__()
        outer = {"device": torso["device"], "dtype": torch.float32}
        self.norm1 = ops.LayerNorm(channels, eps=1e-6, elementwise_affine=False, **outer)
        self.norm2 = ops.LayerNorm(channels, eps=1e-6, elementwise_affine=True, **outer)
        self.norm3 = ops.LayerNorm(channels, eps=1e-6, elementwise_affine=False, **outer)
        self.self_attn = SelfAttention(channels, heads, qk_norm, ops, torso)
        self.cross_attn = CrossAttention(channels, context, heads, qk_norm_cross, ops, torso)
        self.mlp = FeedForward(channels, hidden, ops, torso)
        if share_mod:
            self.modulation = normal_parameter(6 * channels, std=channels**-0.5, **outer)
        else:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(channels, 6 * channels, **torso))

    def forward(self, h: Tensor, mod: Tensor, batch: Batch, phases: Phases | None, seen: Callable[[Tensor], Tensor]) -> Tensor:
        """One layer.

        Args:
            h: [..., C] folded tokens in the torso dtype.
            mod: torso dtype, [B, 6C] shared modulation or, without sharing, the time embedding [B, C].
            seen: what cross-attention adds to the tokens that it is given (see `context`).
        """
        if hasattr(self, "modulation"):
            mod = (self.modulation.float() + mod).to(h.dtype)
        else:
            mod = self.adaLN_modulation(mod)
        shift1, scale1, gate1, shift2, scale2, gate2 = (batch.spread(m) for m in mod.chunk(6, dim=1))
        h = gated(h, self.self_attn(modulated(self.norm1, h, scale1, shift1), batch, phases), gate1)
        h, y = added_and_modulated(self.norm3, h, seen(h), scale2, shift2)
        return gated(h, self.mlp(y), gate2)

    def look(self, h: Tensor, batch: Batch, keys_values: tuple[Tensor, Tensor], context: Batch) -> Tensor:
        """Cross-attention of the folded tokens h to a context, norm included."""
        return self.cross_attn(normed(self.norm2, h), batch, keys_values, context)


def _head_norms(wanted: bool, channels: int, heads: int, torso: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    if not wanted:
        return nn.Identity(), nn.Identity()
    first, second = (HeadNorm(heads, channels // heads, torso["device"]) for _ in "qk")
    return first, second
