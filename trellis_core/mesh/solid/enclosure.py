"""What walls with gaps enclose.

The outside floods in from the border of the lattice between the walls (`flood`). Where a surface ends, at its rim, the
edges close to the rim are shut as well, so that narrow openings do not let it in. What is cut off in this way counts as
inside if the walls around it are much larger than the opening; nodes at the opening go to whoever reaches them first.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from ..topology import Array, among, run_starts
from .dual_marching_cubes import Crossed, crossed
from .flood import Spaces, find_spaces
from .lattice import Lattice

WIDEST = 3.0
"""Lattice steps around a rim up to which edges can be shut."""
MARGIN = 6
"""Layers of nodes that a lattice must have around all walls."""
_LID = 2.0  # a pocket has at least so many times more wall than opening
_OUT, _IN = 1, 2
_MOST = 100_000_000  # edges that are looked at around a rim


class Rim(NamedTuple):
    """Where surfaces end: points float32 [P, 3] in lattice steps, and how far around each edges are shut, float32 [P]."""

    point: Array
    reach: Array

    def widened(self, factor: float) -> Rim:
        return Rim(self.point, np.minimum(self.reach * np.float32(factor), np.float32(WIDEST)))


class Enclosed(NamedTuple):
    """Which ends of edges are inside.

    Attributes:
        low, high: bool [W], ends of the walls that were given.
        shut: int64 [S], other edges, in rising order, that were kept shut and lie between inside and outside.
        shut_low: bool [S], the lower end is the one inside.
    """

    low: Array
    high: Array
    shut: Array
    shut_low: Array

    def surface(self, walls: Array, lattice: Lattice) -> Crossed:
        """The edges between inside and outside."""
        row = np.flatnonzero(self.low != self.high)
        edge = np.concatenate([walls[row], self.shut])
        return crossed(edge, np.concatenate([self.low[row], self.shut_low]), lattice)

    @property
    def loose(self) -> Array:
        """Walls bool [W] with both ends outside: they bound nothing."""
        return ~(self.low | self.high)


def enclose(walls: Array, rim: Rim, lattice: Lattice) -> Enclosed:
    """What the walls enclose when narrow openings count as closed.

    Args:
        walls: int64 [W], edges that a surface pierces, in rising order, each once.
        rim: where the surface ends.
        lattice: with `MARGIN` layers of nodes around all walls.
    """
    shut = _edges_near(rim, lattice)
    shut = shut[~among(shut, walls)]
    spaces = find_spaces(_merged(walls, shut), lattice)
    ends = [spaces.at(node) for node in (*lattice.ends(walls), *lattice.ends(shut))]
    inside = _decide(spaces, *ends)
    low, high, shut_low, shut_high = (inside[space] for space in ends)
    crossing = shut_low != shut_high
    return Enclosed(low, high, shut[crossing], shut_low[crossing])


def of_nodes(inside: Array, walls: Array, lattice: Lattice) -> Enclosed:
    """The same where for every node of a small lattice it is known whether it is inside, bool [lattice.size]."""
    low, high = (inside[node] for node in lattice.ends(walls))
    crossing = [3 * np.flatnonzero(inside[:-stride] != inside[stride:]) + axis for axis, stride in enumerate(lattice.strides)]
    crossing = np.sort(np.concatenate(crossing))
    crossing = crossing[~among(crossing, walls)]
    return Enclosed(low, high, crossing, inside[crossing // 3])


def nodes_inside(walls: Array, found: Enclosed, lattice: Lattice) -> Array:
    """Whether each node of a small lattice is inside, bool [lattice.size]."""
    surface = found.surface(walls, lattice)
    spaces = find_spaces(surface.edge, lattice)
    inside = np.zeros(spaces.count, bool)
    low, high = (spaces.at(node) for node in lattice.ends(surface.edge))
    inside[np.where(surface.low_inside, low, high)] = True
    return np.repeat(inside[spaces.space], np.diff(spaces.start, append=lattice.size))


def _decide(spaces: Spaces, low: Array, high: Array, shut_low: Array, shut_high: Array) -> Array:
    """Which spaces are inside, bool [S], from the spaces at both ends of all walls and of all shut edges."""
    label = np.zeros(spaces.count, np.int8)

    def faces(a: Array, b: Array) -> Array:
        differ = a != b
        return sum(np.bincount(side[differ], minlength=spaces.count) for side in (a, b))

    label[faces(low, high) >= _LID * faces(shut_low, shut_high)] = _IN
    label[0] = _OUT
    _compete(label, shut_low, shut_high)
    return label != _OUT


def _compete(label: Array, a: Array, b: Array) -> None:
    """Grow both labels along the edges until all that they reach is taken. The inside wins ties, which keeps corners."""
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    while len(a):
        ready = (label[a] != 0) & (label[b] == 0)
        if not ready.any():
            return
        source, target = label[a[ready]], b[ready]
        label[target[source == _OUT]] = _OUT
        label[target[source == _IN]] = _IN
        open_end = label[b] == 0
        a, b = a[open_end], b[open_end]


def _edges_near(rim: Rim, lattice: Lattice) -> Array:
    """The edges, in rising order, whose middle is nearer to a point of the rim than that point reaches."""
    found = [np.zeros(0, np.int64)]
    strides = np.array(lattice.strides)
    whole = np.ceil(rim.reach + 0.5).astype(int)
    for steps in np.unique(whole):
        rows = np.flatnonzero(whole == steps)
        box = np.array(list(product(range(-steps, steps + 2), repeat=3)))
        if len(rows) * len(box) * 3 > _MOST:
            rows = rows[:: -(-len(rows) * len(box) * 3 // _MOST)]
        size = max(1, (1 << 20) // len(box))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            node = np.floor(rim.point[some]).astype(np.int64)[:, None] + box
            arm = node - rim.point[some][:, None]
            square = (arm**2).sum(axis=2)
            for axis in range(3):
                near = square + arm[:, :, axis] + 0.25 < rim.reach[some, None] ** 2
                found.append(3 * (node[near] @ strides) + axis)
    edge = np.sort(np.concatenate(found))
    return edge[run_starts(edge)]


def _merged(walls: Array, shut: Array) -> Array:
    if not len(shut):
        return walls
    both = np.concatenate([walls, shut])
    both.sort()
    return both
