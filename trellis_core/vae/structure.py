"""Dense autoencoder of the sparse structure: occupancy grid to latent grid and back (docs/method/decoders.md)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..network_params import Count, NetworkParams, Width, Widths, needs
from .blocks import zeroed

GROUPS = 32
"""Of the norm at the end, in configs that group channels."""


@dataclass(frozen=True)
class _StructureParams(NetworkParams):
    latent_channels: Width
    num_res_blocks: Count
    channels: Widths
    num_res_blocks_middle: Count = 2
    norm_type: Literal["layer", "group"] = "layer"
    use_fp16: bool = False

    def __post_init__(self) -> None:
        grouped = self.norm_type == "group"
        needs(not grouped or all(c % GROUPS == 0 for c in self.channels), f"group norms need channels in groups of {GROUPS}")

    def torso_dtype(self, override: torch.dtype | None) -> torch.dtype:
        """Dtype of the convolutions inside the blocks."""
        return override or (torch.float16 if self.use_fp16 else torch.float32)


@dataclass(frozen=True)
class SparseStructureEncoderParams(_StructureParams):
    """Shape of the encoder: one level per entry of `channels`, the grid halves between levels."""

    in_channels: Literal[1] = 1


@dataclass(frozen=True)
class SparseStructureDecoderParams(_StructureParams):
    """Shape of the decoder: one level per entry of `channels`, the grid doubles between levels."""

    out_channels: Width = 1


class SparseStructureEncoder(nn.Module):
    """Occupancy to the posterior of the structure latent."""

    def __init__(
        self,
        params: SparseStructureEncoderParams,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, params.torso_dtype(dtype)
        outer = {"device": device, "dtype": torch.float32}
        torso = {"device": device, "dtype": self.dtype}
        width = params.channels
        self.input_layer = ops.Conv3d(params.in_channels, width[0], 3, padding=1, **outer)
        self.blocks = nn.ModuleList()
        for level, channels in enumerate(width):
            self.blocks.extend(_ResBlock(channels, ops, torso) for _ in range(params.num_res_blocks))
            if level + 1 < len(width):
                self.blocks.append(_Downsample(channels, width[level + 1], ops, torso))
        self.middle_block = nn.ModuleList(_ResBlock(width[-1], ops, torso) for _ in range(params.num_res_blocks_middle))
        self.out_layer = _Head(width[-1], 2 * params.latent_channels, params.norm_type, ops, outer)

    def forward(self, occupancy: Tensor) -> tuple[Tensor, Tensor]:
        """occupancy float [B, 1, R, R, R] of 0 and 1 -> (mean, logvar), each float32 [B, latent, r, r, r]."""
        h = self.input_layer(occupancy.float()).to(self.dtype)
        for block in (*self.blocks, *self.middle_block):
            h = block(h)
        mean, logvar = self.out_layer(h.float()).chunk(2, dim=1)
        return mean, logvar


class SparseStructureDecoder(nn.Module):
    """Structure latent to occupancy logits."""

    def __init__(
        self,
        params: SparseStructureDecoderParams,
        *,
        ops: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params, self.dtype = params, params.torso_dtype(dtype)
        outer = {"device": device, "dtype": torch.float32}
        torso = {"device": device, "dtype": self.dtype}
        width = params.channels
        self.input_layer = ops.Conv3d(params.latent_channels, width[0], 3, padding=1, **outer)
        self.middle_block = nn.ModuleList(_ResBlock(width[0], ops, torso) for _ in range(params.num_res_blocks_middle))
        self.blocks = nn.ModuleList()
        for level, channels in enumerate(width):
            self.blocks.extend(_ResBlock(channels, ops, torso) for _ in range(params.num_res_blocks))
            if level + 1 < len(width):
                self.blocks.append(_Upsample(channels, width[level + 1], ops, torso))
        self.out_layer = _Head(width[-1], params.out_channels, params.norm_type, ops, outer)

    def forward(self, z: Tensor) -> Tensor:
        """z float32 [B, latent, r, r, r] -> logits float32 [B, out, R, R, R], R = r 2^(levels - 1); on where > 0."""
        h = self.input_layer(z.float()).to(self.dtype)
        for block in (*self.middle_block, *self.blocks):
            h = block(h)
        return self.out_layer(h.float())


def active_voxels(logits: Tensor, grid: int) -> Tensor:
    """Coordinates int32 [N, 4], lexicographic, of the voxels that are on.

    logits [B, 1, R, R, R]; a voxel of a coarser grid (grid^3, R a multiple of it) is on if any fine one in it is.
    """
    resolution = logits.shape[-1]
    if resolution % grid:
        raise InputError(f"A structure of {resolution}^3 voxels cannot be reduced to {grid}^3: {grid} must divide it.")
    on = (logits > 0).float()
    if grid != resolution:
        on = F.max_pool3d(on, resolution // grid)
    return on[:, 0].nonzero().int()


def _channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Layer norm over the channel axis of [B, C, X, Y, Z], in float32, cast back."""
    return norm(x.float().movedim(1, -1)).movedim(-1, 1).to(x.dtype)


class _Head(nn.Sequential):
    """Norm, SiLU, convolution: the last step of both networks, float32."""

    def __init__(self, channels: int, out_channels: int, norm_type: str, ops: ModuleType, outer: dict[str, Any]) -> None:
        grouped = norm_type == "group"
        norm = ops.GroupNorm(GROUPS, channels, **outer) if grouped else ops.LayerNorm(channels, **outer)
        super().__init__(norm, nn.SiLU(), ops.Conv3d(channels, out_channels, 3, padding=1, **outer))
        self.grouped = grouped

    def forward(self, x: Tensor) -> Tensor:
        norm, activation, conv = self
        return conv(activation(norm(x) if self.grouped else _channel_norm(norm, x)))


class _ResBlock(nn.Module):
    def __init__(self, channels: int, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        norm = {"device": torso["device"], "dtype": torch.float32}
        self.norm1 = ops.LayerNorm(channels, **norm)
        self.norm2 = ops.LayerNorm(channels, **norm)
        self.conv1 = ops.Conv3d(channels, channels, 3, padding=1, **torso)
        self.conv2 = zeroed(ops.Conv3d(channels, channels, 3, padding=1, **torso))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(_channel_norm(self.norm1, x)))
        return self.conv2(F.silu(_channel_norm(self.norm2, h))) + x


class _Downsample(nn.Module):
    def __init__(self, channels: int, out_channels: int, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        self.conv = ops.Conv3d(channels, out_channels, 2, stride=2, **torso)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Upsample(nn.Module):
    def __init__(self, channels: int, out_channels: int, ops: ModuleType, torso: dict[str, Any]) -> None:
        super().__init__()
        self.conv = ops.Conv3d(channels, 8 * out_channels, 3, padding=1, **torso)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle_3d(self.conv(x))


def pixel_shuffle_3d(x: Tensor) -> Tensor:
    """[B, 8 C, X, Y, Z] -> [B, C, 2 X, 2 Y, 2 Z]: channel 8 c + 4 i + 2 j + k goes to voxel (2x + i, 2y + j, 2z + k)."""
    b, c, *size = x.shape
    x = x.view(b, c // 8, 2, 2, 2, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // 8, *(2 * n for n in size))
