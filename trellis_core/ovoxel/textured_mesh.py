"""Textured triangle mesh -> sparse volume of PBR attributes (docs/method/mesh.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..context import QUIET, RunContext
from ..errors import EmptyResultError
from ..values import PbrVoxels
from .crossings import grid_crossings
from .dual_grid import UNIT_CUBE
from .mipmap import Texture2D

_PAIRS = 1 << 17
_FLAT_UV = 1e-6  # of the uv area: below, a triangle has no direction in the texture
_FAR = 1e6  # length of dP/duv in that case, so that the base level is read

OPAQUE, MASK, BLEND = "OPAQUE", "MASK", "BLEND"


@dataclass(frozen=True)
class Material:
    """glTF metallic-roughness material. Factors multiply the textures, a missing texture counts as 1.

    Textures: base_color, normal and emissive have 3 channels, metallic, roughness and alpha one.
    """

    base_color_factor: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base_color: Texture2D | None = None
    metallic_factor: float = 1.0
    metallic: Texture2D | None = None
    roughness_factor: float = 1.0
    roughness: Texture2D | None = None
    alpha_mode: str = OPAQUE
    alpha_cutoff: float = 0.5
    alpha_factor: float = 1.0
    alpha: Texture2D | None = None
    emissive_factor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emissive: Texture2D | None = None
    normal: Texture2D | None = None
    mip_offset: float = 0.0


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles with what a renderer needs.

    Attributes:
        triangles: float32 [F, 3, 3] corners in object space.
        normals: float32 [F, 3, 3] corner normals.
        uvs: float32 [F, 3, 2] corner texture coordinates, v up.
        material_ids: int64 [F] into `materials`.
        materials: the materials.
        colors: float32 [F, 3, 3] colours of the corners, which multiply the base colour; None is white.
    """

    triangles: Tensor
    normals: Tensor
    uvs: Tensor
    material_ids: Tensor
    materials: tuple[Material, ...]
    colors: Tensor | None = None


@dataclass(frozen=True)
class VolumeAttributes:
    """Attributes of N voxels in lexicographic order.

    Attributes:
        coords: int32 [N, 3].
        base_color: float32 [N, 3], in the encoding of the texture (sRGB).
        metallic, roughness, alpha: float32 [N].
        emissive: float32 [N, 3].
        normal: float32 [N, 3], not of unit length where triangles meet.
    """

    coords: Tensor
    base_color: Tensor
    metallic: Tensor
    roughness: Tensor
    alpha: Tensor
    emissive: Tensor
    normal: Tensor

    def to_uint8(self) -> VolumeAttributes:
        """The 8-bit form that is stored: 255 times the value, truncated; normals moved to 0..1 first."""
        names = ("base_color", "metallic", "roughness", "alpha", "emissive", "normal")
        values = replace(self, normal=self.normal * 0.5 + 0.5)
        return replace(self, **{name: (getattr(values, name) * 255).clamp(0, 255).to(torch.uint8) for name in names})

    def to_voxels(self, resolution: int) -> PbrVoxels:
        """The six channels that the texture autoencoder knows, 0..1."""
        scalars = torch.stack([self.metallic, self.roughness, self.alpha], 1)
        return PbrVoxels(self.coords, torch.cat([self.base_color, scalars], 1), resolution)


_CHANNELS = (3, 1, 1, 1, 3, 3)


def textured_mesh_to_attributes(
    mesh: TexturedMesh,
    grid_size: int,
    *,
    aabb: tuple[tuple[float, ...], tuple[float, ...]] = UNIT_CUBE,
    ctx: RunContext = QUIET,
) -> VolumeAttributes:
    """Voxelise a textured surface: the voxels of `mesh_to_dual_grid`, each with the mean over the triangles that touch it.

    A triangle contributes what its plane has below the voxel's centre, weighted by one minus the signed distance of the two
    in object units: practically 1, and as the reference does it.

    Raises:
        EmptyResultError: the surface crosses no grid line.
    """
    low, high = torch.tensor(aabb, dtype=torch.float32)
    size = (high - low) / grid_size
    triangles = mesh.triangles.float() - low
    triangle, key = _touching_pairs(triangles, size, grid_size, ctx.part(0.0, 0.5, "Finding voxels"))
    voxels, row = torch.unique(key, return_inverse=True)
    coords = torch.stack([voxels // grid_size**2, voxels // grid_size % grid_size, voxels % grid_size], 1)
    total = torch.zeros(len(voxels), sum(_CHANNELS) + 1, dtype=torch.float64)
    colors = None if mesh.colors is None else mesh.colors.double()
    surface = _Surface(triangles.double(), mesh.normals.double(), mesh.uvs.double(), colors, float(size.max()))
    material = mesh.material_ids[triangle]
    for number, of_material in enumerate(mesh.materials):
        own = (material == number).nonzero()[:, 0]
        for pairs in own.split(_PAIRS) if len(own) else ():  # a material may be on no triangle that touches a voxel
            ctx.report(0.5 + 0.5 * float(pairs[0]) / len(triangle), "Reading textures")
            values, weight = _shade(surface, of_material, triangle[pairs], (coords[row[pairs]] + 0.5) * size.double())
            total.index_add_(0, row[pairs], torch.cat([values * weight, weight], 1))
    mean = (total[:, :-1] / total[:, -1:]).float().split(_CHANNELS, dim=1)
    columns = [column[:, 0] if channels == 1 else column for column, channels in zip(mean, _CHANNELS, strict=True)]
    return VolumeAttributes(coords.int(), *columns)


def _touching_pairs(triangles: Tensor, size: Tensor, grid_size: int, ctx: RunContext) -> tuple[Tensor, Tensor]:
    """Each triangle with each voxel that one of its crossings touches, once: triangle and linear voxel number int64 [P]."""
    stride = torch.tensor([grid_size * grid_size, grid_size, 1])
    pairs = []
    for batch in grid_crossings(triangles, size, grid_size, ctx):
        a, b = stride[(batch.axis + 1) % 3], stride[(batch.axis + 2) % 3]
        touched = (batch.voxel * stride).sum(1)[:, None] + torch.stack([torch.zeros_like(a), a, b, a + b], 1)
        pairs.append(torch.unique(batch.triangle[:, None] * grid_size**3 + touched))
    if not sum(map(len, pairs)):
        raise EmptyResultError("The mesh crosses no line of the voxel grid: it is empty, too small, or outside the box.")
    pair = torch.unique(torch.cat(pairs))
    return pair // grid_size**3, pair % grid_size**3


@dataclass(frozen=True)
class _Surface:
    """Geometry in grid units, float64, and the voxel size against which texture detail is measured."""

    triangles: Tensor
    normals: Tensor
    uvs: Tensor
    colors: Tensor | None
    voxel_size: float


def _shade(surface: _Surface, material: Material, triangle: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Attributes [P, 12] and weight [P, 1] of triangles [P] seen from voxel centres [P, 3]."""
    v0, v1, v2 = surface.triangles[triangle].unbind(1)
    e1, e2, arm = v1 - v0, v2 - v0, centre - v0
    cross = torch.linalg.cross(e1, e2, dim=1)
    area = cross.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    weight = 1 - (arm * cross).sum(1) / area.sqrt()
    v = (torch.linalg.cross(arm, e2, dim=1) * cross).sum(1) / area
    w = (torch.linalg.cross(e1, arm, dim=1) * cross).sum(1) / area
    mix = torch.stack([1 - v - w, v, w], 1)[:, :, None]
    uv, normal = (mix * surface.uvs[triangle]).sum(1), (mix * surface.normals[triangle]).sum(1)

    along_u, along_v, turned = _tangents(e1, e2, surface.uvs[triangle])
    length_u, length_v = (torch.where(turned, along.norm(dim=1), _FAR) for along in (along_u, along_v))
    footprint = surface.voxel_size / (length_u * length_v).sqrt() * 2**material.mip_offset

    def read(texture: Texture2D | None, channels: int) -> Tensor:
        return uv.new_ones(len(uv), channels) if texture is None else texture.sample(uv, footprint)

    if material.normal is not None:
        tilt = read(material.normal, 3) * 2 - 1
        unit = torch.nn.functional.normalize
        normal = unit(tilt[:, :1] * unit(along_u) + tilt[:, 1:2] * unit(along_v) + tilt[:, 2:] * normal)
    alpha = read(material.alpha, 1) * material.alpha_factor
    if material.alpha_mode == OPAQUE:
        alpha = torch.ones_like(alpha)
    elif material.alpha_mode == MASK:
        alpha = (alpha >= material.alpha_cutoff).double()
    painted = 1.0 if surface.colors is None else (mix * surface.colors[triangle]).sum(1).clamp(0, 1)
    columns = [
        read(material.base_color, 3) * uv.new_tensor(material.base_color_factor) * painted,
        read(material.metallic, 1) * material.metallic_factor,
        read(material.roughness, 1) * material.roughness_factor,
        alpha,
        read(material.emissive, 3) * uv.new_tensor(material.emissive_factor),
        normal,
    ]
    return torch.cat(columns, 1), weight[:, None]


def _tangents(e1: Tensor, e2: Tensor, uvs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dP/du and dP/dv [P, 3] of triangles with edges e1, e2, and where they exist, bool [P]."""
    d1, d2 = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    det = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    exists = det.abs() >= _FLAT_UV
    safe = torch.where(exists, det, 1.0)[:, None]
    return (e1 * d2[:, 1:] - e2 * d1[:, 1:]) / safe, (e2 * d1[:, :1] - e1 * d2[:, :1]) / safe, exists
