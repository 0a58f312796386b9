"""The values that travel between stages: small frozen dataclasses of CPU tensors.

Object space is the cube [-0.5, 0.5]^3, z up. Voxel (x, y, z) of a grid of resolution R covers
[x/R - 0.5, (x+1)/R - 0.5) per axis. Sparse coordinates are int32 rows (sample, x, y, z) in
lexicographic order, the rows of one sample contiguous (spec A notation, B 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the networks know of the picture.

    Attributes:
        tokens: float32 [B, L, C] image tokens by pipeline resolution key (512 and, unless only 512 was asked, 1024).
        picture: uint8 [S, S, 3], the cropped premultiplied picture that the tokens were made from.
    """

    tokens: dict[int, Tensor]
    picture: Tensor


@dataclass(frozen=True)
class Structure:
    """Active voxels of the coarse grid: coords int32 [N, 4] on grid^3, for `samples` objects."""

    coords: Tensor
    grid: int
    samples: int


@dataclass(frozen=True)
class Shape:
    """Shape latent (denormalised, float32 [N, C]) on coords int32 [N, 4]; decodes to a grid of `resolution`."""

    coords: Tensor
    feats: Tensor
    resolution: int
    samples: int


@dataclass(frozen=True)
class Texture:
    """Texture latent (denormalised, float32 [N, C]), row for row on the coords of its shape."""

    feats: Tensor


@dataclass(frozen=True)
class Mesh:
    """Triangles: vertices float32 [V, 3] in object space, faces int32 [F, 3]."""

    vertices: Tensor
    faces: Tensor


@dataclass(frozen=True)
class PbrVoxels:
    """Sparse volume of PBR attributes.

    Attributes:
        coords: int32 [N, 3] active voxels.
        attrs: float32 [N, 6]: base colour RGB (sRGB-encoded), metallic, roughness, alpha; nominally 0..1, unclamped.
        resolution: voxels per axis of the unit cube.
    """

    coords: Tensor
    attrs: Tensor
    resolution: int
