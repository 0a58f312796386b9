"""Image encoder of the mini family: a small DINOv3-style ViT, taught by an auxiliary head that is then thrown away.

It stands in for self-supervised pre-training. The head reads the very tokens that the flow models will attend to (plain
LayerNorm of the last hidden state). In the camera's frame a patch of the picture lies over a column of the structure; every
patch must tell what its column holds: which cells, how near the front and how far the back, in which colours, and where in
the picture it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...image.dino import DinoV3Encoder
from .data.dataset import DualGridTargets

CELLS = 4
"""Sub-cells per patch edge at which the head predicts."""
DEPTHS = 16
"""Cells of a column."""
MAPS = 9
"""Maps of the sub-cells: cover, front, back, front colour, back colour."""
MATERIAL = 2
FREQUENCIES = (1.0, 0.645, 0.416, 0.268)
"""Of the sinusoids of a patch's place, in radians a patch."""
PLACE = 4 * len(FREQUENCIES)


def place_code(side: int) -> Tensor:
    """float32 [side^2, PLACE]: cosine and sine of every patch's column and height, row by row from the top."""
    step = torch.arange(side, dtype=torch.float32)
    z, x = torch.meshgrid(side - 1 - step, step, indexing="ij")
    return sinusoids(torch.stack([x, z], -1).view(-1, 2))


def sinusoids(places: Tensor) -> Tensor:
    """float32 [..., 2] in patches -> [..., PLACE]."""
    angles = (places[..., None] * torch.tensor(FREQUENCIES)).flatten(-2)
    return torch.cat([angles.cos(), angles.sin()], -1)


class ColumnHead(nn.Module):
    """Token -> what lies behind the patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, DEPTHS + MAPS * CELLS * CELLS + MATERIAL + PLACE)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, n^2, D] -> cells [B, n^2, DEPTHS] (logits), maps [B, n^2, MAPS, CELLS^2], material, place."""
        cells, maps, material, place = self.head(tokens).split([DEPTHS, MAPS * CELLS**2, MATERIAL, PLACE], -1)
        return cells, maps.unflatten(-1, (MAPS, -1)), material, place


def set_out(vit: DinoV3Encoder) -> None:
    """Start a fresh encoder with what it would learn first: a patch's colours as they are, and its place.

    Colours: the first channels are averages of the patch's sub-cells. Place: rotary phases turn patches but not registers, so
    what a constant query thinks of a register depends on the place of the patch that asks. In the first layer one head bins
    the rows and one the columns, a register a bin, and writes the bins to channels of their own.
    """
    p = vit.params
    bins, width, head = p.num_register_tokens, p.hidden_size, p.hidden_size // p.num_attention_heads
    own = width - bins
    written = own - 2 * bins
    conv = vit.embeddings.patch_embeddings
    size = conv.weight.shape[-1] // CELLS
    attention = vit.layer[0].attention
    half, slow, steady = head // 2, 3, head // 4 - 1
    reach = 2 * math.pi * p.rope_theta ** (-4 * slow / head)
    with torch.no_grad():
        for c in range(3):
            for cell in range(CELLS * CELLS):
                u, v = cell // CELLS * size, cell % CELLS * size
                conv.weight[c * CELLS**2 + cell] = 0
                conv.weight[c * CELLS**2 + cell, c, u : u + size, v : v + size] = 1 / size**2
        conv.weight[written:] = 0
        conv.bias[written:] = 0
        vit.embeddings.register_tokens.zero_()
        vit.embeddings.register_tokens[0, :, own:] = torch.eye(bins)
        loud = width**0.5  # what LayerNorm makes of the only channel that is on
        turn = reach * ((torch.arange(bins) + 0.5) / bins * 2 - 1)
        for axis in range(2):
            rows = slice(axis * head, (axis + 1) * head)
            place = axis * head // 4 + slow
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
                layer.weight[rows] = 0
            attention.q_proj.bias[rows] = 0
            attention.q_proj.bias[axis * head + place] = head**0.5
            attention.q_proj.bias[axis * head + steady] = head**0.5
            keys = attention.k_proj.weight[rows, own:]
            keys[place], keys[place + half], keys[steady] = 60 * turn.cos() / loud, 60 * turn.sin() / loud, 20 / loud
            attention.v_proj.bias[rows] = 0
            attention.v_proj.weight[axis * head : axis * head + bins, own:] = 2 * torch.eye(bins) / loud
            attention.o_proj.weight[:, rows] = 0
            channels = slice(written + axis * bins, written + (axis + 1) * bins)
            attention.o_proj.weight[channels, axis * head : axis * head + bins] = torch.eye(bins)


def column_targets(objects: Sequence[DualGridTargets]) -> tuple[Tensor, Tensor, Tensor]:
    """What the head shall say: cells bool [B, n^2, DEPTHS], maps float32 [B, n^2, MAPS, CELLS^2] and material [B, n^2, 2].

    Depths are in 0..1 of the grid; where nothing is, maps are 0.
    """
    grid = objects[0].grid
    side = grid // CELLS
    dense = np.zeros((len(objects), MAPS, grid, grid), np.float32)
    material = np.zeros((len(objects), MATERIAL, grid, grid), np.float32)
    cells = np.zeros((len(objects), side, side, DEPTHS), bool)
    for i, t in enumerate(objects):
        coords = t.coords.astype(np.int64)
        x, z = coords[:, 0], grid - 1 - coords[:, 2]
        column, depth = z * grid + x, (coords[:, 1] + t.dual[:, 1]) / grid
        # Rows are sorted by x, y, z: the first row of a column is its foremost one.
        for rows, at, colour in ((slice(None), 1, 3), (slice(None, None, -1), 2, 6)):
            which, first = np.unique(column[rows], return_index=True)
            where = which // grid, which % grid
            dense[i, 0][where] = 1
            dense[i, at][where] = depth[rows][first]
            dense[i, colour : colour + 3][:, where[0], where[1]] = t.attrs[rows][first, :3].T
            material[i][:, where[0], where[1]] = t.attrs[rows][first, 3:5].T
        cells[i, z // CELLS, x // CELLS, coords[:, 1] * DEPTHS // grid] = True
    maps, material = torch.from_numpy(dense), torch.from_numpy(material)
    cover = F.avg_pool2d(maps[:, :1], CELLS).clamp_min(1e-6)
    material = (F.avg_pool2d(material, CELLS) / cover).flatten(2).transpose(1, 2)
    maps = maps.unflatten(2, (side, CELLS)).unflatten(4, (side, CELLS)).permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)
    return torch.from_numpy(cells).flatten(1, 2), maps, material


def column_losses(
    said: tuple[Tensor, Tensor, Tensor, Tensor], wanted: tuple[Tensor, Tensor, Tensor], side: int
) -> dict[str, Tensor]:
    """Terms of the head's loss; `said` of `ColumnHead`, `wanted` of `column_targets`."""
    cells, maps, material, place = said
    truth = wanted[1]
    on = truth[:, :, :1]
    weight = on / on.sum().clamp_min(1)
    error = (maps[:, :, 1:] - truth[:, :, 1:]).abs() * weight
    patch = on.mean(3)
    return {
        "cells": F.binary_cross_entropy_with_logits(cells, wanted[0].float()),
        "cover": F.binary_cross_entropy_with_logits(maps[:, :, :1], on),
        "depth": error[:, :, :2].sum() / 2,
        "colour": error[:, :, 2:5].sum() / 3,
        "back": error[:, :, 5:].sum() / 3,
        "material": ((material - wanted[2]).abs() * patch).sum() / patch.sum().clamp_min(1) / MATERIAL,
        "place": F.mse_loss(place, place_code(side).expand_as(place)),
    }
