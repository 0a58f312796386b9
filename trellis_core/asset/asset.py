"""From a decoded mesh and its PBR voxels to a finished, textured asset: our default way (docs/method/mesh.md).

(remesh) - clean - decimate - unwrap - bake - write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..context import QUIET, RunContext, obeying
from ..errors import EmptyResultError, InputError
from ..files import write_whole
from ..gltf.glb import Packing, glb_bytes
from ..gltf.placement import Placement
from ..memory.mesh_budget import check_room
from ..mesh.clean import check_mesh, clean, tidy
from ..mesh.decimate import TOLERANCE, decimate
from ..mesh.own_size import decoded_resolution, fitted, judged_resolution
from ..mesh.remesh import narrow_band_remesh, solid_remesh
from ..mesh.topology import Array
from ..projection.project import View
from ..settings import FILE_FIELDS, MESH_GRID, SURFACE_FIELDS, TEXTURE_FIELDS
from ..threads import threads
from ..values import Mesh, PbrVoxels
from .report import EXTRAS, AssetReport, stretch
from .size_limit import Fitted, fit
from .textured_surface import Detail, Pictures, Step, TexturedSurface, texture_surface

if TYPE_CHECKING:
    from ..settings import GenerationSettings

_SHARE = 4
"""How many times fewer vertices each level of detail has; its textures are half as large."""
_LEAST_VERTICES, _LEAST_TEXELS = 100, 256
"""What levels of detail do not go below."""


@dataclass(frozen=True)
class Asset:
    """A textured mesh, ready to be written, drawn or edited. Tensors on the CPU, object space, z up.

    Attributes:
        vertices: float32 [V, 3]. normals: float32 [V, 3] unit. uvs: float32 [V, 2], v = 0 is the first image row.
        faces: int32 [F, 3], wound outward.
        base_color: uint8 [S, S, 4], sRGB and alpha.
        metallic_roughness: uint8 [S, S, 3]: ambient occlusion (255 without), roughness, metallic, as glTF packs them.
        normal_map: uint8 [S, S, 3] in the space of `tangents` float32 [V, 4], or None.
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
    tangents: Tensor | None = None
    normal_map: Tensor | None = None

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
    extras: Mapping[str, Any] | None = None,
    refined: bool = False,
    detail: Mesh | None = None,
    pictures: Sequence[View] = (),
) -> Asset:
    """Clean, decimate, unwrap and bake.

    Args:
        mesh: any triangles, as decoded: winding, duplicates and holes do not matter.
        voxels: what to paint it with.
        settings: `decimation_target` (vertices) or `faces`, `texture_size`, `uv_unwrap_*`, `remesh*` and the `FINISH_FIELDS`.
        ctx: told the progress; a cancel takes effect within a second.
        extras: written into the file's `asset.extras`, beside what everything was made with (see `report.EXTRAS`).
        refined: the mesh comes from `refine_mesh`: unwrap and bake it as it is.
        detail: what a refined mesh was refined from: normal map and occlusion are baked from it.
        pictures: what it was made of; `picture_detail` says how much of their detail goes onto the texture.

    Raises:
        InputError: malformed mesh or voxels, an atlas too small for the charts, a file that cannot be made small enough.
        EmptyResultError: the mesh has no surface, or there is no voxel.
        OutOfBudgetError: the memory that a step would take is not there.
    """
    looked_at = (*(() if refined else SURFACE_FIELDS), *TEXTURE_FIELDS, *FILE_FIELDS)
    used = {**voxels.made_with, **mesh.made_with, **_values(settings, looked_at)}
    extras = {**(extras or {}), EXTRAS: used}
    if mesh.cells is None and len(mesh.vertices) == len(voxels.coords):
        mesh = replace(mesh, cells=voxels.coords)  # a decoder's vertices lie in its voxels, row by row
    voxels = _check_voxels(voxels)
    surface = check_mesh(*_arrays(mesh))
    clock = _Clock(ctx)
    if not refined:
        source, surface = _refine(mesh, voxels.resolution, settings, clock)
    elif detail is not None:
        with clock.step("clean", 0.0, 0.3) as part:
            source = clean(*check_mesh(*_arrays(detail)), 1 / voxels.resolution, part)
    else:
        source = surface
    if settings.normal_map or settings.occlusion_map:
        check_room("detail", len(source[1]), int(settings.texture_size) ** 2, ctx)
    deep = Detail(*source, occlusion=settings.occlusion_map)

    shown = Pictures(pictures, settings.picture_detail) if pictures and settings.picture_detail else None

    @cache
    def dress(vertices: int, size: int) -> tuple[TexturedSurface, ...]:
        """The surface with at most so many vertices, and its coarser levels."""
        again = clock.ctx.part(0.45, 0.45)
        levels = [tidy(*decimate(*surface, vertices, again), again)] if vertices < len(surface[0]) else [surface]
        while len(levels) <= settings.lods:
            target = len(levels[-1][0]) // _SHARE
            coarser = tidy(*decimate(*levels[-1], max(target, _LEAST_VERTICES), again), again)
            if len(coarser[1]) > 0.8 * len(levels[-1][1]):
                break
            levels.append(coarser)
        textured = []
        for number, level in enumerate(levels):
            texels = max(size >> number, min(size, _LEAST_TEXELS))
            for name in ("unwrap", "bake"):
                check_room(name, len(level[1]), texels * texels, ctx)
            step = clock.within(0.45 + 0.45 * number / len(levels), 0.45 + 0.45 * (number + 1) / len(levels))
            textured.append(texture_surface(*level, voxels, settings, texels, step, deep, shown))
        return tuple(textured)

    place = Placement.of(surface[0], settings.pivot, settings.size_meters, settings.up_axis)
    packing = Packing(settings.image_format, settings.image_quality, settings.compression, place)
    wanted, size = len(surface[0]), int(settings.texture_size)
    if settings.max_file_mb:
        tried: list[tuple[TexturedSurface, ...]] = []

        def parts(vertices: int, texels: int) -> list[Any]:
            tried.append(dress(vertices, texels))
            return [one.part for one in tried[-1]]

        with obeying(clock.ctx):
            fitted = fit(parts, wanted, size, packing, int(settings.max_file_mb * 1e6), extras, clock.ctx)
        textured = tried[-1]
    else:
        textured = dress(wanted, size)
        with clock.step("write", 0.9, 1.0) as part, obeying(part):
            fitted = Fitted(glb_bytes([one.part for one in textured], packing, extras), packing, "")
    ctx.report(1.0)
    fitted = fitted if shown is None else replace(fitted, note=" ".join(filter(None, (fitted.note, shown.note))))
    return _asset(textured, fitted, clock.seconds, used)


def _asset(
    textured: tuple[TexturedSurface, ...], fitted: Fitted, seconds: Mapping[str, float], used: Mapping[str, Any]
) -> Asset:
    finest, part = textured[0], textured[0].part
    uvs: Any = part.uvs  # a textured surface has them
    stretched: dict[str, Any] = stretch(part.vertices, part.faces, uvs)
    covered = len(finest.flat.texels.number)
    report = AssetReport(
        **finest.facts,
        **stretched,
        charts=len(finest.flat.axis),
        exported_vertices=len(part.vertices),
        texture_size=finest.size,
        atlas_use=(covered - finest.flat.overlap) / finest.size**2,
        overlap=finest.flat.overlap / max(covered, 1),
        texels_per_face=float(finest.baked.texels_of_face.median()),
        alpha_mode=part.alpha_mode,
        see_through=finest.baked.see_through,
        level_faces=tuple(len(level.part.faces) for level in textured),
        file_bytes=len(fitted.data),
        note=fitted.note,
        seconds=seconds,
        made_with=used,
    )

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    return Asset(
        vertices=tensor(part.vertices),
        faces=tensor(part.faces),
        normals=tensor(part.normals),
        uvs=tensor(part.uvs),
        base_color=tensor(part.base_color),
        metallic_roughness=tensor(part.material),
        alpha_mode=part.alpha_mode,
        double_sided=part.double_sided,
        glb=fitted.data,
        report=report,
        tangents=None if part.tangents is None else tensor(part.tangents),
        normal_map=None if part.normal_map is None else tensor(part.normal_map),
    )


def refine_mesh(mesh: Mesh, settings: GenerationSettings, resolution: int, ctx: RunContext = QUIET) -> Mesh:
    """The first half of `make_asset`: clean and decimate.

    Args:
        mesh: as decoded.
        settings: `decimation_target` (vertices) or `faces`, and `remesh*`.
        resolution: voxels per axis of the grid it was decoded from; sets what counts as small.

    Raises:
        InputError: malformed mesh. EmptyResultError: it has no surface.
    """
    whole = ctx.part(0.0, 1 / 0.45)  # these steps are the first 45 % of making an asset
    _, (vertices, faces) = _refine(mesh, resolution, settings, _Clock(whole))
    ctx.report(1.0)
    refined = _mesh(np.ascontiguousarray(vertices), np.ascontiguousarray(faces))
    return replace(refined, made_with={**mesh.made_with, **_values(settings, SURFACE_FIELDS)})


def refine_loaded(mesh: Mesh, settings: GenerationSettings, resolution: int = 0, ctx: RunContext = QUIET) -> Mesh:
    """`refine_mesh` of a mesh from anywhere, of any unit: it keeps its size and place.

    Args:
        resolution: voxels along its longest side, within `MESH_GRID`; 0 takes the grid of a mesh that was decoded
            here, and judges others by their edges.

    Raises:
        InputError: malformed mesh, or a resolution out of range. EmptyResultError: it has no surface.
    """
    low, high = MESH_GRID
    if resolution and not low <= resolution <= high:
        raise InputError(f"The grid can have {low} to {high} voxels along the mesh's longest side, or 0, not {resolution}.")
    if not resolution and (grid := decoded_resolution(mesh)) is not None:
        return refine_mesh(mesh, settings, grid, ctx)
    inside = fitted(mesh)
    return inside.put_back(refine_mesh(inside.mesh, settings, resolution or judged_resolution(inside.mesh), ctx))


def _values(settings: GenerationSettings, names: Sequence[str]) -> dict[str, Any]:
    """Settings as they are used: a number of triangles stands in for one of vertices."""
    return {name: getattr(settings, name) for name in names if name != ("decimation_target" if settings.faces else "faces")}


def _refine(
    mesh: Mesh, resolution: int, settings: GenerationSettings, clock: _Clock
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The clean surface, and the same with as many vertices or faces as wanted."""
    if settings.remesh:
        check_room("remesh", len(mesh.faces), 0, clock.ctx)
        with clock.step("remesh", 0.0, 0.3) as part:
            source = _arrays(remesh(mesh, resolution, settings, part))
    else:
        vertices, faces = check_mesh(*_arrays(mesh))
        check_room("clean", len(faces), 0, clock.ctx)
        with clock.step("clean", 0.0, 0.3) as part:
            source = clean(vertices, faces, 1 / resolution, part)
    if settings.decimation_target < len(source[0]):
        check_room("decimate", len(source[1]), 0, clock.ctx)
    with clock.step("decimate", 0.3, 0.45) as part:
        vertices, faces = _reduced(*source, settings, part.part(0.0, 0.9))
        return source, (tidy(vertices, faces, part.part(0.9, 1.0)) if len(faces) < len(source[1]) else source)


def remesh(mesh: Mesh, resolution: int, settings: GenerationSettings, ctx: RunContext) -> Mesh:
    """The surface that `remesh_method` makes, as a manifold wound outward."""
    band, project = settings.remesh_band, settings.remesh_project
    if settings.remesh_method == "solid":
        return solid_remesh(mesh, resolution, ctx, band=band, project=project)
    found = narrow_band_remesh(mesh, resolution, ctx.part(0.0, 0.8), band, project)
    with obeying(ctx):
        return _mesh(*clean(*_arrays(found), 1 / resolution, ctx.part(0.8, 1.0)))


def _reduced(vertices: Array, faces: Array, settings: GenerationSettings, ctx: RunContext) -> tuple[Array, Array]:
    if not settings.faces:
        return decimate(vertices, faces, settings.decimation_target, ctx)
    if len(faces) <= settings.faces * (1 + TOLERANCE):
        return vertices, faces
    target = settings.faces / 2 + len(vertices) - len(faces) / 2  # Euler: inner edges take a vertex and two faces along
    found = decimate(vertices, faces, max(int(target), 4), ctx.part(0.0, 0.5))
    missed = settings.faces - len(found[1])
    if abs(missed) > TOLERANCE * settings.faces:  # borders were shortened as well
        found = decimate(vertices, faces, max(int(len(found[0]) + missed / 2), 4), ctx.part(0.5, 1.0))
    return found


def _arrays(mesh: Mesh) -> tuple[Array, Array]:
    return mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy()


def _mesh(vertices: Array, faces: Array) -> Mesh:
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))


class _Clock:
    """Names the steps of a run, gives each its share of the progress, and takes their times."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx = replace(ctx, on_progress=ctx.on_progress and self._forward)
        self._report, self._furthest = ctx.on_progress, 0.0
        self.seconds: dict[str, float] = {}

    def _forward(self, fraction: float, name: str) -> None:
        """Steps that are done again, to fit a file, do not take the progress back."""
        self._furthest = max(self._furthest, fraction)
        if self._report is not None:
            self._report(self._furthest, name)

    @contextmanager
    def step(self, name: str, start: float, stop: float) -> Iterator[RunContext]:
        part = self.ctx.part(start, stop, name)
        part.report(0.0)
        began = time.perf_counter()
        with threads(1):  # small steps in turn, of NumPy as much as of PyTorch: more threads would wait more than they work
            yield part
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)

    def within(self, start: float, stop: float) -> Step:
        """Steps whose 0..1 is this part of the whole."""
        return lambda name, low, high: self.step(name, start + (stop - start) * low, start + (stop - start) * high)


def _check_voxels(voxels: PbrVoxels) -> PbrVoxels:
    coords, attrs = voxels.coords.cpu(), voxels.attrs.cpu().float()
    if coords.ndim != 2 or coords.shape[1] != 3 or attrs.shape != (len(coords), 6):
        raise InputError(f"Voxels need coords [N, 3] and attrs [N, 6], not {tuple(coords.shape)} and {tuple(attrs.shape)}.")
    known = attrs.isfinite().all(1) & (coords >= 0).all(1) & (coords < voxels.resolution).all(1)
    if not known.any():
        raise EmptyResultError("There is no voxel to take colours from.")
    return PbrVoxels(coords[known], attrs[known], voxels.resolution)
