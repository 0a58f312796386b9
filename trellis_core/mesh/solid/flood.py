"""The connected spaces between walls of a lattice, without touching its nodes one by one.

Along the lattice's last axis the walls cut every line into runs of nodes. Runs on neighbouring lines belong to one space
if they lie beside each other at more nodes than there are walls between them. So the work grows with the number of walls
and of lines, never with the number of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...context import check_obeyed
from ..topology import Array, signed_components
from .lattice import Lattice


@dataclass(frozen=True)
class Spaces:
    """Runs of nodes, in the order of their flat numbers, and the connected space that each belongs to.

    Attributes:
        start: int64 [R] first node of each run.
        space: int [R] 0.., space 0 holds node 0.
        count: how many spaces there are.
    """

    start: Array
    space: Array
    count: int

    def at(self, node: Array) -> Array:
        """The space of each of some nodes int64 [N]; nodes in rising order are found faster."""
        return self.space[np.searchsorted(self.start, node, side="right") - 1]


def find_spaces(walls: Array, lattice: Lattice) -> Spaces:
    """What walls part from each other.

    Args:
        walls: int64 [W], the edges that cannot be passed, each once.
        lattice: with at least one layer of nodes round all walls.
    """
    axis, node = walls % 3, walls // 3
    start = np.concatenate([np.arange(0, lattice.size, lattice.shape[2]), node[axis == 2] + 1])
    start.sort()
    pairs = [_open_pairs(start, node[axis == across], lattice, across) for across in (0, 1)]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    space = signed_components(len(start), a, b)[0]
    return Spaces(start, space, int(space.max()) + 1)


def _open_pairs(start: Array, walls: Array, lattice: Lattice, axis: int) -> tuple[Array, Array]:
    """Runs that are open to each other along an axis across the lines: those on the lower lines, and those on the upper."""
    check_obeyed()
    stride, line = lattice.strides[axis], lattice.shape[2]
    place = start // stride % lattice.shape[axis]
    lower, upper = np.flatnonzero(place < lattice.shape[axis] - 1), np.flatnonzero(place > 0)
    below, above = start[lower] + stride, start[upper]  # both in the numbers of the upper lines
    meet = np.concatenate([below, above])
    meet.sort()
    meet = meet[np.append(True, meet[1:] != meet[:-1])]
    nodes = np.minimum(np.diff(meet, append=lattice.size), line - meet % line)
    shut = np.bincount(np.searchsorted(meet, walls + stride, side="right") - 1, minlength=len(meet))
    meet = meet[nodes > shut]
    check_obeyed()
    return lower[np.searchsorted(below, meet, side="right") - 1], upper[np.searchsorted(above, meet, side="right") - 1]
