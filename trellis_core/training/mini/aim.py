"""Flow networks that look at the right patch before they have learnt anything.

In the camera's frame the picture's patch (column, row) lies over the voxels (x, z). Queries made of a token's place and keys
made of a patch's place, both as the same sinusoids, make cross-attention peak there; training goes on from it. Nothing but
the starting values of ordinary weights is special: the networks stay what the published format says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...flow.rope import additive_embedding
from ...flow.transformer import FlowTransformer
from .cache import Tokens
from .encoder import PLACE, place_code, sinusoids

SHARPNESS = 3.0
"""Gain of queries and of keys: a neighbouring patch gets less than a hundredth of the weight."""
QUARTERS = [(dx, dz) for dx in (-1.5, -0.5, 0.5, 1.5) for dz in (-1.5, -0.5, 0.5, 1.5)]
NEIGHBOURS = [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)]


def aim_structure(model: FlowTransformer, tokens: Tokens) -> None:
    """Every head looks at one of the 4 x 4 patches over its coarse cell; all are looked at several times in the depth."""
    heads, depth = model.params.heads, model.params.num_blocks
    _aim(model, tokens, [[QUARTERS[(block * heads + h) % len(QUARTERS)] for h in range(heads)] for block in range(depth)])


def aim_latent(model: FlowTransformer, tokens: Tokens) -> None:
    """One head looks straight through, the last one where it wants, the others beside."""
    between = model.params.heads - 2
    offsets = []
    for block in range(model.params.num_blocks):
        beside = [NEIGHBOURS[(block * between + i) % len(NEIGHBOURS)] for i in range(between)]
        offsets.append([(0.0, 0.0), *beside, None])
    _aim(model, tokens, offsets)


@torch.no_grad()
def _aim(model: FlowTransformer, tokens: Tokens, offsets: list[list[tuple[float, float] | None]]) -> None:
    sample = tokens.gather(torch.arange(0, len(tokens), max(len(tokens) // 64, 1)))
    side = int(sample.shape[1] ** 0.5)
    patches = sample[:, -(side**2) :]
    to_key = _fit(patches.flatten(0, 1), place_code(side).repeat(len(patches), 1))
    grid, width = model.params.resolution, model.params.model_channels
    axis = torch.arange(grid)
    places = torch.cartesian_prod(axis, axis, axis)
    model.input_layer.weight *= 0.5
    generator = torch.Generator().manual_seed(0)
    embedded = additive_embedding(places, width).repeat(4 if grid > 4 else 64, 1)
    embedded = F.layer_norm(embedded + 0.5 * torch.randn(embedded.shape, generator=generator), (width,))
    step = side / grid
    over = places[:, [0, 2]] * step + (step - 1) / 2
    to_query = {
        offset: _fit(embedded, sinusoids(over + torch.tensor(offset)).repeat(len(embedded) // len(over), 1))
        for offset in {o for block in offsets for o in block if o is not None}
    }
    for block, heads in zip(model.blocks, offsets, strict=True):
        attention = block.cross_attn
        size = width // len(heads)
        attention.to_out.weight *= 3
        for h, offset in enumerate(heads):
            if offset is None:
                continue
            for layer, (weight, bias) in ((attention.to_q, to_query[offset]), (attention.to_kv, to_key)):
                rows = slice(h * size, (h + 1) * size)
                layer.weight[rows] *= 0.3
                layer.weight[h * size : h * size + PLACE] = weight
                layer.bias[h * size : h * size + PLACE] = bias
            for norm in (attention.q_rms_norm, attention.k_rms_norm):
                norm.gamma[h] = SHARPNESS


def _fit(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares weight [P, D] and bias [P] that take inputs [N, D] to wanted [N, P]."""
    ones = torch.ones(len(inputs), 1)
    joined = torch.cat([inputs, ones], 1).double()
    gram = joined.T @ joined + 1e-3 * len(joined) * torch.eye(joined.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, joined.T @ wanted.double()).float()
    return solved[:-1].T.contiguous(), solved[-1]
