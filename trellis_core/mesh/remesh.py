"""Remeshing: from a tattered surface to one clean outer wall.

`solid_remesh` is the default. It finds what the surface encloses, gaps closed, and keeps the wall around that: of a
decoder's mesh the very vertices and triangles, of any other mesh a new surface whose vertices lie on the input. Surface that
bounds nothing stays an open sheet; what lies inside the wall is dropped. `narrow_band_remesh` is the published method
(docs/method/mesh.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..context import QUIET, RunContext, obeying
from ..errors import EmptyResultError, InputError
from ..values import Mesh
from .clean import check_mesh, clean, drop_repeated_faces, merge_vertices
from .solid.dual_marching_cubes import (
    Crossed,
    Quads,
    cell_patterns,
    crossed,
    fill_pinches,
    sheet_quads,
    solid_quads,
    split_quads,
    triangles,
    with_edges,
)
from .solid.dual_quads import DualQuads, dual_quads
from .solid.enclosure import MARGIN, Enclosed, Rim, enclose, nodes_inside, of_nodes
from .solid.lattice import Lattice, find_walls
from .solid.ray_parity import has_lids, odd_share, vote_inside
from .solid.relax import even_out, relax
from .solid.wrap import close_small_holes, fitted, lattice_around, rim_of
from .topology import Array, among, compact, face_areas, face_components, graph_components, label_boxes, run_starts

_HOLE_PERIMETER = 8.0  # steps round a hole per step of gap to close
_WIDER, _WIDEST = 1.5, 3.0  # gaps that are tried as well, by the widest that is to be closed
_TORN = 0.04  # share of the surface that may bound nothing before wider gaps are tried
_VOTED = 4_000_000  # lattice nodes up to which rays are cast from all of them
_SCRAP = 150.0  # square steps below which a sheet beside a solid is dropped
_APART = 0.25  # of the way that vertices which share a voxel are drawn apart
_SPECK = 3.0  # steps from corner to corner below which a part is dropped


def solid_remesh(
    mesh: Mesh,
    resolution: int,
    ctx: RunContext = QUIET,
    close_gaps: float = 2.0,
    *,
    band: float = 0.0,
    project: float = 1.0,
) -> Mesh:
    """One outer wall around what the mesh encloses, and sheets where it encloses nothing.

    Args:
        mesh: any triangles in object space; winding, holes, inner surfaces and floating specks do not matter.
        resolution: lattice steps per unit of object space. A flexible dual grid mesh of the same resolution keeps its
            vertices.
        ctx: told the progress.
        close_gaps: openings up to about this many steps wide count as closed, and up to three times as wide ones where
            that makes much more of the mesh bound something.
        band: how far the wall is smoothed, see `solid.relax.even_out`.
        project: 1 leaves vertices on the input, 0 moves them as far as `band` says.

    Returns:
        Parts that enclose something are watertight 2-manifolds wound outward; sheets have boundaries. Every edge has one or two
        faces.

    Raises:
        InputError: the mesh is malformed, or the resolution or `close_gaps` makes no sense.
        EmptyResultError: nothing is left.
    """
    if resolution < 4 or not 0 <= close_gaps <= 16:
        raise InputError(
            f"Remeshing needs a resolution of at least 4 and gaps of 0 to 16 voxels, not {resolution} and {close_gaps}."
        )
    vertices, faces = check_mesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy())
    cells = None if mesh.cells is None else mesh.cells.cpu().numpy()
    with obeying(ctx):
        grid = dual_quads(vertices, faces, resolution, cells)
        ctx.report(0.1, "remesh")
        work = ctx.part(0.1, 0.9, "remesh")
        if grid is not None:
            lattice, solid, sheets = _keep(grid, close_gaps, work)
        else:
            lattice, solid, sheets = _rebuild(vertices, faces, resolution, close_gaps, work)
        vertices, corner, from_first = solid
        vertices = even_out(vertices, corner, band, 1 - project) if band and project < 1 else vertices
        solid = _without_specks(vertices, corner, from_first)
        sheets = _tidied(*sheets, _SCRAP if len(solid[1]) else 0.0)
        if not len(solid[1]) and not len(sheets[1]):
            raise EmptyResultError("Remeshing left no surface: the mesh is smaller than a voxel.")
    vertices = np.concatenate([solid[0], sheets[0]]) * lattice.step + lattice.origin
    faces = np.concatenate([solid[1], sheets[1] + len(solid[0])])
    ctx.report(1.0, "remesh")
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int32)))


Wall = tuple[Array, Array, Array]
"""Vertices float64 [V, 3] in lattice steps, rings int32 [Q, 4], and whether each is split from its first vertex."""


def _keep(grid: DualQuads, close_gaps: float, ctx: RunContext) -> tuple[Lattice, Wall, tuple[Array, Array]]:
    """The wall and the sheets of a dual grid mesh: its own vertices and triangles, and new ones where it has gaps."""
    lattice = grid.lattice
    rim = grid.rim(close_gaps / 2, _HOLE_PERIMETER * close_gaps)
    corners = lambda: (grid.place[triangles(*grid.rings())], grid.edge)  # noqa: E731
    found = _enclosed(grid.edge, np.ones(len(grid.edge), bool), rim, lattice, corners, ctx.part(0.0, 0.6))
    surface = with_edges(grid.crossed(found.low, found.high), found.shut, found.shut_low, lattice)
    surface, pattern = fill_pinches(surface, lattice)
    quads = solid_quads(surface, pattern)
    place = np.full((len(surface.cell), 3), np.nan)
    place[: len(grid.place)] = grid.place
    known = surface.source >= 0
    vertices = _parted(place[quads.cell], quads, surface, lattice)
    vertices = relax(vertices, quads.corner, np.isnan(vertices[:, 0]), lattice.unflatten(surface.cell[quads.cell]) + 0.5)
    ctx.report(0.9)
    from_first = np.empty(len(known), bool)
    from_first[known] = grid.diagonal[surface.source[known]]
    from_first[~known] = split_quads(vertices, quads.corner[~known])
    sheets = compact(grid.place, triangles(*(column[found.loose] for column in grid.rings())))
    return lattice, (vertices, quads.corner, from_first), sheets[:2]


def _rebuild(
    vertices: Array, faces: Array, resolution: int, close_gaps: float, ctx: RunContext
) -> tuple[Lattice, Wall, tuple[Array, Array]]:
    """The wall and the sheets of any mesh, built anew on a lattice."""
    vertices, faces = merge_vertices(vertices, faces)
    faces = drop_repeated_faces(faces)
    lattice = lattice_around(vertices, resolution, MARGIN)
    close_gaps = close_gaps / resolution / lattice.step
    place = ((vertices - lattice.origin) / lattice.step).astype(np.float32)
    capped, caps_from = close_small_holes(place, faces, _HOLE_PERIMETER * close_gaps)
    mesh = capped[0], capped[1][:caps_from]
    ctx.report(0.2)
    walls = find_walls(capped[0][capped[1]], lattice, ctx.part(0.2, 0.4))
    edge = walls.edge[run_starts(walls.edge)]
    real = among(edge, walls.edge[walls.face < caps_from])
    corners = lambda: (capped[0][capped[1]], walls.edge)  # noqa: E731
    found = _enclosed(edge, real, rim_of(*capped, close_gaps / 2), lattice, corners, ctx.part(0.4, 0.6))
    surface, pattern = fill_pinches(found.surface(edge, lattice), lattice)
    quads = solid_quads(surface, pattern)
    vertices, free = fitted(surface, quads, walls, mesh, lattice, ctx.part(0.6, 0.9))
    vertices = relax(vertices, quads.corner, free, lattice.unflatten(surface.cell[quads.cell]) + 0.5)
    loose = edge[found.loose & real]
    sheet = crossed(loose, np.zeros(len(loose), bool), lattice)
    rings = sheet_quads(sheet)
    points, _ = fitted(sheet, rings, walls, mesh, lattice, ctx.part(0.9, 1.0))
    sheets = points, triangles(rings.corner, split_quads(points, rings.corner))
    return lattice, (vertices, quads.corner, split_quads(vertices, quads.corner)), sheets


def _enclosed(
    walls: Array, real: Array, rim: Rim, lattice: Lattice, rays: Callable[[], tuple[Array, Array]], ctx: RunContext
) -> Enclosed:
    """What the walls enclose.

    Where some of the mesh bounds nothing it may be torn wider than usual: wider gaps are closed, too, if that halves what
    bounds nothing. True sheets are not impressed. On small lattices rays may decide in the end, where that does not put lids
    on openings.

    Args:
        walls: int64 [W] edges, each once. real: bool [W], those that the mesh pierces without caps.
        rays: gives the triangles' corners float32 [F, 3, 3] in lattice steps, and the edges that they pierce, one entry for
            every time.
    """

    def loose(found: Enclosed) -> int:
        return int(np.count_nonzero(found.loose & real))

    best = enclose(walls, rim, lattice)
    few = _TORN * np.count_nonzero(real)
    if loose(best) < few or not len(rim.point):
        return best
    ctx.report(0.3)
    widest = enclose(walls, rim.widened(_WIDEST), lattice)
    if loose(widest) < loose(best) / 2:
        wider = enclose(walls, rim.widened(_WIDER), lattice)
        best = wider if loose(wider) < few else widest
    if loose(best) >= few and lattice.size <= _VOTED:
        corners, pierced = rays()
        share = odd_share(corners, lattice, ctx.part(0.5, 1.0))
        found = of_nodes(vote_inside(share, pierced, nodes_inside(walls, best, lattice), lattice), walls, lattice)
        surface = found.surface(walls, lattice)
        if loose(found) < loose(best) / 2 and not has_lids(solid_quads(surface, cell_patterns(surface)), surface.edge, walls):
            best = found
    return best


def _parted(vertices: Array, quads: Quads, surface: Crossed, lattice: Lattice) -> Array:
    """Vertices that share a voxel drawn a little apart, each towards the middle of the edges that its patch crosses."""
    shared = np.flatnonzero(~quads.alone)
    if not len(shared):
        return vertices
    row = np.full(len(vertices), -1)
    row[shared] = np.arange(len(shared))
    quad, place = np.nonzero(row[quads.corner] >= 0)
    target = row[quads.corner[quad, place]]
    middle = lattice.unflatten(surface.edge[quad] // 3) + 0.5 * np.eye(3)[surface.axis[quad]]
    amount = np.bincount(target, minlength=len(shared))[:, None]
    mean = np.stack([np.bincount(target, middle[:, k], len(shared)) for k in range(3)], axis=1) / amount
    vertices[shared] += _APART * (mean - vertices[shared])
    return vertices


def _tidied(vertices: Array, faces: Array, least: float) -> tuple[Array, Array]:
    """Sheets as manifolds, wound alike, without those of less area than `least` square steps: tatters beside the wall."""
    if len(faces) and least:
        part = face_components(faces)
        area = np.bincount(part, face_areas(vertices, faces))
        faces = faces[(area >= least)[part]]
    if not len(faces):
        return vertices[:0], faces[:0]
    return clean(vertices.astype(np.float32), faces.astype(np.int32), 1.0)


def _without_specks(vertices: Array, corner: Array, from_first: Array) -> tuple[Array, Array]:
    """The triangles of a wall without parts smaller than `_SPECK` steps, but for the largest part."""
    if not len(corner):
        return vertices, np.zeros((0, 3), np.int32)
    a, b = corner[:, :3].reshape(-1), corner[:, 1:].reshape(-1)
    part = graph_components(len(vertices), a, b)[corner[:, 0]]
    low, high = label_boxes(vertices, corner, part, int(part.max()) + 1)
    size = np.linalg.norm(high - low, axis=1)
    size = np.where(np.isfinite(size), size, 0.0)
    large = (size >= min(_SPECK, size.max()))[part]
    return compact(vertices, triangles(corner[large], from_first[large]))[:2]


def narrow_band_remesh(
    mesh: Mesh, resolution: int, ctx: RunContext = QUIET, band: float = 1.0, project_back: float = 0.0
) -> Mesh:
    """The published remesh: a double wall at `band` voxels around the surface, pulled back onto it by `project_back` 0..1."""
    from ..reference.distance import ReferenceIndex
    from ..reference.remesh import Grid, narrow_band

    index = ReferenceIndex(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy())
    grid = Grid(resolution, (resolution + 3 * band) / resolution, np.zeros(3))
    found = narrow_band(index, grid, band, project_back, ctx)
    return Mesh(torch.from_numpy(found.vertices), torch.from_numpy(found.faces))
