"""Baking PBR voxels into texture images: base colour with alpha, and metallic-roughness as glTF packs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..ovoxel.attributes import Trilinear, nearest_voxel
from ..values import PbrVoxels
from .back_projection import BackProjector
from .fill import GapFiller
from .raster import Interpolator, Texels

_SEEN_THROUGH, _CLEAR = 0.7, 0.1
"""Alpha below which a texel is clearly see-through (decoders paint solid things with .8 and more), and as good as nothing."""
_COLOR, _MATERIAL = [0, 1, 2, 5], [4, 3]
"""Attributes in the order of the pictures' channels: red, green, blue, alpha; after occlusion roughness, metallic."""
_TEXELS = 1 << 15
"""Texels worked on at once: few enough to stay in the processor's cache."""
_SEE_THROUGH_SHARE = 0.005
"""Share of the surface that must be see-through, in patches, before the material is."""
_PATCH, _LEAST_PATCH = 8, 6
"""Voxels that a see-through patch covers at least, and texels; smaller ones are strays of the decoder."""


@dataclass(frozen=True)
class Bake:
    """Textures of a surface.

    Attributes:
        base_color: uint8 [S, S, 4], sRGB and alpha. Colours under alpha 0 are kept.
        metallic_roughness: uint8 [S, S, 3]: 255 (no occlusion), roughness, metallic.
        alpha_mode: OPAQUE (then alpha is 255 everywhere), MASK or BLEND.
        see_through: share of texels that are clearly see-through, with alpha below 0.7.
        texels_of_face: int64 [F] texels that each triangle covers.
    """

    base_color: Tensor
    metallic_roughness: Tensor
    alpha_mode: str
    see_through: float
    texels_of_face: Tensor


def bake(
    corners: Tensor,
    points: Tensor,
    texels: Texels,
    voxels: PbrVoxels,
    size: int,
    alpha_mode: str | None = None,
    ctx: RunContext = QUIET,
    back: BackProjector | None = None,
) -> Bake:
    """Sample the voxels at every covered texel, fill the gaps between charts, decide how alpha is used, and round.

    Points that no voxel touches take the nearest one, so that no texel is black for want of data.

    Args:
        corners: float32 [F, 3, 2] texel coordinates of the triangles.
        points: float32 [F, 3, 3] their corners in object space.
        texels: what they cover in the atlas.
        voxels: the attributes, at least one voxel.
        size: texels along a side.
        alpha_mode: OPAQUE, MASK or BLEND; None decides from the data.
        ctx: told the progress.
        back: finds the surface that this one was decimated from: colours are looked up there.
    """
    if back is not None:
        a, b = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
        upright = torch.nn.functional.normalize(torch.linalg.cross(a, b), dim=1, eps=1e-30)
    ctx.report(0.02)
    place = Interpolator(corners, (points + 0.5) * voxels.resolution)
    ctx.report(0.05)
    attrs = voxels.attrs.float().nan_to_num(0.0)
    layout = torch.cat([attrs[:, _COLOR], torch.ones_like(attrs[:, :1]), attrs[:, _MATERIAL]], dim=1)
    sampler = Trilinear(255 * layout, voxels.coords, voxels.resolution)
    color, material = (torch.zeros(size * size, dtype=torch.int32, device=corners.device) for _ in range(2))
    alpha = torch.ones(len(texels.number), device=corners.device)
    strays = []

    def paint(number: Tensor, values: Tensor) -> Tensor:
        """Write values [K, 7] into both pictures, four bytes at a time; returns alpha [K]."""
        rounded = torch.empty(len(number), 8, dtype=torch.uint8, device=values.device)
        rounded[:, :7] = values.clamp_(0, 255).round()
        for picture, texel in zip((color, material), rounded.view(torch.int32).unbind(1), strict=True):
            picture.index_copy_(0, number, texel)
        return values[:, 3] / 255

    for start in range(0, len(alpha), _TEXELS):
        ctx.report(0.1 + 0.7 * start / len(alpha))
        some = slice(start, start + _TEXELS)
        number, face = texels.number[some], texels.face[some]
        position = place(Texels(number, face), size)
        if back is not None:
            position = back(position, upright[face])
        values, found = sampler(position)
        alpha[some] = paint(number, values)
        if not found.all():
            lost = (~found).nonzero()[:, 0]
            strays.append((lost + start, position[lost]))
    if strays:
        lost, position = (torch.cat(parts) for parts in zip(*strays, strict=True))
        alpha[lost] = paint(texels.number[lost], 255 * layout[_nearest(voxels, position, ctx)])
    mode, see_through = decide_alpha(alpha, texels.number, size, len(alpha) / max(len(voxels.coords), 1))
    mode = alpha_mode or mode
    ctx.report(0.8)
    covered = torch.zeros(size * size, dtype=torch.bool, device=corners.device)
    covered[texels.number] = True
    fill = GapFiller(covered.view(size, size))  # filtering and mip maps bring the gaps into view
    pictures = []
    for picture in (color, material):
        pictures.append(fill(picture.view(size, size, 1).view(torch.uint8)))
        ctx.report(0.8 + 0.1 * len(pictures))
    color, material = pictures
    if mode == "OPAQUE":
        color[..., 3] = 255
    material[..., 0] = 255
    return Bake(color, material[..., :3].contiguous(), mode, see_through, torch.bincount(texels.face, minlength=len(corners)))


def _nearest(voxels: PbrVoxels, points: Tensor, ctx: RunContext) -> Tensor:
    """Row int64 [P] of a voxel nearest to the cell of each of points [P, 3]; there may be millions, where voxels are few."""
    side = voxels.resolution
    cell = points.nan_to_num(0.0).floor().clamp_(-side, 2 * side - 1).long() + side
    keys, inverse = ((cell[:, 0] * 3 * side + cell[:, 1]) * 3 * side + cell[:, 2]).unique(return_inverse=True)
    centres = torch.stack([keys // (3 * side) ** 2, keys // (3 * side) % (3 * side), keys % (3 * side)], dim=1) - side + 0.5
    return nearest_voxel(voxels.coords, centres, ctx)[inverse]


def decide_alpha(alpha: Tensor, number: Tensor, size: int, grain: float) -> tuple[str, float]:
    """The glTF alpha mode that a painted surface asks for, and the share of its texels that are clearly see-through.

    OPAQUE unless connected patches of the surface, each larger than a few voxels, are see-through: strays of a decoder are
    not, nor is an even veil over something solid. MASK if the patches are mostly clear, as at cut-out leaves, where values
    in between are only the soft rim of interpolation; else BLEND, as for glass.

    Args:
        alpha: float [K] in 0..1 of the covered texels. number: int64 [K], their places in a picture of `size` x `size`.
        grain: texels that a voxel covers.
    """
    seen = alpha < _SEEN_THROUGH
    share = float(seen.float().mean()) if len(alpha) else 0.0
    if share < _SEE_THROUGH_SHARE:
        return "OPAQUE", share
    from scipy import ndimage

    picture = torch.zeros(size * size, dtype=torch.bool, device="cpu")
    picture[number[seen].cpu()] = True
    labelled: Any = ndimage.label(picture.view(size, size).numpy(), np.ones((3, 3)))
    patch = torch.from_numpy(labelled[0]).flatten()[number[seen].cpu()].long()
    large = torch.bincount(patch) >= max(_PATCH * grain, _LEAST_PATCH)
    within = alpha[seen].cpu()[large[patch]]
    if len(within) < _SEE_THROUGH_SHARE * len(alpha):
        return "OPAQUE", share
    return ("MASK" if (within < _CLEAR).float().mean() >= 0.5 else "BLEND"), share
