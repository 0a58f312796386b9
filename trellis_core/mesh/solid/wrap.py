"""The wall around what any mesh encloses, its vertices fitted to where the mesh pierces the lattice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from ...context import QUIET, RunContext
from ..distance import TriangleIndex
from ..holes import fill_holes
from ..manifold import make_manifold
from ..orient import unify_winding
from ..topology import Array, blocks, edges, face_normals
from .dual_marching_cubes import Crossed, Quads
from .enclosure import Rim
from .lattice import Lattice, Walls

_SHIFT = np.array([1.3e-3, 1.7e-3, 1.1e-3])  # of a step: keeps lattice nodes off axis-aligned faces
_REST = 0.05  # pull of a vertex towards the mean of its samples, against one plane's pull of 1
_SNAP = 0.75  # steps that a vertex may move to take up an input vertex in its cell
_PROJECT = 0.5  # steps that a vertex may move onto the input
_BOX = 4


def lattice_around(vertices: Array, resolution: int, margin: int) -> Lattice:
    """Nodes at the corners of the voxels of [-0.5, 0.5]^3 (nearly), reaching `margin` nodes beyond the vertices.

    The step grows with meshes that are larger than the cube.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    step = max(1.0, float((high - low).max())) / resolution
    base = np.full(3, -0.5) + _SHIFT * step
    first = np.floor((low - base) / step).astype(int) - margin
    last = np.ceil((high - base) / step).astype(int) + margin
    return Lattice(base + first * step, step, tuple(int(n) for n in last - first + 1))


def close_small_holes(vertices: Array, faces: Array, max_perimeter: float) -> tuple[tuple[Array, Array], int]:
    """The mesh with caps, and how many of its faces, the first ones, are no caps."""
    vertices, faces = make_manifold(vertices, faces)
    faces = unify_winding(vertices, faces)
    return fill_holes(vertices, faces, max_perimeter), len(faces)


def rim_of(vertices: Array, faces: Array, reach: float) -> Rim:
    """Points at most half a step apart along the edges that have one face."""
    found = edges(faces)
    ends = vertices[found.ends(np.flatnonzero(found.counts == 1))]
    pieces = np.ceil(2 * np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)).astype(int).clip(1, 10_000)
    row = np.repeat(np.arange(len(ends)), pieces)
    along = (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + 0.5) / pieces[row]
    point = ends[row, 0] + along[:, None] * (ends[row, 1] - ends[row, 0])
    return Rim(point.astype(np.float32), np.full(len(point), reach, np.float32))


def fitted(surface: Crossed, quads: Quads, walls: Walls, mesh: tuple[Array, Array], lattice: Lattice, ctx: RunContext = QUIET):
    """Vertices float64 [V, 3] of the quads in lattice steps, and which of them the mesh says nothing about, bool [V].

    Args:
        walls: where the mesh pierces the lattice.
        mesh: its vertices in lattice steps and its faces; walls' faces beyond them are ignored.
    """
    vertices, faces = mesh
    row = _outermost(surface, walls)
    row[walls.face[row] >= len(faces)] = -1
    result, sampled = _fit(quads, row, surface, walls, face_normals(vertices, faces), lattice)
    ctx.report(0.3)
    kept = _take_input_vertices(result, surface.cell[quads.cell], quads.alone & sampled, vertices, lattice)
    rows = np.flatnonzero(sampled & ~kept)
    near = _faces_near(result[rows], vertices, faces) if len(rows) else rows
    if len(near):
        nearest = TriangleIndex(torch.from_numpy(vertices), torch.from_numpy(near)).query(
            torch.from_numpy(result[rows]), ctx=ctx.part(0.4, 1.0)
        )
        close = nearest.distance.numpy() < _PROJECT
        result[rows[close]] = nearest.point.numpy()[close]
    return result, ~sampled


def _outermost(surface: Crossed, walls: Walls) -> Array:
    """For every crossed edge the row of `walls` where it is pierced nearest to its outside end, -1 for none."""
    first = np.searchsorted(walls.edge, surface.edge)
    last = np.searchsorted(walls.edge, surface.edge, side="right") - 1
    return np.where(last < first, -1, np.where(surface.low_inside, last, first))


def _fit(quads: Quads, row: Array, surface: Crossed, walls: Walls, normals: Array, lattice: Lattice) -> tuple[Array, Array]:
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
    centre = lattice.unflatten(surface.cell[quads.cell]) + 0.5
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
