"""From a clean surface to one with textures: unwrap, bake, and what the detail before decimation adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..context import RunContext
from ..gltf.glb import Part
from ..mesh.topology import Array
from ..projection.project import CONFIDENT, View, project_pictures
from ..projection.search import Match
from ..texturing.back_projection import BackProjector
from ..texturing.bake import Bake, bake
from ..texturing.charts import ChartOptions
from ..texturing.detail import DetailSurface
from ..texturing.fill import GapFiller
from ..texturing.gpu_raster import rasterise_with_nvdiffrast
from ..texturing.normals import chart_normals
from ..texturing.occlusion import ambient_occlusion
from ..texturing.raster import Interpolator, Texels
from ..texturing.surface import Surface
from ..texturing.tangents import to_tangent_space, vertex_tangents
from ..texturing.unwrap import Unwrap, texel_corners, unwrap
from ..texturing.xatlas_unwrap import unwrap_with_xatlas
from ..values import PbrVoxels
from .report import surface_facts

if TYPE_CHECKING:
    from ..settings import GenerationSettings

PADDING = 2
"""Texels between charts, for every 1024 of the texture's side from 2048 on one more."""

BACK_PROJECTED = 100_000
"""Triangles up to which colours are looked up on the surface before decimation: finer ones lie within 0.05 voxels of it."""

Step = Callable[[str, float, float], AbstractContextManager[RunContext]]
"""Opens a named step that takes a share of the progress, 0..1 to 0..1."""


@dataclass(frozen=True)
class TexturedSurface:
    """A textured surface, and what it was made of.

    Attributes:
        part: mesh and material.
        flat: its UVs.
        baked: its textures.
        facts: fields of the report about the surface.
        size: texels along a side.
    """

    part: Part
    flat: Unwrap
    baked: Bake
    facts: dict[str, Any]
    size: int


class Pictures:
    """Pictures of the object, whose detail goes onto its textures; their cameras are found once, for all of them.

    Attributes:
        found: how each picture was found to fit, once it has been projected.
    """

    def __init__(self, views: Sequence[View], detail: float) -> None:
        self.views, self.detail = views, detail
        self.found: tuple[Match, ...] = ()

    @property
    def note(self) -> str:
        """What a reader of the report should know: pictures whose cameras were not found well enough."""
        left = [n for n, match in enumerate(self.found, 1) if match.confidence < CONFIDENT]
        which = "The picture was" if len(self.found) == 1 else f"Pictures {', '.join(map(str, left))} were"
        return f"{which} not projected onto the texture: the model does not look like it from any side." if left else ""

    def onto(
        self, vertices: Array, faces: Array, normals: Array, uvs: Array, base_color: Tensor, voxel: float, ctx: RunContext
    ) -> Tensor:
        """The base colour uint8 [S, S, 4] with the pictures' detail."""
        done = project_pictures(
            vertices, faces, normals, uvs, base_color.numpy(), self.views,
            voxel=voxel, detail=self.detail, matches=self.found, ctx=ctx,
        )  # fmt: skip
        self.found = done.matches
        return torch.from_numpy(done.base_color)


class Detail:
    """The surface before decimation, prepared once, on first use, for all surfaces that are baked from it.

    Attributes:
        surface: answers where it is.
        openness: float32 [V, 1] ambient occlusion of its vertices, if that was asked for.
    """

    surface: DetailSurface
    openness: Tensor | None = None

    def __init__(self, vertices: Array, faces: Array, *, occlusion: bool) -> None:
        self._source, self._occlusion = (vertices, faces), occlusion
        self._projector: BackProjector | None = None

    def projector(self, faces: Array, resolution: int) -> BackProjector | None:
        """Finds this surface from one with these faces, if that is so much coarser that colours would miss their place."""
        if len(faces) > BACK_PROJECTED or len(faces) >= len(self._source[1]):
            return None
        if self._projector is None:
            self._projector = BackProjector(*self._source, resolution)
        return self._projector

    def prepare(self, ctx: RunContext) -> None:
        """Build what is missing."""
        if hasattr(self, "surface"):
            return
        vertices, faces = self._source
        surface = DetailSurface(vertices, faces)
        if self._occlusion:
            points, corners = torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64))
            self.openness = ambient_occlusion(points, corners, surface.normals, ctx)[:, None]
        self.surface = surface


def texture_surface(
    vertices: Array,
    faces: Array,
    voxels: PbrVoxels,
    settings: GenerationSettings,
    size: int,
    step: Step,
    detail: Detail | None = None,
    pictures: Pictures | None = None,
) -> TexturedSurface:
    """Unwrap a surface, bake the voxels, and the maps of the detail if there is one.

    Args:
        vertices: float32 [V, 3]. faces: int32 [F, 3], consistently wound.
        settings: `unwrap`, `uv_unwrap_*`, `alpha_mode`, `normal_map` and `occlusion_map` are used.
        size: texels along a side.
        detail: the surface before decimation.
        pictures: what is projected onto the texture.

    Raises:
        InputError: an atlas too small for the charts.
    """
    with step("unwrap", 0.0, 0.4) as ctx:
        options = ChartOptions(
            settings.uv_unwrap_angle_threshold_deg,
            settings.uv_unwrap_refine_iterations,
            settings.uv_unwrap_global_iterations,
            settings.uv_unwrap_smooth_strength,
        )
        surface = Surface.of(vertices, faces)
        padding = max(PADDING, size // 1024)
        if settings.unwrap == "xatlas":
            flat = unwrap_with_xatlas(surface, size, padding, ctx)
        else:
            flat = unwrap(surface, size, options, padding, ctx)
        normals = chart_normals(surface, flat.faces, flat.source)
    maps_wanted = settings.normal_map or settings.occlusion_map
    with step("bake", 0.4, 0.7 if detail is not None and maps_wanted else 0.9) as ctx:
        corners, points = texel_corners(flat.uvs, flat.faces, size), torch.from_numpy(vertices[faces])
        mode = None if settings.alpha_mode == "auto" else settings.alpha_mode
        back = detail.projector(faces, voxels.resolution) if detail is not None else None
        baked = _bake(corners, points, flat.texels, voxels, size, mode, settings.rasterizer, ctx, back)
        if pictures is not None:
            mesh = vertices[flat.source], flat.faces, normals, flat.uvs
            baked = replace(baked, base_color=pictures.onto(*mesh, baked.base_color, 1 / voxels.resolution, ctx))
    material = baked.metallic_roughness
    tangents = normal_map = None
    if detail is not None and maps_wanted:
        with step("detail", 0.7, 0.95) as ctx:
            if settings.normal_map:
                tangents = vertex_tangents(vertices[flat.source], flat.faces, normals, flat.uvs)
            maps = _Maps(corners, points, flat, normals, tangents, size)
            detail.prepare(ctx.part(0.0, 0.4))
            normal_map, occlusion = maps.bake(detail, ctx.part(0.4, 1.0))
            if occlusion is not None:
                material = torch.cat([occlusion[..., None], material[..., 1:]], dim=2)
    facts = surface_facts(vertices, faces, surface.found)
    part = Part(
        vertices[flat.source],
        flat.faces,
        normals,
        flat.uvs,
        baked.base_color.numpy(),
        material.numpy(),
        occlusion=settings.occlusion_map and detail is not None,
        tangents=tangents,
        normal_map=None if normal_map is None else normal_map.numpy(),
        alpha_mode=baked.alpha_mode,
        double_sided=not facts["watertight"] or baked.alpha_mode != "OPAQUE",
    )
    return TexturedSurface(part, flat, baked, facts, size)


def _bake(
    corners: Tensor,
    points: Tensor,
    texels: Texels,
    voxels: PbrVoxels,
    size: int,
    mode: str | None,
    rasterizer: str,
    ctx: RunContext,
    back: BackProjector | None,
) -> Bake:
    """`bake` on the run's GPU if it has one with room, else on the CPU, where its results are."""
    if ctx.device.type != "cpu":
        try:
            return _bake_on(ctx.device, corners, points, texels, voxels, size, mode, rasterizer, ctx, back)
        except (torch.cuda.OutOfMemoryError, NotImplementedError):  # some devices lack some operations
            ctx.check()
    return _bake_on(torch.device("cpu"), corners, points, texels, voxels, size, mode, rasterizer, ctx, back)


def _bake_on(
    device: torch.device,
    corners: Tensor,
    points: Tensor,
    texels: Texels,
    voxels: PbrVoxels,
    size: int,
    mode: str | None,
    rasterizer: str,
    ctx: RunContext,
    back: BackProjector | None,
) -> Bake:
    corners, points = corners.to(device), points.to(device)
    if rasterizer == "nvdiffrast":
        texels = rasterise_with_nvdiffrast(corners, size)
    texels = Texels(texels.number.to(device), texels.face.to(device))
    voxels = PbrVoxels(voxels.coords.to(device), voxels.attrs.to(device), voxels.resolution)
    back = back.to(device) if back is not None else None
    baked = bake(corners, points, texels, voxels, size, mode, ctx, back)
    found = (baked.base_color, baked.metallic_roughness, baked.texels_of_face)
    color, material, counts = (tensor.cpu() for tensor in found)
    return replace(baked, base_color=color, metallic_roughness=material, texels_of_face=counts)


class _Maps:
    """Bakes the maps of the detail into an atlas of `size`."""

    def __init__(
        self, corners: Tensor, points: Tensor, flat: Unwrap, normals: Array, tangents: Array | None, size: int
    ) -> None:
        self.size, self.texels = size, flat.texels
        frames = [points, torch.from_numpy(normals[flat.faces])]
        self.handed = None
        if tangents is not None:
            frames.append(torch.from_numpy(tangents[flat.faces, :3]))
            self.handed = torch.from_numpy(tangents[flat.faces[:, 0], 3])
        self.frames = Interpolator(corners, torch.cat(frames, dim=2))

    def bake(self, detail: Detail, ctx: RunContext) -> tuple[Tensor | None, Tensor | None]:
        """Normal map uint8 [S, S, 3] if there are tangents, and openness uint8 [S, S] if the detail knows it."""
        count = len(self.texels.number)
        tilts, openness = torch.zeros(count, 3), torch.ones(count, 1)
        chunk = 1 << 18
        for start in range(0, count, chunk):
            part = ctx.part(0.8 * start / count, 0.8 * min(start + chunk, count) / count)
            some = slice(start, start + chunk)
            frame = self.frames(Texels(self.texels.number[some], self.texels.face[some]), self.size)
            upright = torch.nn.functional.normalize(frame[:, 3:6], dim=1)
            face, weights = detail.surface.nearest(frame[:, :3], upright, part)
            if self.handed is not None:
                found = detail.surface.blend(detail.surface.normals, face, weights)
                found = torch.where((found * upright).sum(1, keepdim=True) > 0, found, upright)
                handed = self.handed[self.texels.face[some]]
                tilts[some] = to_tangent_space(found, frame[:, 3:6], frame[:, 6:9], handed)
            if detail.openness is not None:
                openness[some] = detail.surface.blend(detail.openness, face, weights)
        fill = self._filler()
        ctx.report(0.85)
        normal_map = self._picture(fill, tilts * 0.5 + 0.5) if self.handed is not None else None
        ctx.report(0.95)
        occlusion = self._picture(fill, openness)[..., 0] if detail.openness is not None else None
        return normal_map, occlusion

    def _filler(self) -> GapFiller:
        covered = torch.zeros(self.size * self.size, dtype=torch.bool)
        covered[self.texels.number] = True
        return GapFiller(covered.view(self.size, self.size))

    def _picture(self, fill: GapFiller, values: Tensor) -> Tensor:
        """Values [K, C] in 0..1, C at most 4, as uint8 [S, S, C]."""
        picture = torch.zeros(self.size * self.size, 4, dtype=torch.uint8)
        picture[self.texels.number, : values.shape[1]] = values.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        return fill(picture.view(self.size, self.size, 4))[..., : values.shape[1]].contiguous()
