"""Which nodes of a regular lattice lie inside a mesh that may have gaps.

Where the mesh pierces a lattice edge there is a wall. The outside floods in from the border along the other edges,
widest passages first. A pocket that it could only enter through an opening narrower than the gaps to be closed, and
much narrower than the pocket itself, is inside; so is everything that it cannot reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..context import QUIET, RunContext, check_obeyed
from ..ovoxel.crossings import grid_crossings
from .topology import Array, blocks, signed_components

NODE_BYTES = 7
"""Memory that `find_inside` and what follows it take for every node of a lattice."""
_OUT, _IN = 1, 2
_LEVELS = (1.0, 0.85, 0.72, 0.61, 0.52, 0.44, 0.37, 0.3, 0.2, 0.0)  # openings, as shares of the widest that closes
_BOTTLENECK = 2.0  # a pocket is this much wider than the opening that closes it
_NARROW = 0.75  # in lattice steps: the lattice cannot tell a pocket of less half-width from a slot


@dataclass(frozen=True)
class Lattice:
    """Nodes at `origin` [3] + `step` * (i, j, k) with i, j, k below `shape`; flat numbers have k fastest."""

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


@dataclass(frozen=True)
class Walls:
    """Where a mesh pierces lattice edges, ordered by edge and then along it.

    Attributes:
        edge: int64 [K], 3 * (flat number of the lower node) + axis.
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


def margin(close_gaps: float) -> int:
    """Nodes by which a lattice must reach beyond the mesh for `find_inside`."""
    return _reach(close_gaps) + 2


def _reach(close_gaps: float) -> int:
    return max(int(np.ceil(close_gaps / 2)), 1)


def find_inside(walls: Array, samples: Array, lattice: Lattice, close_gaps: float, ctx: RunContext = QUIET) -> Array:
    """Inside nodes, bool [lattice.size]. Takes about `NODE_BYTES` a node.

    Args:
        walls: int64 [W], edges (3 * node + axis) that the mesh pierces.
        samples: float [P, 3] points of the mesh, about half a step apart, in lattice steps: the width of openings is
            measured between them.
        close_gaps: the widest opening to be closed, in lattice steps.
    """
    near = np.zeros(lattice.size, bool)
    near[walls // 3] = True
    near[walls // 3 + np.array(lattice.strides)[walls % 3]] = True
    near = _dilate(near.reshape(lattice.shape), _reach(close_gaps))
    ctx.report(0.05)
    place, rooms = label_parts(~near)
    near = near.reshape(-1)
    ctx.report(0.1)

    # A graph of the nodes near walls one by one, and of each connected room away from walls as a whole.
    border = int(place[0])
    count = int(np.count_nonzero(near))
    place[near] = np.arange(rooms, rooms + count, dtype=place.dtype)
    nearest = _Nearest(near, place, rooms, samples, lattice, 2 * _reach(close_gaps), ctx.part(0.1, 0.4, "inside"))
    a, b, width = _passages(near, place, walls, nearest, lattice, ctx.part(0.4, 0.7, "inside"))
    del near, nearest
    np.minimum(width, np.float32(close_gaps), out=width)
    outside = _flood(a, b, width, rooms, rooms + count, border, close_gaps / 2) == _OUT
    ctx.report(1.0)
    return ~outside[place]


def _dilate(grid: Array, steps: int) -> Array:
    """Grow the true nodes of bool [I, J, K] by a cube of `steps` to every side."""
    for axis in range(3):
        for _ in range(steps):
            check_obeyed()
            lower, upper = np.moveaxis(grid, axis, 0)[:-1], np.moveaxis(grid, axis, 0)[1:]
            grid = grid.copy()
            grown = np.moveaxis(grid, axis, 0)
            grown[1:] |= lower
            grown[:-1] |= upper
    return grid


def label_parts(grid: Array) -> tuple[Array, int]:
    """The connected part 0.. of each true node of bool [I, J, K], int32 [I * J * K] (false nodes: any number), and how many.

    Runs along the last axis are joined where they overlap the runs beside them.
    """
    opens = grid.copy()
    opens[:, :, 1:] &= ~grid[:, :, :-1]
    run = np.cumsum(opens, dtype=np.int32)
    run -= 1
    ends = []
    for axis in range(2):
        check_obeyed()
        of_run, true, first = (np.moveaxis(x, axis, 0) for x in (run.reshape(grid.shape), grid, opens))
        meet = (first[:-1] | first[1:]) & true[:-1] & true[1:]
        ends.append((of_run[:-1][meet], of_run[1:][meet]))
    a, b = (np.concatenate(side) for side in zip(*ends, strict=True))
    number = signed_components(max(int(run[-1]) + 1, 1), a, b)[0]
    for rows in blocks(len(run)):
        run[rows] = number[run[rows]]
    return run, int(number.max()) + 1


class _Nearest:
    """For every node near a wall a sample that is nearest to it, or very nearly so.

    Each sample tells the node next to it, and nodes that have learned something tell their six neighbours (Danielsson 1980).
    """

    def __init__(
        self, near: Array, place: Array, rooms: int, samples: Array, lattice: Lattice, rounds: int, ctx: RunContext
    ) -> None:
        self._place, self._rooms, self._strides = place, rooms, np.array(lattice.strides)
        self._samples = samples.astype(np.float32, copy=False)
        self._node = np.flatnonzero(near)
        self._spot = np.stack(np.unravel_index(self._node, lattice.shape), axis=1).astype(np.int16)
        self._known = np.full(len(self._node), -1, np.int32)
        self._least = np.full(len(self._node), np.inf, np.float32)
        self._seed()
        fresh = np.flatnonzero(self._known >= 0)
        for turn in range(rounds):
            learned = np.zeros(len(self._node), bool)
            for rows in blocks(len(fresh)):
                self._pass_on(fresh[rows], learned)
                ctx.report((turn + rows.stop / len(fresh)) / rounds)
            fresh = np.flatnonzero(learned)

    def square(self, spot: Array, node: Array) -> Array:
        """Squared distance float32 [N] from points float32 [N, 3] to the samples that nodes int64 [N] know of."""
        row = self._place[node] - self._rooms
        return self._square(spot, np.where(row >= 0, self._known[row], -1))

    def _square(self, spot: Array, sample: Array) -> Array:
        arm = self._samples[sample]
        arm -= spot
        square = np.einsum("nk,nk->n", arm, arm)
        square[sample < 0] = np.inf
        return square

    def _seed(self) -> None:
        for rows in blocks(len(self._samples)):
            point = self._samples[rows]
            spot = np.rint(point)
            row = self._place[spot.astype(np.int64) @ self._strides] - self._rooms
            heard = np.flatnonzero(row >= 0)  # a tip that pierces nothing may be far from all walls
            row, arm = row[heard], (point - spot)[heard]
            square = np.einsum("nk,nk->n", arm, arm)
            np.minimum.at(self._least, row, square)
            first = self._least[row] == square
            self._known[row[first]] = heard[first] + rows.start

    def _pass_on(self, told: Array, learned: Array) -> None:
        """Tell the neighbours of some nodes what these know; marks those that have `learned` something."""
        node, sample = self._node[told], self._known[told]
        for step in (*self._strides, *-self._strides):
            row = self._place[node + step] - self._rooms
            here = np.flatnonzero(row >= 0)
            row, heard = row[here], sample[here]
            square = self._square(self._spot[row], heard)
            nearer = np.flatnonzero(square < self._least[row])
            row = row[nearer]
            self._known[row], self._least[row] = heard[nearer], square[nearer]
            learned[row] = True


def _passages(
    near: Array, place: Array, walls: Array, nearest: _Nearest, lattice: Lattice, ctx: RunContext
) -> tuple[Array, Array, Array]:
    """Open edges with an end near a wall: places int32 [N] of their ends, and half-width float32 [N] at their middles."""
    parts = []
    for axis, stride in enumerate(lattice.strides):
        touches = near.copy()
        touches[:-stride] |= near[stride:]
        touches[walls[walls % 3 == axis] // 3] = False
        a = np.flatnonzero(touches)
        width = np.empty(len(a), np.float32)
        for rows in blocks(len(a)):
            node = a[rows]
            middle = (lattice.unflatten(node) + 0.5 * np.eye(3)[axis]).astype(np.float32)
            width[rows] = np.sqrt(np.minimum(nearest.square(middle, node), nearest.square(middle, node + stride)))
            ctx.report((axis + rows.stop / len(a)) / 3)
        parts.append((place[a], place[a + stride], width))
    columns = list(zip(*parts, strict=True))
    del parts
    return tuple(np.concatenate(columns.pop(0)) for _ in range(3))  # each frees its parts


def _flood(a: Array, b: Array, width: Array, rooms: int, count: int, border: int, widest: float) -> Array:
    """Label of `count` graph nodes, of which the first `rooms` are rooms; `a`, `b` and `width` describe the passages."""
    spacious = np.zeros(count, np.float32)
    np.maximum.at(spacious, a, width)
    np.maximum.at(spacious, b, width)
    spacious[:rooms] = np.inf
    label = np.zeros(count, np.int8)
    label[border] = _OUT
    pocket, pocket_width = np.arange(count, dtype=a.dtype), spacious
    shut = np.ones(len(a), bool)
    for share in _LEVELS:
        level = share * widest
        opens = shut & (width >= level)
        shut &= ~opens
        group = signed_components(len(pocket_width), pocket[a[opens]], pocket[b[opens]])[0][pocket]
        number = int(group.max()) + 1
        has_out = _any(group[label == _OUT], number)
        if share < 1:
            closed = pocket_width >= max(_BOTTLENECK * level, _NARROW)
            label[(label == 0) & has_out[group] & closed[pocket]] = _IN
        has_in = _any(group[label == _IN], number)
        label[(label == 0) & (has_out & ~has_in)[group]] = _OUT
        label[(label == 0) & (has_in & ~has_out)[group]] = _IN
        undecided = (label == 0) & (has_in & has_out)[group]
        if undecided.any():
            rows = np.flatnonzero(~shut & (undecided[a] | undecided[b]))
            _compete(label, a[rows], b[rows])
        pocket, pocket_width = group, np.zeros(number, np.float32)
        np.maximum.at(pocket_width, group, spacious)
    return label


def _any(groups: Array, number: int) -> Array:
    """Which of 0..number-1 occur."""
    result = np.zeros(number, bool)
    result[groups] = True
    return result


def _compete(label: Array, a: Array, b: Array) -> None:
    """Grow both labels step by step along the edges until all that they reach is taken; the outside wins ties."""
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    while len(a):
        ready = (label[a] != 0) & (label[b] == 0)
        if not ready.any():
            return
        source, target = label[a[ready]], b[ready]
        label[target[source == _IN]] = _IN
        label[target[source == _OUT]] = _OUT
        open_end = label[b] == 0
        a, b = a[open_end], b[open_end]
