"""The reference's way from decoded mesh and PBR voxels to a textured mesh (docs/method/mesh.md), quirks included.

Holes are capped whatever their winding, the texture is truncated to 8 bits and inpainted by fast marching, alpha is
stored but the material is opaque. Only the rasteriser differs: it takes texel centres, so texels on chart borders may
differ from the original's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..context import QUIET, RunContext
from ..errors import TrellisError
from ..mesh.ragged import ragged
from ..mesh.topology import Array
from ..ovoxel.attributes import sample_attributes
from ..values import Mesh, PbrVoxels
from .charts import cluster, unwrap
from .cleanup import (
    fill_holes,
    remove_degenerate_faces,
    remove_duplicate_faces,
    remove_small_components,
    repair_non_manifold_edges,
    unify_face_orientations,
    vertex_normals,
)
from .distance import ReferenceIndex
from .remesh import Grid, narrow_band
from .simplify import simplify

MAX_HOLE_PERIMETER = 0.03
MIN_COMPONENT_AREA = 1e-5
_PAIRS = 1 << 21


@dataclass(frozen=True)
class ReferenceSettings:
    """The original's export parameters; `decimation_target` counts faces, `remesh_band` voxels."""

    decimation_target: int = 1_000_000
    texture_size: int = 2048
    remesh: bool = True
    remesh_band: float = 1.0
    remesh_project: float = 0.0


@dataclass(frozen=True)
class ReferenceAsset:
    """A textured mesh as the original hands it to its GLB writer, in glTF axes (y up).

    Attributes:
        vertices, normals: float32 [V, 3]. faces: int32 [F, 3].
        uv: float32 [V, 2] as stored in glTF: v = 0 is image row 0.
        base_color: uint8 [S, S, 4], RGB and alpha. metallic_roughness: uint8 [S, S, 3] = (0, roughness, metallic).
        double_sided: of the material, whose alpha mode is always OPAQUE.
    """

    vertices: Array
    normals: Array
    faces: Array
    uv: Array
    base_color: Array
    metallic_roughness: Array
    double_sided: bool


def reference_asset(mesh: Mesh, voxels: PbrVoxels, settings: ReferenceSettings, ctx: RunContext = QUIET) -> ReferenceAsset:
    """Clean or remesh, simplify, unwrap and bake as the original does.

    Raises:
        TrellisError: OpenCV or xatlas is missing.
    """
    inpaint = _inpainter()
    original = fill_holes(mesh.vertices.numpy(), mesh.faces.numpy(), MAX_HOLE_PERIMETER)
    index = ReferenceIndex(*original)
    if settings.remesh:
        band, resolution = settings.remesh_band, voxels.resolution
        grid = Grid(resolution, (resolution + 3 * band) / resolution, np.zeros(3))
        found = narrow_band(index, grid, band, settings.remesh_project, ctx.part(0, 0.4, "remesh"))
        vertices, faces = simplify(found.vertices, found.faces, settings.decimation_target, ctx.part(0.4, 0.6, "simplify"))
    else:
        vertices, faces = _clean_and_simplify(*original, settings.decimation_target, ctx.part(0, 0.6, "simplify"))
    vertices, faces = remove_degenerate_faces(vertices, faces)
    normals = vertex_normals(vertices, faces)
    ctx.report(0.6, "unwrap")
    vertices, faces, uv, source = unwrap(vertices, faces, cluster(vertices, faces, ctx=ctx), ctx)
    texture = _bake(vertices, faces, uv, index, voxels, settings.texture_size, inpaint, ctx.part(0.8, 1, "bake"))
    return ReferenceAsset(_y_up(vertices), _y_up(normals[source]), faces, uv, *_pack(texture), not settings.remesh)


def _clean_and_simplify(vertices: Array, faces: Array, target: int, ctx: RunContext) -> tuple[Array, Array]:
    mesh = vertices, faces
    for goal, part in ((3 * target, ctx.part(0, 0.6, "simplify")), (target, ctx.part(0.6, 1, "simplify"))):
        mesh = simplify(*mesh, goal, part)
        mesh = remove_duplicate_faces(*mesh)
        mesh = repair_non_manifold_edges(*mesh)
        mesh = remove_small_components(*mesh, MIN_COMPONENT_AREA)
        mesh = fill_holes(*mesh, MAX_HOLE_PERIMETER)
    return unify_face_orientations(*mesh)


def _bake(
    vertices: Array,
    faces: Array,
    uv: Array,
    index: ReferenceIndex,
    voxels: PbrVoxels,
    size: int,
    inpaint: Callable[[Array, Array, int], Array],
    ctx: RunContext,
) -> Array:
    """Attributes at the original surface for every texel: uint8 [size, size, 6], truncated, gaps inpainted."""
    face, weights = rasterise(uv, faces, size, ctx)
    covered = face >= 0
    position = (weights[covered][:, :, None] * vertices[faces[face[covered]]]).sum(axis=1)
    ctx.report(0.2)
    nearest = index.closest(position.astype(np.float32), ctx.part(0.2, 0.8, "bake"))
    attrs = np.zeros((size, size, 6), np.float32)
    attrs[covered] = sample_attributes(voxels, torch.from_numpy(nearest), nearest_if_empty=False).numpy()
    texture = np.clip(attrs * 255, 0, 255).astype(np.uint8)
    gaps = (~covered).astype(np.uint8)
    layers = [inpaint(texture[..., :3], gaps, 3)]
    layers += [inpaint(texture[..., k], gaps, 1)[..., None] for k in (3, 4, 5)]
    return np.concatenate(layers, axis=2)


def rasterise(uv: Array, faces: Array, size: int, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Which face covers each texel centre of a size^2 atlas; of several the last.

    Returns:
        face int64 [size, size], -1 for none, row 0 at v = 0; weights float32 [size, size, 3] of the face's corners.
    """
    corner = uv[faces].astype(np.float32) * np.float32(size) - np.float32(0.5)  # texel centres at integers
    low = np.ceil(corner.min(axis=1)).astype(np.int64).clip(0, size)
    high = np.floor(corner.max(axis=1)).astype(np.int64).clip(-1, size - 1)
    extent = (high - low + 1).clip(min=0)
    area = extent.prod(axis=1)
    face = np.full(size * size, -1)
    weights = np.zeros((size * size, 3), np.float32)
    chunk = np.cumsum(area) // _PAIRS
    for rows in np.split(np.arange(len(faces)), np.flatnonzero(np.diff(chunk)) + 1):
        ctx.check()
        row, within = ragged(area[rows])
        owner = rows[row]
        texel = low[owner] + np.stack([within % extent[owner, 0], within // extent[owner, 0]], axis=1)
        weight = _barycentric(texel.astype(np.float32), corner[owner])
        inside = (weight >= 0).all(axis=1)
        at = texel[inside, 1] * size + texel[inside, 0]
        face[at], weights[at] = owner[inside], weight[inside]
    return face.reshape(size, size), weights.reshape(size, size, 3)


def _barycentric(point: Array, corner: Array) -> Array:
    """Weights float32 [P, 3] of triangle corners [P, 3, 2]; -1 for degenerate triangles."""
    a, b, c = corner[:, 0] - point, corner[:, 1] - point, corner[:, 2] - point
    w0 = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    w1 = c[:, 0] * a[:, 1] - c[:, 1] * a[:, 0]
    w2 = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    total = w0 + w1 + w2
    weight = np.stack([w0, w1, w2], axis=1)
    return np.divide(weight, total[:, None], out=np.full_like(weight, -1), where=total[:, None] != 0)


def _inpainter() -> Callable[[Array, Array, int], Array]:
    """Fast-marching (TELEA) inpainting of an 8-bit image where the mask is set, from within `radius` texels."""
    try:
        import cv2
    except ImportError as error:
        raise TrellisError("The reference bake needs OpenCV: pip install opencv-python-headless") from error
    return lambda image, mask, radius: cv2.inpaint(np.ascontiguousarray(image), mask, radius, cv2.INPAINT_TELEA)


def _pack(texture: Array) -> tuple[Array, Array]:
    """glTF images from uint8 [S, S, 6]: base colour with alpha, and (0, roughness, metallic)."""
    zero = np.zeros_like(texture[..., :1])
    return texture[..., [0, 1, 2, 5]], np.concatenate([zero, texture[..., [4]], texture[..., [3]]], axis=2)


def _y_up(z_up: Array) -> Array:
    return np.stack([z_up[:, 0], z_up[:, 2], -z_up[:, 1]], axis=1)
