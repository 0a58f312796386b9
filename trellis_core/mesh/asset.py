"""From a decoded mesh and its PBR voxels to a finished, textured asset: our default way (spec F 1).

(remesh) - clean - decimate - unwrap - bake - write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EmptyResultError, InputError
from ..run import QUIET, RunContext
from ..values import Mesh, PbrVoxels
from .bake import ALPHA_MODES, bake
from .charts import ChartOptions
from .clean import check_mesh, clean, tidy
from .decimate import decimate
from .glb import glb_bytes, write_whole
from .images import MIME_TYPES
from .normals import chart_normals
from .remesh import solid_remesh
from .report import AssetReport, surface_facts
from .topology import Array
from .unwrap import texel_corners, unwrap

if TYPE_CHECKING:
    from ..settings import GenerationSettings

PADDING = 2
"""Texels between charts, for every 1024 of the texture's side from 2048 on one more."""
GAP_PER_BAND = 2.0
"""Width in voxels of the openings that remeshing closes, per unit of the setting `remesh_band`."""


@dataclass(frozen=True)
class Asset:
    """A textured mesh, ready to be written, drawn or edited. Tensors on the CPU, object space, z up.

    Attributes:
        vertices: float32 [V, 3]. normals: float32 [V, 3] unit. uvs: float32 [V, 2], v = 0 is the first image row.
        faces: int32 [F, 3], wound outward.
        base_color: uint8 [S, S, 4], sRGB and alpha.
        metallic_roughness: uint8 [S, S, 3]: unused, roughness, metallic, as glTF packs them.
        alpha_mode: OPAQUE, MASK or BLEND.
        double_sided: whether back faces are to be drawn.
        glb: the finished file.
        report: facts about all this.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    uvs: Tensor
    base_color: Tensor
    metallic_roughness: Tensor
    alpha_mode: str
    double_sided: bool
    glb: bytes
    report: AssetReport

    def to_glb_bytes(self) -> bytes:
        """The asset as a binary glTF 2.0 file; equal assets give equal bytes."""
        return self.glb

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the GLB, completely or not at all.

        Raises:
            InputError: the name does not end in .glb, or the file cannot be written there.
        """
        if os.path.splitext(path)[1].lower() != ".glb":
            raise InputError(f"Assets are written as .glb files: {os.fspath(path)!r} must end in .glb.")
        write_whole(path, self.glb)


def make_asset(
    mesh: Mesh,
    voxels: PbrVoxels,
    settings: GenerationSettings,
    ctx: RunContext = QUIET,
    *,
    alpha_mode: str | None = None,
    image_format: str = "png",
    extras: Mapping[str, Any] | None = None,
    refined: bool = False,
) -> Asset:
    """Clean, decimate, unwrap and bake.

    Args:
        mesh: any triangles, as decoded: winding, duplicates and holes do not matter.
        voxels: what to paint it with.
        settings: `decimation_target` (vertices), `texture_size`, `uv_unwrap_*`, `remesh` (wrap everything in one outer wall,
            see `solid_remesh`) and `remesh_band` are used; `remesh_project` means nothing to that method.
        ctx: told the progress; a cancel takes effect within a second.
        alpha_mode: OPAQUE, MASK or BLEND; None decides from the voxels.
        image_format: png, jpeg or webp.
        extras: written into the file's `asset.extras`.
        refined: the mesh comes from `refine_mesh`: unwrap and bake it as it is.

    Raises:
        InputError: malformed mesh or voxels, an unknown mode or format, an atlas too small for the charts.
        EmptyResultError: the mesh has no surface, or there is no voxel.
    """
    if alpha_mode not in (None, *ALPHA_MODES):
        raise InputError(f"The alpha mode can be {', '.join(ALPHA_MODES)} or None, not {alpha_mode!r}.")
    if image_format not in MIME_TYPES:
        raise InputError(f"Textures can be stored as {', '.join(MIME_TYPES)}, not as {image_format!r}.")
    voxels = _check_voxels(voxels)
    vertices, faces = check_mesh(*_arrays(mesh))
    clock = _Clock(ctx)

    if not refined:
        vertices, faces = _refine(vertices, faces, voxels.resolution, settings, clock)
    size = int(settings.texture_size)
    with clock.step("unwrap", 0.45, 0.65) as part:
        options = ChartOptions(
            settings.uv_unwrap_angle_threshold_deg,
            settings.uv_unwrap_refine_iterations,
            settings.uv_unwrap_global_iterations,
            settings.uv_unwrap_smooth_strength,
        )
        flat = unwrap(vertices, faces, size, options, max(PADDING, size // 1024), part)
        normals = chart_normals(vertices, faces, flat.faces, flat.source)
    with clock.step("bake", 0.65, 0.9) as part:
        corners, points = texel_corners(flat.uvs, flat.faces, size), torch.from_numpy(vertices[faces])
        baked = bake(corners, points, flat.texels, voxels, size, alpha_mode, part)
    with clock.step("write", 0.9, 1.0) as part:
        facts = surface_facts(vertices, faces)
        double_sided = not facts["watertight"] or baked.alpha_mode != "OPAQUE"
        part.report(0.1)
        arrays = vertices[flat.source], flat.faces, normals, flat.uvs
        images = baked.base_color.numpy(), baked.metallic_roughness.numpy()
        glb = glb_bytes(
            *arrays,
            *images,
            alpha_mode=baked.alpha_mode,
            double_sided=double_sided,
            image_format=image_format,
            extras=extras,
        )
    covered = len(flat.texels.number)
    report = AssetReport(
        **facts,
        charts=len(flat.axis),
        exported_vertices=len(flat.source),
        texture_size=size,
        atlas_use=(covered - flat.overlap) / size**2,
        overlap=flat.overlap / max(covered, 1),
        texels_per_face=float(baked.texels_of_face.median()),
        alpha_mode=baked.alpha_mode,
        see_through=baked.see_through,
        file_bytes=len(glb),
        seconds=clock.seconds,
    )
    ctx.report(1.0)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return Asset(*tensors, baked.base_color, baked.metallic_roughness, baked.alpha_mode, double_sided, glb, report)


def refine_mesh(mesh: Mesh, settings: GenerationSettings, resolution: int, ctx: RunContext = QUIET) -> Mesh:
    """The first half of `make_asset`: clean and decimate.

    Args:
        mesh: as decoded.
        settings: `decimation_target` (vertices), `remesh` and `remesh_band` are used.
        resolution: voxels per axis of the grid it was decoded from; sets what counts as small.

    Raises:
        InputError: malformed mesh. EmptyResultError: it has no surface.
    """
    vertices, faces = check_mesh(*_arrays(mesh))
    whole = ctx.part(0.0, 1 / 0.45)  # these steps are the first 45 % of making an asset
    vertices, faces = _refine(vertices, faces, resolution, settings, _Clock(whole))
    ctx.report(1.0)
    return Mesh(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (vertices, faces)))


def _refine(
    vertices: Array, faces: Array, resolution: int, settings: GenerationSettings, clock: _Clock
) -> tuple[Array, Array]:
    if settings.remesh:
        with clock.step("remesh", 0.0, 0.2) as part:
            gaps = GAP_PER_BAND * settings.remesh_band
            vertices, faces = _arrays(solid_remesh(_mesh(vertices, faces), resolution, part, gaps))
    with clock.step("clean", 0.2 if settings.remesh else 0.0, 0.3) as part:
        vertices, faces = clean(vertices, faces, 1 / resolution, part)
    with clock.step("decimate", 0.3, 0.45) as part:
        before = len(faces)
        vertices, faces = decimate(vertices, faces, settings.decimation_target, part)
        return tidy(vertices, faces) if len(faces) < before else (vertices, faces)


def _arrays(mesh: Mesh) -> tuple[Array, Array]:
    return mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy()


def _mesh(vertices: Array, faces: Array) -> Mesh:
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))


class _Clock:
    """Names the steps of a run, gives each its share of the progress, and takes their times."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx = ctx
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, start: float, stop: float) -> Iterator[RunContext]:
        part = self.ctx.part(start, stop, name)
        part.report(0.0)
        began = time.perf_counter()
        yield part
        self.seconds[name] = round(time.perf_counter() - began, 3)


def _check_voxels(voxels: PbrVoxels) -> PbrVoxels:
    coords, attrs = voxels.coords.cpu(), voxels.attrs.cpu().float()
    if coords.ndim != 2 or coords.shape[1] != 3 or attrs.shape != (len(coords), 6):
        raise InputError(f"Voxels need coords [N, 3] and attrs [N, 6], not {tuple(coords.shape)} and {tuple(attrs.shape)}.")
    known = attrs.isfinite().all(1) & (coords >= 0).all(1) & (coords < voxels.resolution).all(1)
    if not known.any():
        raise EmptyResultError("There is no voxel to take colours from.")
    return PbrVoxels(coords[known], attrs[known], voxels.resolution)
