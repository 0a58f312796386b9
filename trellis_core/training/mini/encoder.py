"""Image encoder of the mini family: a small DINOv3-style ViT, taught by auxiliary heads that are then thrown away.

It stands in for self-supervised pre-training. The heads read the very tokens that the flow models will attend to
(plain LayerNorm of the last hidden state): every patch tells where its pixels lie on the object and of what material
they are, and a query for any coarse voxel must find out whether it is occupied, how, and in which colour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 4
"""Sub-cells per patch edge at which the patch heads predict."""
GRID = 8
FINE = 4
"""Fine voxels per coarse voxel edge."""
MATERIAL = 5


class PatchHead(nn.Module):
    """Token -> maps of CELLS^2 cells a patch: XYZ (3), RGB, metallic, roughness (5) and mask logit (1)."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.patches = patches
        self.channels = 3 + MATERIAL + 1
        self.head = nn.Linear(width, CELLS * CELLS * self.channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, patches^2, D] -> [B, 9, patches * CELLS, patches * CELLS]."""
        n = self.patches
        maps = self.head(tokens).view(-1, n, n, CELLS, CELLS, self.channels)
        return maps.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, n * CELLS, n * CELLS)


class VoxelHead(nn.Module):
    """Coarse voxel queries -> occupancy logit (1), fine occupancy logits (FINE^3), mean material (5)."""

    def __init__(self, width: int, heads: int, depth: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(GRID**3, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_q": nn.LayerNorm(width),
                    "to_q": nn.Linear(width, width),
                    "to_kv": nn.Linear(width, 2 * width),
                    "to_out": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 1 + FINE**3 + MATERIAL)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """tokens [B, L, D], wanted int64 [B, Q] linear voxel numbers -> [B, Q, 1 + 64 + 5]."""
        h = self.queries[wanted]
        for block in self.blocks:
            q = self._split(block["to_q"](block["norm_q"](h)))
            k, v = map(self._split, block["to_kv"](tokens).chunk(2, dim=-1))
            seen = F.scaled_dot_product_attention(q, k, v)
            h = h + block["to_out"](seen.transpose(1, 2).flatten(2))
            h = h + block["mlp"](h)
        return self.head(F.layer_norm(h, h.shape[-1:]))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def patch_losses(maps: Tensor, xyz: Tensor, material: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """maps [B, 9, R, R]; xyz [B, 3, S, S], material [B, 5, S, S], mask [B, 1, S, S] float at a multiple of R."""
    factor = mask.shape[-1] // maps.shape[-1]
    covered = F.avg_pool2d(mask, factor)
    share = covered.clamp_min(1e-6)
    xyz = F.avg_pool2d(xyz * mask, factor) / share
    material = F.avg_pool2d(material * mask, factor) / share
    weight = covered / covered.sum()
    return {
        "xyz": ((maps[:, :3] - xyz).abs() * weight).sum() / 3,
        "material": ((maps[:, 3:8] - material).abs() * weight).sum() / MATERIAL,
        "mask": F.binary_cross_entropy_with_logits(maps[:, 8:], covered),
    }


def voxel_losses(answers: Tensor, occupied: Tensor, fine: Tensor, material: Tensor) -> dict[str, Tensor]:
    """answers [B, Q, 70]; occupied bool [B, Q], fine bool [B, Q, 64], material float [B, Q, 5] (both where occupied)."""
    where = occupied
    return {
        "occupancy": F.binary_cross_entropy_with_logits(answers[..., 0], occupied.float()),
        "fine": F.binary_cross_entropy_with_logits(answers[..., 1:-MATERIAL][where], fine[where].float()),
        "voxel_material": F.l1_loss(answers[..., -MATERIAL:][where], material[where]),
    }


def photometric(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random exposure, gamma and a little blur of pixels [B, 3, S, S] premultiplied on black."""
    count = len(pixels)
    gain, gamma, blur = torch.rand(3, count, 1, 1, 1, generator=generator)
    pixels = (pixels.clamp_min(1e-4) ** (0.85 + 0.3 * gamma) * (0.85 + 0.3 * gain)).clamp(0, 1)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1)), 3, stride=1)
    return torch.lerp(pixels, soft, (blur - 0.5).clamp_min(0))
