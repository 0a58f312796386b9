"""The values that travel between stages: small frozen dataclasses of CPU tensors.

Object space is the cube [-0.5, 0.5]^3, z up. Voxel (x, y, z) of a grid of resolution R covers
[x/R - 0.5, (x+1)/R - 0.5) per axis. Sparse coordinates are int32 rows (sample, x, y, z) in
lexicographic order, the rows of one sample contiguous (docs/method/index.md).

`made_with` travels along: every setting that a value was made with, by its name in `GenerationSettings`, as used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the networks know of the pictures.

    Attributes:
        tokens: float32 [B, L, C] image tokens by scale (512, and 1024 unless only 512 was asked), one row a picture.
        pictures: uint8 [S, S, 3] each: the cropped premultiplied pictures that the tokens were made from.
    """

    tokens: dict[int, Tensor]
    pictures: tuple[Tensor, ...]


@dataclass(frozen=True)
class Structure:
    """Active voxels of the coarse grid.

    Attributes:
        coords: int32 [N, 4] on grid^3.
        samples: how many objects; each has at least one voxel.
        rng: uint8 [B, S], where each object's stream of noise stands after this stage, so that the next one goes on from it.
    """

    coords: Tensor
    grid: int
    samples: int
    rng: Tensor
    made_with: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """Shape latent, to be decoded to a grid of `resolution`.

    Attributes:
        coords: int32 [N, 4] latent voxels.
        feats: float32 [N, C], denormalised.
        rng: as in `Structure`.
    """

    coords: Tensor
    feats: Tensor
    resolution: int
    samples: int
    rng: Tensor
    made_with: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Texture:
    """Texture latent (denormalised, float32 [N, C]), row for row on the coords of its shape."""

    feats: Tensor
    made_with: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mesh:
    """Triangles.

    Attributes:
        vertices: float32 [V, 3] in object space.
        faces: int32 [F, 3].
        cells: int32 [V, 3], the voxel that each vertex stands for, if the mesh comes straight from a dual grid.
    """

    vertices: Tensor
    faces: Tensor
    cells: Tensor | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)


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
    made_with: Mapping[str, Any] = field(default_factory=dict)
