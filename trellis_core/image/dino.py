"""The picture encoder: a DINOv3 vision transformer under its Hugging Face parameter names (docs/method/networks.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from ..layers import normal_parameter
from ..network_params import Count, NetworkParams, Small, Width, needs

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoV3Params(NetworkParams):
    """Shape of the transformer, named as in a Hugging Face `config.json`."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Width
    patch_size: Annotated[int, Field(ge=1, le=64)] = 16
    num_channels: Literal[3] = 3
    num_register_tokens: Count = 4
    layer_norm_eps: Small = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 100.0
    layerscale_value: float = 1.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    use_gated_mlp: bool = False
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        width, heads = self.hidden_size, self.num_attention_heads
        needs(width % (4 * heads) == 0, f"a width of {width} makes no {heads} heads whose channels are a multiple of 4")
        plain = self.hidden_act == "gelu" and not self.use_gated_mlp
        needs(plain, "this DINOv3 variant has another MLP than the ViT-L/16 that TRELLIS.2 was trained with")


def image_to_pixels(picture: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Tensor:
    """Resize to size x size, without keeping the aspect -> float32 [3, size, size] in 0..1."""
    resized = picture.resize((size, size), resampling).convert("RGB")
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def patch_phases(side: int, head_width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [side^2, head_width], for patches row-major with centres spread over -1..1."""
    steps = torch.arange(head_width // 4, device=device, dtype=torch.float32)
    frequency = theta ** (-4 * steps / head_width)
    centre = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side * 2 - 1
    rows_columns = torch.cartesian_prod(centre, centre)
    angles = (2 * math.pi * rows_columns[..., None] * frequency).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


class DinoV3Encoder(nn.Module):
    """Picture to tokens: class token, registers, patches row-major."""

    def __init__(
        self,
        params: DinoV3Params,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params = params
        place = {"device": device, "dtype": dtype or torch.float32}
        self.embeddings = _Embeddings(params, ops, place)
        self.layer = nn.ModuleList(_Layer(params, ops, place) for _ in range(params.num_hidden_layers))
        # Not applied: the flow networks were trained on the states before it. It is there because checkpoints hold it.
        self.norm = ops.LayerNorm(params.hidden_size, eps=params.layer_norm_eps, **place)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens after the last layer, each brought to zero mean and unit variance.

        Args:
            pixels: float [B, 3, S, S] in 0..1, S a multiple of the patch size.

        Returns:
            [B, 1 + registers + (S / patch)^2, hidden].
        """
        p = self.params
        mean, std = (torch.tensor(c, device=pixels.device, dtype=pixels.dtype).view(3, 1, 1) for c in (MEAN, STD))
        h = self.embeddings((pixels - mean) / std)
        side = pixels.shape[-1] // p.patch_size
        phases = patch_phases(side, p.hidden_size // p.num_attention_heads, p.rope_theta, h.device)
        for layer in self.layer:
            h = layer(h, phases)
        return F.layer_norm(h, h.shape[-1:], eps=1e-5)

    def encode(self, pixels: Tensor) -> Tensor:
        """The same as calling the module."""
        return self(pixels)


class _Embeddings(nn.Module):
    def __init__(self, p: DinoV3Params, ops: ModuleType, place: dict[str, Any]) -> None:
        super().__init__()
        width = p.hidden_size
        self.cls_token = normal_parameter(1, 1, width, std=0.02, **place)
        self.register_tokens = normal_parameter(1, p.num_register_tokens, width, std=0.02, **place)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width, **place))  # only pre-training uses it
        self.patch_embeddings = ops.Conv2d(p.num_channels, width, p.patch_size, stride=p.patch_size, **place)

    def forward(self, normalised: Tensor) -> Tensor:
        patches = self.patch_embeddings(normalised.to(self.cls_token.dtype)).flatten(2).transpose(1, 2)
        prefix = torch.cat((self.cls_token, self.register_tokens), dim=1)
        return torch.cat((prefix.expand(len(patches), -1, -1), patches), dim=1)


class _Layer(nn.Module):
    def __init__(self, p: DinoV3Params, ops: ModuleType, place: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = ops.LayerNorm(p.hidden_size, eps=p.layer_norm_eps, **place)
        self.attention = _Attention(p, ops, place)
        self.layer_scale1 = _LayerScale(p, place)
        self.norm2 = ops.LayerNorm(p.hidden_size, eps=p.layer_norm_eps, **place)
        self.mlp = _Mlp(p, ops, place)
        self.layer_scale2 = _LayerScale(p, place)

    def forward(self, h: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
        h = h + self.layer_scale1(self.attention(self.norm1(h), phases))
        return h + self.layer_scale2(self.mlp(self.norm2(h)))


class _Attention(nn.Module):
    def __init__(self, p: DinoV3Params, ops: ModuleType, place: dict[str, Any]) -> None:
        super().__init__()
        self.heads = p.num_attention_heads
        self.q_proj = ops.Linear(p.hidden_size, p.hidden_size, bias=p.query_bias, **place)
        self.k_proj = ops.Linear(p.hidden_size, p.hidden_size, bias=p.key_bias, **place)
        self.v_proj = ops.Linear(p.hidden_size, p.hidden_size, bias=p.value_bias, **place)
        self.o_proj = ops.Linear(p.hidden_size, p.hidden_size, bias=p.proj_bias, **place)

    def forward(self, x: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(_rotate_patches(q, phases), _rotate_patches(k, phases), v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _LayerScale(nn.Module):
    def __init__(self, p: DinoV3Params, place: dict[str, Any]) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((p.hidden_size,), p.layerscale_value, **place))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class _Mlp(nn.Module):
    def __init__(self, p: DinoV3Params, ops: ModuleType, place: dict[str, Any]) -> None:
        super().__init__()
        self.up_proj = ops.Linear(p.hidden_size, p.intermediate_size, bias=p.mlp_bias, **place)
        self.down_proj = ops.Linear(p.intermediate_size, p.hidden_size, bias=p.mlp_bias, **place)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


def _rotate_patches(x: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the patches, the last tokens of x [B, H, T, d]. A component's partner lies half a head vector away."""
    cos, sin = phases
    prefix, patches = x.split((x.shape[-2] - cos.shape[0], cos.shape[0]), dim=-2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned.to(x.dtype)), dim=-2)
