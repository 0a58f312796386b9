"""Small coloured solids as the decoders hand them over: dual-grid triangles wound by axis only, and PBR voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.ovoxel.voxelize import mesh_to_dual_grid
from trellis_core.values import Mesh, PbrVoxels

Paint = Callable[[np.ndarray], np.ndarray]


def rainbow(points: np.ndarray) -> np.ndarray:
    """Attributes [N, 6] that tell the place [N, 3]: colour = position + 0.5, rough above the middle, metal on the right."""
    x, _, z = points.T
    return np.column_stack([points + 0.5, x > 0, np.where(z > 0, 0.75, 0.25), np.ones(len(points))])


def decoded(vertices: np.ndarray, faces: np.ndarray, resolution: int, paint: Paint = rainbow) -> tuple[Mesh, PbrVoxels]:
    """A surface inside the unit cube, through the dual grid and back, with painted voxels."""
    grid = mesh_to_dual_grid(
        torch.from_numpy(np.asarray(vertices, np.float32)), torch.from_numpy(np.asarray(faces)), resolution
    )
    mesh = dual_grid_to_mesh(grid.coords, grid.dual_vertices, grid.intersected, None, resolution)
    attrs = paint((grid.coords.numpy() + 0.5) / resolution - 0.5)
    return mesh, PbrVoxels(grid.coords, torch.from_numpy(attrs.astype(np.float32)), resolution)


def grid_surface(u: int, v: int, closed_u: bool, closed_v: bool) -> np.ndarray:
    """Triangles int64 [F, 3] over a u x v grid of vertices, wrapped around in either direction."""
    index = np.arange(u * v).reshape(u, v)
    a = index if closed_u else index[:-1]
    b = np.roll(index, -1, axis=0)[: len(a)]
    if not closed_v:
        a, a2, b, b2 = a[:, :-1], a[:, 1:], b[:, :-1], b[:, 1:]
    else:
        a2, b2 = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
    quads = np.stack([a, b, b2, a2], axis=-1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def torus(radius: float = 0.3, tube: float = 0.13, steps: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward faces of a closed ring around the z axis."""
    turn = np.arange(steps) * 2 * np.pi / steps
    u, v = np.meshgrid(turn, turn, indexing="ij")
    reach = radius + tube * np.cos(v)
    points = np.stack([reach * np.cos(u), reach * np.sin(u), tube * np.sin(v)], axis=-1).reshape(-1, 3)
    return points.astype(np.float32), grid_surface(steps, steps, True, True)


def cube(side: float = 0.6, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward faces of an axis-aligned cube."""
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return (corners * side + centre).astype(np.float32), faces


def ball(radius: float = 0.4, rounds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward faces of a sphere: a finely cut cube, blown up. 12 * 4^rounds faces."""
    steps = 2**rounds
    side = np.stack(np.meshgrid(*[np.linspace(-1, 1, steps + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    faces = grid_surface(steps + 1, steps + 1, False, False)
    points, triangles = [], []
    for axis in range(3):
        for sign in (-1, 1):
            part = np.insert(side, axis, sign, axis=1)
            first = part[faces]
            outward = (np.cross(first[:, 1] - first[:, 0], first[:, 2] - first[:, 0]) * first.mean(1)).sum(1)[:1] > 0
            triangles.append((faces if outward else faces[:, [0, 2, 1]]) + len(points) * len(side))
            points.append(part)
    points, triangles = np.concatenate(points), np.concatenate(triangles)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    unique = unique / np.linalg.norm(unique, axis=1, keepdims=True) * radius
    return unique.astype(np.float32), inverse.reshape(-1)[triangles]


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume of a closed surface."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def is_watertight(faces: np.ndarray) -> bool:
    """Whether every directed edge has exactly one partner in the other direction."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    there = {tuple(side) for side in sides.tolist()}
    return len(there) == len(sides) and all((b, a) in there for a, b in there)
