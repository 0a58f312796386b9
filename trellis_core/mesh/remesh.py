"""Remeshing: from a tattered surface to one clean outer wall.

`solid_remesh` is the default. It decides for every node of a lattice whether it is inside, gaps closed, and wraps the
inside in a watertight surface whose vertices lie on the input. Surface that bounds nothing stays an open sheet; what
lies inside the wall is dropped. Nothing is inflated. `narrow_band_remesh` is the published method (spec B 5.5).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch

from ..context import QUIET, RunContext
from ..errors import EmptyResultError, InputError
from ..values import Mesh
from .clean import check_mesh, drop_repeated_faces, merge_vertices
from .distance import TriangleIndex
from .dual_marching_cubes import Quads, fill_pinches, sheet_quads, solid_quads, split_quads
from .holes import fill_holes
from .inside import NODE_BYTES, Lattice, Walls, find_inside, find_walls, margin
from .manifold import make_manifold
from .orient import unify_winding
from .ray_parity import has_lids, odd_share, vote_inside
from .topology import Array, blocks, compact, edges, face_areas, face_components, face_normals, label_boxes, run_starts

_SHIFT = np.array([1.3e-3, 1.7e-3, 1.1e-3])  # of a step: keeps lattice nodes off axis-aligned faces
_HOLE_PERIMETER = 8.0  # steps round a hole per step of gap to close
_REST = 0.05  # pull of a vertex towards the mean of its samples, against one plane's pull of 1
_SNAP = 0.75  # steps that a vertex may move to take up an input vertex in its cell
_PROJECT = 0.5  # steps that a vertex may move onto the input
_BOX = 4
_MEMORY = 3_000_000_000  # bytes to work with where no budget is given
_FACE_BYTES = 280  # what everything but the lattice takes for each input triangle
_WIDER = (1.5, 3.0)  # gaps that are tried as well, by the widest that is to be closed
_TORN = 0.04  # share of the surface that may bound nothing before wider gaps are tried
_VOTED = 4_000_000  # lattice nodes up to which rays are cast from all of them
_SCRAP = 150.0  # square steps below which a sheet beside a solid is dropped
_SPECK = 3.0  # steps from corner to corner below which a part is dropped
_SMOOTHING = 30


def solid_remesh(mesh: Mesh, resolution: int, ctx: RunContext = QUIET, close_gaps: float = 2.0) -> Mesh:
    """One outer wall around what the mesh encloses, and sheets where it encloses nothing.

    Args:
        mesh: any triangles in object space; winding, holes, inner surfaces and floating specks do not matter.
        resolution: lattice steps per unit of object space. A flexible dual grid mesh of the same resolution keeps its
            vertices. Where it would not fit the memory budget (3 GB if none is given) a coarser lattice is used.
        ctx: told the progress.
        close_gaps: openings up to about this many steps wide count as closed, and up to three times as wide ones where
            that makes much more of the mesh bound something.

    Returns:
        Parts that enclose something are watertight 2-manifolds wound outward; sheets have boundaries.

    Raises:
        InputError: the mesh is malformed, or the resolution or `close_gaps` makes no sense.
        EmptyResultError: nothing is left.
    """
    if resolution < 4 or not 0 <= close_gaps <= 16:
        raise InputError(
            f"Remeshing needs a resolution of at least 4 and gaps of 0 to 16 voxels, not {resolution} and {close_gaps}."
        )
    vertices, faces = merge_vertices(*check_mesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy()))
    faces = drop_repeated_faces(faces)
    memory = ctx.memory_budget or _MEMORY
    memory = max(memory - _FACE_BYTES * len(faces), memory // 4)
    lattice = _lattice_around(vertices, resolution, margin(_WIDER[-1] * close_gaps), memory)
    close_gaps = close_gaps / resolution / lattice.step
    place = ((vertices - lattice.origin) / lattice.step).astype(np.float32)
    ctx.report(0.02, "remesh")

    capped, caps_from = _close_small_holes(place, faces, _HOLE_PERIMETER * close_gaps)
    ctx.report(0.15, "remesh")
    walls = find_walls(capped[0][capped[1]], lattice, ctx.part(0.15, 0.25, "remesh"))
    real = Walls(*(column[walls.face < caps_from] for column in (walls.edge, walls.point, walls.face)))
    inside, loose = _decide(walls, capped, caps_from, lattice, close_gaps, ctx.part(0.25, 0.65, "remesh"))

    normals = face_normals(*capped)
    part = ctx.part(0.65, 0.9, "remesh")
    solid = _surface(solid_quads(inside, lattice), inside, real, normals, (place, faces), lattice, part)
    part = ctx.part(0.9, 1.0, "remesh")
    sheets = _surface(sheet_quads(loose, lattice), inside, real, normals, (place, faces), lattice, part)
    sheets = _drop_scraps(*sheets, _SCRAP if len(solid[1]) else 0.0)
    vertices = np.concatenate([solid[0], sheets[0]])
    faces = np.concatenate([solid[1], unify_winding(*sheets) + len(solid[0])])
    vertices, faces = _drop_specks(vertices, faces)
    vertices = vertices * lattice.step + lattice.origin
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int32)))


def _decide(
    walls: Walls, capped: tuple[Array, Array], caps_from: int, lattice: Lattice, close_gaps: float, ctx: RunContext
) -> tuple[Array, Array]:
    """Inside nodes bool [lattice.size], and the edges, of those that the mesh really pierces, with both ends outside.

    Where some of the mesh bounds nothing it may be torn wider than usual: wider gaps are closed, too, if that halves
    what bounds nothing. True sheets are not impressed. Large lattices are asked at half their resolution first whether that
    may be so; on small ones rays may decide in the end, where that does not put lids on openings.
    """
    case = _Case.of(walls, capped, caps_from, lattice)
    best = inside, loose = case.enclose(close_gaps, ctx.part(0.0, 0.3, "remesh"))
    few = _TORN * len(case.real)
    if len(loose) < few or not close_gaps:
        return best
    small = lattice.size <= _VOTED
    coarse = None if small else _Case.coarser(capped, caps_from, lattice, ctx.part(0.3, 0.3))
    hopeless = 0 if small else len(coarse.enclose(close_gaps / 2, ctx.part(0.3, 0.4, "remesh"))[1])
    for nth, wider in enumerate(_WIDER):
        part = ctx.part(0.4 + 0.25 * nth, 0.65 + 0.25 * nth, "remesh")
        if coarse and len(coarse.enclose(wider * close_gaps / 2, part.part(0.0, 0.2, "remesh"))[1]) > hopeless / 2:
            continue
        inside, loose = case.enclose(wider * close_gaps, part.part(0.2, 1.0, "remesh"))
        if len(loose) < len(best[1]) / 2:
            best = inside, loose
        if len(loose) < few:
            return best
    if small:
        share = odd_share(capped[0][capped[1]], lattice, ctx.part(0.9, 1.0, "remesh"))
        inside = fill_pinches(vote_inside(share, walls.edge, best[0], lattice), lattice)
        loose = case.loose(inside)
        if len(loose) < len(best[1]) / 2 and not has_lids(solid_quads(inside, lattice), walls.edge):
            best = inside, loose
    return best


class _Case(NamedTuple):
    """What decides whether nodes of a lattice are inside: the edges int64 [W] that the mesh with its caps pierces, those
    that it pierces without, and points float32 [P, 3] all over it, in lattice steps."""

    lattice: Lattice
    pierced: Array
    real: Array
    samples: Array

    @classmethod
    def of(cls, walls: Walls, capped: tuple[Array, Array], caps_from: int, lattice: Lattice) -> _Case:
        real = walls.edge[walls.face < caps_from]
        samples = np.concatenate([walls.point, _samples(*capped)])
        return cls(lattice, walls.edge[run_starts(walls.edge)], real[run_starts(real)], samples)

    @classmethod
    def coarser(cls, capped: tuple[Array, Array], caps_from: int, lattice: Lattice, ctx: RunContext) -> _Case:
        """The same mesh in a lattice of twice the step, with room for openings as wide."""
        pad = margin(_WIDER[-1])
        shape = tuple(-(-nodes // 2) + 2 * pad for nodes in lattice.shape)
        half = Lattice(lattice.origin - 2 * pad * lattice.step, 2 * lattice.step, shape)
        vertices = capped[0] / 2 + np.float32(pad)
        return cls.of(find_walls(vertices[capped[1]], half, ctx), (vertices, capped[1]), caps_from, half)

    def enclose(self, close_gaps: float, ctx: RunContext) -> tuple[Array, Array]:
        """Inside nodes bool [lattice.size] when gaps so wide are closed, and `loose` edges."""
        inside = fill_pinches(find_inside(self.pierced, self.samples, self.lattice, close_gaps, ctx), self.lattice)
        return inside, self.loose(inside)

    def loose(self, inside: Array) -> Array:
        """The edges, of those that the mesh really pierces, with both ends outside."""
        node, stride = self.real // 3, np.array(self.lattice.strides)[self.real % 3]
        return self.real[~inside[node] & ~inside[node + stride]]


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


def _lattice_around(vertices: Array, resolution: int, pad: int, memory: int) -> Lattice:
    """Nodes at the corners of the voxels of [-0.5, 0.5]^3 (nearly), reaching `pad` nodes beyond the vertices.

    The step grows with meshes that are larger than the cube, and where the nodes would take more than `memory` bytes.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    step = max(1.0, float((high - low).max())) / resolution
    while True:
        base = np.full(3, -0.5) + _SHIFT * step
        first = np.floor((low - base) / step).astype(int) - pad
        last = np.ceil((high - base) / step).astype(int) + pad
        lattice = Lattice(base + first * step, step, tuple(int(n) for n in last - first + 1))
        if lattice.size * NODE_BYTES <= memory:
            return lattice
        step *= 1.01 * max((lattice.size * NODE_BYTES / memory) ** (1 / 3), 1.0)


def _close_small_holes(vertices: Array, faces: Array, max_perimeter: float) -> tuple[tuple[Array, Array], int]:
    """The mesh with caps, and how many of its faces, the first ones, are no caps."""
    vertices, faces = make_manifold(vertices, faces)
    faces = unify_winding(vertices, faces)
    return fill_holes(vertices, faces, max_perimeter), len(faces)


def _samples(vertices: Array, faces: Array) -> Array:
    pairs = edges(faces).pairs
    return np.concatenate([vertices, (vertices[pairs[:, 0]] + vertices[pairs[:, 1]]) / 2])


def _surface(
    quads: Quads,
    inside: Array,
    walls: Walls,
    normals: Array,
    source: tuple[Array, Array],
    lattice: Lattice,
    ctx: RunContext,
) -> tuple[Array, Array]:
    """Vertices float64 [V, 3] in lattice steps, and triangles."""
    row = _outermost(quads.edge, inside, walls)
    ctx.report(0.1)
    vertices, sampled = _fit(quads, row, walls, normals, lattice)
    ctx.report(0.3)
    kept = _take_input_vertices(vertices, quads.cell, quads.alone & sampled, source[0], lattice)
    rows = np.flatnonzero(sampled & ~kept)
    faces = _faces_near(vertices[rows], *source) if len(rows) else rows
    if len(faces):
        index = TriangleIndex(torch.from_numpy(source[0]), torch.from_numpy(faces))
        nearest = index.query(torch.from_numpy(vertices[rows]), ctx=ctx.part(0.4, 0.8, "remesh"))
        close = nearest.distance.numpy() < _PROJECT
        vertices[rows[close]] = nearest.point.numpy()[close]
    _relax(vertices, quads.corner, ~sampled)
    return vertices, split_quads(vertices, quads.corner)


def _outermost(edge: Array, inside: Array, walls: Walls) -> Array:
    """For every lattice edge [Q] the row of `walls` where it is pierced nearest to its outside end, -1 for none."""
    first = np.searchsorted(walls.edge, edge)
    last = np.searchsorted(walls.edge, edge, side="right") - 1
    return np.where(last < first, -1, np.where(inside[edge // 3], last, first))


def _fit(quads: Quads, row: Array, walls: Walls, normals: Array, lattice: Lattice) -> tuple[Array, Array]:
    """Vertices [V, 3] that lie in their cell and closest to the planes of their cell's samples; which have a sample."""
    count = len(quads.cell)
    quad = np.flatnonzero(row >= 0)
    vertex = quads.corner[quad].reshape(-1)
    point = np.repeat(walls.point[row[quad]].astype(np.float64), 4, axis=0)
    normal = normals[walls.face[row[quad]]].astype(np.float64)
    normal = np.repeat(normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-30), 4, axis=0)

    def total(values: Array) -> Array:
        columns = values.reshape(len(values), math.prod(values.shape[1:])).T
        return np.stack([np.bincount(vertex, column, minlength=count) for column in columns], axis=1)

    amount = np.bincount(vertex, minlength=count)
    centre = lattice.unflatten(quads.cell) + 0.5
    mean = np.where(amount[:, None] > 0, total(point) / np.maximum(amount, 1)[:, None], centre)
    planes = total(normal[:, :, None] * normal[:, None, :]).reshape(-1, 3, 3) + _REST * np.eye(3)
    offset = (normal * (point - mean[vertex])).sum(axis=1, keepdims=True)
    step = np.linalg.solve(planes, total(normal * offset)[..., None])[..., 0]
    return np.clip(mean + step, centre - 0.5, centre + 0.5), amount > 0


def _take_input_vertices(vertices: Array, cell: Array, wanting: Array, place: Array, lattice: Lattice) -> Array:
    """Move `wanting` vertices, bool [V], onto the input vertex in their cell if there is just one; which have moved."""
    home = np.floor(place).astype(np.int64) @ np.array(lattice.strides)
    homes, first, amount = np.unique(home, return_index=True, return_counts=True)
    found = np.searchsorted(homes, cell).clip(max=len(homes) - 1)
    guest = place[first[found]]
    near = np.linalg.norm(guest - vertices, axis=1) <= _SNAP
    kept = wanting & (homes[found] == cell) & (amount[found] == 1) & near
    vertices[kept] = guest[kept]
    return kept


def _faces_near(points: Array, vertices: Array, faces: Array) -> Array:
    """At least those faces that have something within `_PROJECT` steps of one of the points: those with a corner in the
    same box of `_BOX` steps as a point or in one next to it, and large ones."""
    marks = np.zeros(((np.maximum(points.max(0), vertices.max(0)) // _BOX).astype(int) + 3), bool)
    x, y, z = ((points // _BOX).astype(int) + 1).T
    for step in itertools.product((-1, 0, 1), repeat=3):
        marks[x + step[0], y + step[1], z + step[2]] = True
    x, y, z = ((vertices // _BOX).astype(int) + 1).T
    marked = marks[x, y, z]
    near = marked[faces[:, 0]] | marked[faces[:, 1]] | marked[faces[:, 2]]
    for rows in blocks(len(faces)):
        a, b, c = (vertices[faces[rows, k]] for k in range(3))
        size = np.maximum(np.maximum(a, b), c) - np.minimum(np.minimum(a, b), c)
        near[rows] |= size.max(1) > _BOX - _PROJECT
    return faces[near]


def _relax(vertices: Array, corner: Array, free: Array) -> None:
    """Stretch `free` vertices, bool [V], smoothly between the others."""
    a, b = corner.reshape(-1), np.roll(corner, -1, axis=1).reshape(-1)
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    rows = free[a]
    a, b = a[rows], b[rows]
    moving, slot = np.unique(a, return_inverse=True)
    amount = np.bincount(slot)[:, None]
    for _ in range(_SMOOTHING if len(moving) else 0):
        total = np.stack([np.bincount(slot, vertices[b, k]) for k in range(3)], axis=1)
        vertices[moving] = total / amount


def _drop_scraps(vertices: Array, faces: Array, least: float) -> tuple[Array, Array]:
    """Drop sheets of less area than `least` square steps: a decoder's tatters beside the wall."""
    if not len(faces) or not least:
        return vertices, faces
    part = face_components(faces)
    area = np.bincount(part, face_areas(vertices, faces))
    return compact(vertices, faces[(area >= least)[part]])[:2]


def _drop_specks(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Drop parts smaller than `_SPECK` steps, but never the largest part."""
    if not len(faces):
        raise EmptyResultError("Remeshing left no surface: the mesh is smaller than a voxel.")
    part = face_components(faces)
    low, high = label_boxes(vertices, faces, part, int(part.max()) + 1)
    size = np.linalg.norm(high - low, axis=1)
    return compact(vertices, faces[(size >= min(_SPECK, size.max()))[part]])[:2]
