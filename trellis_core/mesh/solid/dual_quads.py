"""A decoder's mesh read as the dual grid that it was made from: its vertices' voxels, and the lattice edge of each quad.

Then it is known without any search where the surface pierces the lattice, and every vertex can stay where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..topology import Array, blocks, graph_components, run_starts, stable_order
from .dual_marching_cubes import _OTHERS, Crossed, wound
from .enclosure import MARGIN, WIDEST, Rim
from .lattice import Lattice

_TASTE = 2048


class DualQuads(NamedTuple):
    """The quads of a dual grid mesh, by rising edge.

    Attributes:
        lattice: its nodes are the corners of the voxels.
        edge: int64 [Q], the edge that each quad surrounds, each once.
        corner: int32 [Q, 4], vertices in the voxels u + 2 v around the edge.
        diagonal: bool [Q], the quad is split from voxel 0 to voxel 3.
        cell: int64 [V], the voxel of each vertex as a cell of the lattice.
        place: float32 [V, 3], the vertices in lattice steps.
    """

    lattice: Lattice
    edge: Array
    corner: Array
    diagonal: Array
    cell: Array
    place: Array

    def crossed(self, low: Array, high: Array) -> Crossed:
        """The quads between inside and outside, given which ends of their edges are inside."""
        row = np.flatnonzero(low != high)
        return Crossed(self.edge[row], low[row], self.corner[row], self.cell, row.astype(np.int32))

    def rings(self) -> tuple[Array, Array]:
        """All quads as rings int32 [Q, 4] wound by axis only, and whether each is split from its first vertex."""
        return wound(self.corner, self.edge % 3, np.zeros(len(self.edge), bool)), self.diagonal

    def rim(self, reach: float, small_hole: float) -> Rim:
        """Where the surface ends: between two voxels that share an odd number of quads.

        Args:
            reach: half the width of the openings to be closed, in lattice steps.
            small_hole: holes with a perimeter up to this are closed whatever their width is.
        """
        ends = self._rim_sides()
        point = self.place[ends].mean(axis=1)
        if not len(ends):
            return Rim(point, np.zeros(0, np.float32))
        vertex, row = np.unique(ends, return_inverse=True)
        row = row.reshape(-1, 2)
        loop = graph_components(len(vertex), row[:, 0], row[:, 1])[row[:, 0]]
        order = np.argsort(loop, kind="stable")
        start = np.flatnonzero(np.diff(loop[order], prepend=-1))
        low, high = (op.reduceat(point[order], start) for op in (np.minimum, np.maximum))
        count = np.diff(start, append=len(order))
        width = np.where(count <= small_hole, np.clip((high - low).max(axis=1) / 2 + 0.25, reach, WIDEST), reach)
        return Rim(point, width[loop].astype(np.float32))

    def _rim_sides(self) -> Array:
        """Vertices int [R, 2] on both sides of voxel faces that an odd number of quads crosses."""
        odd = np.zeros(3 * len(self.cell), bool)
        sides = []
        axis = self.edge % 3
        for place, which in ((0, 0), (2, 0), (0, 1), (1, 1)):
            across = np.array(_OTHERS)[axis, which]
            low, high = self.corner[:, place], self.corner[:, place + 1 + which]
            face = 3 * low.astype(np.int64) + across
            odd ^= np.bincount(face, minlength=len(odd)) % 2 == 1
            sides.append((face, low, high))
        rows = [odd[face] for face, _, _ in sides]
        face, low, high = (np.concatenate([part[k][row] for part, row in zip(sides, rows, strict=True)]) for k in range(3))
        first = np.unique(face, return_index=True)[1]
        return np.stack([low[first], high[first]], axis=1).astype(np.int64)


def dual_quads(vertices: Array, faces: Array, resolution: int, cells: Array | None = None) -> DualQuads | None:
    """Read triangles as the quads of a dual grid of `resolution` voxels per unit; None where they are not that.

    Args:
        vertices: float [V, 3] in object space.
        faces: int [F, 3], the two triangles of a quad one after the other, wound in any way.
        cells: int [V, 3], the voxel of each vertex; None to take the one that it lies in.
    """
    if len(faces) < 2 or len(faces) % 2 or not np.isfinite(vertices).all():
        return None
    place = (vertices.astype(np.float32) + np.float32(0.5)) * np.float32(resolution)
    cells = np.floor(place).astype(np.int64) if cells is None else cells.astype(np.int64)
    first = cells.min(axis=0) - MARGIN
    shape = tuple(int(n) for n in cells.max(axis=0) + 2 + MARGIN - first)
    lattice = Lattice(first / resolution - 0.5, 1 / resolution, shape)
    cell = (cells - first) @ np.array(lattice.strides)
    if _read(faces[:_TASTE], cell, lattice) is None or (read := _read(faces, cell, lattice)) is None:
        return None
    corner, diagonal, edge = read
    used = np.zeros(len(cell), bool)
    used[corner.reshape(-1)] = True
    taken = np.sort(cell[used])
    if (taken[1:] == taken[:-1]).any():
        return None
    row, edge = stable_order(edge)
    start = run_starts(edge)
    row, edge = row[start], edge[start]
    return DualQuads(lattice, edge, corner[row], diagonal[row], cell, place - first.astype(np.float32))


def _read(faces: Array, cell: Array, lattice: Lattice) -> tuple[Array, Array, Array] | None:
    """Corners int32 [Q, 4] numbered u + 2 v, whether the diagonal joins 0 and 3, and edge of each quad."""
    corner = np.empty((len(faces) // 2, 4), np.int32)
    diagonal, edge = np.empty(len(corner), bool), np.empty(len(corner), np.int64)
    for rows in blocks(len(corner)):
        read = _read_block(faces[2 * rows.start : 2 * rows.stop].reshape(-1, 6), cell, np.array(lattice.strides))
        if read is None:
            return None
        corner[rows], diagonal[rows], edge[rows] = read
    return corner, diagonal, edge


def _read_block(pairs: Array, cell: Array, strides: Array) -> tuple[Array, Array, Array] | None:
    one, two = pairs.T[:3], pairs.T[3:]
    same = np.array([[p == q for q in two] for p in one])
    in_two, in_one = same.any(axis=1), same.any(axis=0)
    if not ((in_two.sum(axis=0) == 2) & (in_one.sum(axis=0) == 2)).all():
        return None
    tip, row = in_two.argmin(axis=0), np.arange(len(pairs))
    ring = np.stack([one[tip, row], one[(tip + 1) % 3, row], two[in_one.argmin(axis=0), row], one[(tip + 2) % 3, row]])
    cells = cell[ring]
    low = cells.min(axis=0)
    step = cells - low
    axis = np.searchsorted(np.array([strides[1] + strides[2], strides[0] + strides[2]]), step.max(axis=0))
    u, v = strides[np.array(_OTHERS)][axis.clip(max=2)].T
    number = (step == u) + 2 * (step == v) + 3 * (step == u + v)
    fine = (number.sum(axis=0) == 6) & ((number * number).sum(axis=0) == 14) & (number[0] + number[2] == 3)
    if not fine.all():
        return None
    corner = np.empty((len(pairs), 4), np.int32)
    for k in range(4):
        corner[row, number[k]] = ring[k]
    edge = 3 * (low + strides.sum() - strides[axis]) + axis
    return corner, (number[1] == 0) | (number[1] == 3), edge
