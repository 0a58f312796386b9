"""Pictures onto the texture of a mesh.

A texel takes from a picture what its camera sees there. Coarse colours stay the model's own, because pictures are lit and
base colours are not; fine ones come from the picture. What no picture sees keeps its colours, and weights that fade towards
outlines, folds and grazing angles leave no seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..context import QUIET, RunContext
from ..texturing.fill import GapFiller
from ..texturing.raster import Interpolator, Texels, rasterise
from .camera import PictureCamera, Seen, look
from .images import centres, distance_inside, masked_blur, resized, sample
from .register import register
from .search import Match, Model, find_camera

Array = np.ndarray
_SIDE = 768  # pixels of a picture that is projected
CONFIDENT = 0.5
"""Confidence below which a picture is not projected."""
_GRAZING = 0.12  # cosine between normal and view from which a texel begins to take from a picture
_FADE = 0.008  # sides of the picture over which the weight rises from an outline or fold
_DEPTH = 0.01  # nearness by which a texel may lie behind what is seen there, in its own nearness
_BAND = 1.5  # voxels: details finer than this come from the picture


@dataclass(frozen=True)
class View:
    """A picture of an object: float32 [S, S, 4] in 0..1, straight alpha, and what is known of its direction in degrees."""

    picture: Array
    azimuth: float | None = None
    elevation: float | None = None


@dataclass(frozen=True)
class Projected:
    """A texture with details of pictures.

    Attributes:
        base_color: uint8 [S, S, 4].
        matches: for each picture the camera and how well it fits.
        used: whether each picture was projected.
        share: of the texels that took something from a picture.
    """

    base_color: Array
    matches: tuple[Match, ...]
    used: tuple[bool, ...]
    share: float


def project_pictures(
    vertices: Array,
    faces: Array,
    normals: Array,
    uvs: Array,
    base_color: Array,
    views: Sequence[View],
    *,
    voxel: float,
    detail: float = 1.0,
    raw: bool = False,
    matches: Sequence[Match] = (),
    ctx: RunContext = QUIET,
) -> Projected:
    """Bring the pictures' details onto the texture.

    Args:
        vertices, normals: float32 [V, 3]. faces: int32 [F, 3]. uvs: float32 [V, 2] in 0..1, v = 0 is the first row.
        base_color: uint8 [S, S, 4].
        voxel: size in object space of what the model's own colours can show.
        detail: 0..1, how much is taken from the pictures.
        raw: take the pictures' colours as they are, light and all.
        matches: the pictures' cameras, if they were found before on a finer or coarser mesh of the same object.
        ctx: told the progress.
    """
    size = len(base_color)
    model = Model(vertices.astype(np.float64), faces.astype(np.int64), _vertex_colors(base_color, uvs))
    texels, point, normal = _texels(vertices, faces, normals, uvs, size)
    own = base_color.reshape(-1, 4)[texels, :3].astype(np.float32) / 255
    total, weights = np.zeros_like(own), np.zeros(len(own), np.float32)
    known, matches, used = matches, [], []
    for number, view in enumerate(views):
        part = ctx.part(number / len(views), (number + 1) / len(views))
        picture = _square(view.picture)
        search = part.part(0.0, 0.5)
        match = known[number] if known else find_camera(model, picture, view.azimuth, view.elevation, search)
        matches.append(match)
        used.append(match.confidence >= CONFIDENT)
        if used[-1]:
            color, weight = _project(
                match.camera, model, base_color, uvs, picture, point, normal, own, voxel, raw, part.part(0.5, 1)
            )
            total += color * weight[:, None]
            weights += weight
    if not any(used):
        return Projected(base_color, tuple(matches), tuple(used), 0.0)
    share = np.minimum(weights, 1) * detail
    found = total / np.maximum(weights, 1e-6)[:, None]
    result = own + share[:, None] * (found - own)
    return Projected(_filled(base_color, texels, result), tuple(matches), tuple(used), float((share > 0.02).mean()))


def _project(
    camera: PictureCamera,
    model: Model,
    base_color: Array,
    uvs: Array,
    picture: Array,
    point: Array,
    normal: Array,
    own: Array,
    voxel: float,
    raw: bool,
    ctx: RunContext,
) -> tuple[Array, Array]:
    """Colours float32 [T, 3] that texels take from a picture, and weights float32 [T] 0..1."""
    size = len(picture)
    seen = look(camera, model.vertices, model.faces, size)
    ctx.report(0.2)
    image = np.zeros((size * size, 4), np.float32)
    image[seen.pixel, :3] = _textured(seen, model, base_color, uvs)
    image[seen.pixel, 3] = 1
    image = image.reshape(size, size, 4)
    field = register(image, picture, _BAND * voxel * camera.scale)
    ctx.report(0.5)
    moved = (centres(size) + field).reshape(-1, 2)
    shown = sample(picture, moved).reshape(size, size, 4).astype(np.float32)
    both = np.minimum(image[..., 3], shown[..., 3] > 0.9).astype(np.float32)
    if raw:
        fresh = shown[..., :3]
    else:
        sigma = _BAND * voxel * camera.scale * size
        fine = shown[..., :3] - masked_blur(shown[..., :3], both, sigma)
        fresh = masked_blur(image[..., :3], both, sigma) + fine
    safe = _smooth(_edge_distance(seen, both) / (_FADE * size)) * both
    ctx.report(0.7)
    place, near = camera.project(point.astype(np.float64))
    place = place * size
    weight = sample(safe[..., None], place)[:, 0]
    depth = seen.near.reshape(size, size)
    column, row = (np.floor(place[:, k]).astype(int).clip(0, size - 1) for k in (0, 1))
    weight *= (near > depth[row, column] * (1 - _DEPTH)) & (depth[row, column] > 0)
    cosine = np.einsum("nk,nk->n", normal, camera.towards(point.astype(np.float64)))
    weight *= _smooth((cosine - _GRAZING) / 0.35)
    ctx.report(1.0)
    return sample(fresh, place).clip(0, 1).astype(np.float32), weight.astype(np.float32)


def _edge_distance(seen: Seen, both: Array) -> Array:
    """Pixels to the nearest outline or fold, where what is seen jumps in depth."""
    depth = seen.near.reshape(seen.size, seen.size)
    jump = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(depth, axis=axis)) > 0.03 * depth.max()
        jump |= np.insert(step, 0, False, axis=axis) | np.insert(step, step.shape[axis], False, axis=axis)
    return distance_inside((both > 0.5) & ~jump)


def _smooth(value: Array) -> Array:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _texels(vertices: Array, faces: Array, normals: Array, uvs: Array, size: int) -> tuple[Array, Array, Array]:
    """The covered texels int64 [T], and the points and unit normals float32 [T, 3] that they stand for."""
    corners = torch.from_numpy(uvs[faces].astype(np.float32)) * size
    values = torch.from_numpy(np.concatenate([vertices[faces], normals[faces]], axis=2).astype(np.float32))
    at = Interpolator(corners, values)
    parts = list(rasterise(corners, size))
    texels = Texels(torch.cat([p.number for p in parts]), torch.cat([p.face for p in parts]))
    found = at(texels, size).numpy()
    normal = found[:, 3:] / np.linalg.norm(found[:, 3:], axis=1, keepdims=True).clip(1e-9)
    return texels.number.numpy(), found[:, :3], normal


def _textured(seen: Seen, model: Model, base_color: Array, uvs: Array) -> Array:
    """The texture's colours [N, 3] at what is seen."""
    place = seen.blend(uvs.astype(np.float64), model.faces) * len(base_color)
    return sample(base_color[..., :3].astype(np.float32) / 255, place)


def _vertex_colors(base_color: Array, uvs: Array) -> Array:
    row, column = ((uvs[:, k] * len(base_color)).astype(int).clip(0, len(base_color) - 1) for k in (1, 0))
    return base_color[row, column, :3] / 255.0


def _square(picture: Array) -> Array:
    """At most `_SIDE` pixels a side."""
    return picture if len(picture) <= _SIDE else resized(picture, _SIDE)


def _filled(base_color: Array, texels: Array, result: Array) -> Array:
    """The texture with other colours at its covered texels, continued beyond the charts."""
    size = len(base_color)
    picture = np.zeros((size * size, 4), np.uint8)
    picture[texels, :3] = np.rint(result.clip(0, 1) * 255)
    picture[texels, 3] = base_color.reshape(-1, 4)[texels, 3]
    covered = np.zeros(size * size, bool)
    covered[texels] = True
    fill = GapFiller(torch.from_numpy(covered.reshape(size, size)))
    return fill(torch.from_numpy(picture.reshape(size, size, 4))).numpy()
