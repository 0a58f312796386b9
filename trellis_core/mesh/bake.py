"""Baking PBR voxels into texture images: base colour with alpha, and metallic-roughness as glTF packs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import QUIET, RunContext
from ..values import PbrVoxels
from .attributes import sample_attributes
from .fill import GapFiller
from .raster import Interpolator, Texels

ALPHA_MODES = ("OPAQUE", "MASK", "BLEND")
_SOLID, _CLEAR = 0.9, 0.1
_SEE_THROUGH_SHARE = 0.005
"""Share of the surface that must be see-through before the material is; less is noise of the decoder."""


@dataclass(frozen=True)
class Bake:
    """Textures of a surface.

    Attributes:
        base_color: uint8 [S, S, 4], sRGB and alpha. Colours under alpha 0 are kept.
        metallic_roughness: uint8 [S, S, 3]: 255 (no occlusion), roughness, metallic.
        alpha_mode: OPAQUE (then alpha is 255 everywhere), MASK or BLEND.
        see_through: share of texels with alpha below 0.9.
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
) -> Bake:
    """Sample the voxels at every covered texel, fill the gaps between charts, decide how alpha is used, and round.

    Points that no voxel touches take the nearest one, so that no texel is black for want of data.

    Args:
        corners: float32 [F, 3, 2] texel coordinates of the triangles.
        points: float32 [F, 3, 3] their corners in object space.
        texels: what they cover in the atlas.
        voxels: the attributes, at least one voxel.
        size: texels along a side.
        alpha_mode: one of `ALPHA_MODES`; None decides from the data.
        ctx: told the progress.
    """
    position = Interpolator(corners, points)(texels, size)
    ctx.report(0.15)
    values = sample_attributes(voxels, position, ctx=ctx.part(0.15, 0.7, "bake"))
    del position
    values.nan_to_num_().clamp_(0, 1)
    mode, see_through = decide_alpha(values[:, 5]) if len(values) else ("OPAQUE", 0.0)
    mode = alpha_mode or mode
    ctx.report(0.7)
    covered = torch.zeros(size * size, dtype=torch.bool, device=values.device)
    covered[texels.number] = True
    fill = GapFiller(covered.view(size, size))

    def picture(channel: int) -> Tensor:
        """One channel as uint8 [S, S]. Gaps are filled as well: filtering and mip maps bring them into view."""
        flat = torch.zeros(size * size, device=values.device)
        flat[texels.number] = values[:, channel]
        ctx.report(0.75 + 0.04 * channel)
        return fill(flat.view(size, size)).mul(255).round_().to(torch.uint8)

    red, green, blue, metallic, roughness = map(picture, range(5))
    full = torch.full_like(red, 255)
    alpha = full if mode == "OPAQUE" else picture(5)
    ctx.report(1.0)
    return Bake(
        torch.stack([red, green, blue, alpha], dim=2),
        torch.stack([full, roughness, metallic], dim=2),
        mode,
        see_through,
        torch.bincount(texels.face, minlength=len(corners)),
    )


def decide_alpha(alpha: Tensor) -> tuple[str, float]:
    """The glTF alpha mode that alpha values [K] in 0..1 ask for, and the share of them that is not solid.

    OPAQUE while nearly all are solid; MASK if those that are not are mostly clear, as at cut-out leaves, where values in
    between are only the soft rim of interpolation; else BLEND, as for glass.
    """
    see_through = float((alpha < _SOLID).float().mean())
    clear = float((alpha < _CLEAR).float().mean())
    if see_through < _SEE_THROUGH_SHARE:
        return "OPAQUE", see_through
    return ("MASK" if clear >= see_through / 2 else "BLEND"), see_through
