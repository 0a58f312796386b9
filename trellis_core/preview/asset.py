"""Pictures of finished assets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..context import QUIET, RunContext
from ..mesh.frames import z_up_to_y_up
from .draw import Camera, Material, render

if TYPE_CHECKING:
    from ..asset.asset import Asset

_VIEW = Camera()


def draw_asset(asset: Asset, camera: Camera = _VIEW, size: int = 512, ctx: RunContext = QUIET) -> np.ndarray:
    """The asset in the studio, with all its maps: uint8 [size, size, 3]."""
    tangents = None
    if asset.tangents is not None:
        tangents = torch.cat([z_up_to_y_up(asset.tangents[:, :3]), asset.tangents[:, 3:]], dim=1).numpy()
    normal_map = None if asset.normal_map is None else asset.normal_map.numpy()
    material = Material(asset.base_color.numpy(), asset.metallic_roughness.numpy(), normal_map, occlusion=True)
    return render(
        z_up_to_y_up(asset.vertices).numpy(),
        asset.faces.numpy(),
        normals=z_up_to_y_up(asset.normals).numpy(),
        uvs=asset.uvs.numpy(),
        tangents=tangents,
        material=material,
        camera=camera,
        size=size,
        ctx=ctx,
    )
