"""Inside or outside of a mesh that is torn wide open: rays vote, and neighbours on the lattice come to terms.

A ray from a point inside a closed surface pierces it an odd number of times, from outside an even number. Where part of
the surface is missing some rays are wrong, but hardly most of the 26 in as many directions (Nooruddin and Turk 2003).
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from ...context import QUIET, RunContext
from ...ovoxel.crossings import grid_crossings
from ..topology import Array, graph_components
from .dual_marching_cubes import Quads
from .lattice import Lattice

_DIRECTIONS = [d for d in product((1, 0, -1), repeat=3) if d > (0, 0, 0)]  # one of each opposite pair
_DOUBT = 0.56
"""Share of odd rays from which a point counts as inside. Beside an open sheet at most half of the rays are odd."""
_TRUST, _PULL = 6.0, 0.4
"""Weights of the rays and of one neighbour."""
_ROUNDS = 30
_LIDS, _LID_SHARE, _LID_AREA = 3, 0.85, 0.04
"""So many patches are lids if they hold this share of all that was added, and the largest this share of the surface."""


def odd_share(corners: Array, lattice: Lattice, ctx: RunContext = QUIET) -> Array:
    """Share float32 [lattice.size] of the 26 rays from each node that pierce triangles an odd number of times.

    Args:
        corners: float32 [F, 3, 3], in lattice steps from its origin and well within it.
        lattice: rays run along its lines, face diagonals and space diagonals.
    """
    node = np.indices(lattice.shape).reshape(3, -1)
    odd = np.zeros(lattice.size, np.uint8)
    for nth, direction in enumerate(_DIRECTIONS):
        shear = _shear(direction)
        low = np.minimum(shear, 0) @ (np.array(lattice.shape) - 1)  # keeps what follows above zero
        placed = (corners @ shear.T.astype(np.float32) - low.astype(np.float32)).astype(np.float32)
        u, v, along = shear @ node - low[:, None]
        size = int(np.abs(shear).sum(1).max()) * max(lattice.shape)
        part = ctx.part(nth / len(_DIRECTIONS), (nth + 1) / len(_DIRECTIONS))
        batches = grid_crossings(torch.from_numpy(placed), torch.ones(3), size, part, axes=(2,))
        found = [np.zeros(0)]
        for batch in batches:
            line = (batch.voxel[:, 0] + 1) * size + batch.voxel[:, 1] + 1
            found.append((line.double() * size + batch.point[:, 2].double()).numpy())
        keys = np.sort(np.concatenate(found))
        line = (u * size + v) * size
        first, here, last = (np.searchsorted(keys, (line + at).astype(np.float64)) for at in (0, along, size))
        odd += ((here - first) % 2 + (last - here) % 2).astype(np.uint8)
    return odd / np.float32(2 * len(_DIRECTIONS))


def _shear(direction: tuple[int, int, int]) -> Array:
    """Unimodular int64 [3, 3] that takes `direction` to (0, 0, 1)."""
    lead = next(k for k in range(3) if direction[k])
    others = [k for k in range(3) if k != lead]
    rows = np.zeros((3, 3), np.int64)
    for row, other in enumerate(others):
        rows[row, other] = 1
        rows[row, lead] = -direction[other]
    rows[2, lead] = 1
    return rows


def vote_inside(share: Array, walls: Array, certain: Array, lattice: Lattice) -> Array:
    """Inside nodes, bool [lattice.size]: what most rays say, and what fits the neighbours.

    Neighbours agree, but across a wall they differ; a mean field finds the labels that satisfy most (Ising model).

    Args:
        share: float32 [lattice.size], of `odd_share`.
        walls: int64 [W], edges (3 * node + axis), one entry for every time that the mesh pierces them.
        certain: bool [lattice.size], nodes that are inside anyway.
    """
    bias = (_TRUST * (share - _DOUBT)).reshape(lattice.shape)
    bias[certain.reshape(lattice.shape)] = 2 * _TRUST
    edge, times = np.unique(walls, return_counts=True)
    walls = edge[times % 2 == 1]
    bonds = []
    for axis in range(3):
        bond = np.full(lattice.size, _PULL, np.float32)
        bond[walls[walls % 3 == axis] // 3] = -_PULL
        bonds.append(np.delete(bond.reshape(lattice.shape), -1, axis))
    state = np.tanh(bias)
    for _ in range(_ROUNDS):
        field = bias.copy()
        for axis, bond in enumerate(bonds):
            low, high = _ends(state, axis)
            to_low, to_high = _ends(field, axis)
            to_low += bond * high
            to_high += bond * low
        state = np.tanh(field)
    return (state > 0).reshape(-1)


def has_lids(quads: Quads, edge: Array, walls: Array) -> bool:
    """Whether a surface closes openings that were meant: what the mesh lacks of it is not many scraps but a few lids.

    Args:
        quads: of the surface, and the lattice edge int64 [Q] that each surrounds.
        walls: int64 [W], lattice edges that the mesh pierces.
    """
    corner = quads.corner[~np.isin(edge, walls)]
    if not len(corner):
        return False
    number, vertex = np.repeat(np.arange(len(corner)), 4), corner.reshape(-1) + len(corner)
    patch = graph_components(len(corner) + len(quads.cell), number, vertex)[: len(corner)]
    largest = np.sort(np.bincount(patch))[-_LIDS:]
    return bool(largest[-1] > _LID_AREA * len(edge) and largest.sum() > _LID_SHARE * len(corner))


def _ends(grid: Array, axis: int) -> tuple[Array, Array]:
    """Views of a grid at the lower and at the upper ends of all edges along an axis."""
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return grid[tuple(low)], grid[tuple(high)]
