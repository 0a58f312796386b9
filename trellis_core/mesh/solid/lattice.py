"""A regular lattice of nodes round a mesh, as large as it may be: nothing is ever stored for all of its nodes.

Flat node numbers have k fastest; an edge is 3 * (its lower node) + axis. Both are int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...context import QUIET, RunContext
from ...ovoxel.crossings import grid_crossings
from ..topology import Array


@dataclass(frozen=True)
class Lattice:
    """Nodes at `origin` [3] + `step` * (i, j, k) with i, j, k below `shape`."""

    origin: Array
    step: float
    shape: tuple[int, int, int]

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.shape[1] * self.shape[2], self.shape[2], 1

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def unflatten(self, nodes: Array) -> Array:
        """(i, j, k) int64 [..., 3] of flat node numbers."""
        return np.stack(np.unravel_index(nodes, self.shape), axis=-1)

    def ends(self, edge: Array) -> tuple[Array, Array]:
        """The lower and the upper node of edges."""
        node = edge // 3
        return node, node + np.array(self.strides)[edge % 3]


@dataclass(frozen=True)
class Walls:
    """Where a mesh pierces lattice edges, ordered by edge and then along it.

    Attributes:
        edge: int64 [K].
        point: float32 [K, 3] in lattice steps from the origin.
        face: int64 [K].
    """

    edge: Array
    point: Array
    face: Array


def find_walls(corners: Array, lattice: Lattice, ctx: RunContext = QUIET) -> Walls:
    """All piercings of triangles `corners` float32 [F, 3, 3], in lattice steps from its origin and well within it."""
    triangles = torch.from_numpy(np.ascontiguousarray(corners, np.float32))
    strides = np.array(lattice.strides)
    edge, point, face = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.float32)], [np.zeros(0, np.int64)]
    for batch in grid_crossings(triangles, torch.ones(3), max(lattice.shape), ctx):
        axis = batch.axis.numpy()
        node = batch.voxel.numpy() + 1
        node[np.arange(len(axis)), axis] -= 1
        edge.append(3 * (node @ strides) + axis)
        point.append(batch.point.numpy())
        face.append(batch.triangle.numpy())
    edge, point, face = (np.concatenate(parts) for parts in (edge, point, face))
    along = point[np.arange(len(edge)), edge % 3]
    order = np.lexsort([face, along, edge])
    return Walls(edge[order], point[order], face[order])
