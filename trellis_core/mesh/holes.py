"""Closing small holes: boundary loops of a consistently wound manifold get caps wound like their neighbours."""

from __future__ import annotations

import numpy as np

from .topology import Array, boundary_edges, edges, face_areas, face_components, graph_components, labels_at

_SHEET_SHARE = 0.25
"""A cap may have at most this share of its component's area: beyond it the loop is the rim of a sheet, not a hole."""


def fill_holes(vertices: Array, faces: Array, max_perimeter: float) -> tuple[Array, Array]:
    """Close every boundary loop whose perimeter is at most `max_perimeter` (object units).

    Loops of three and four edges get one and two triangles, longer ones a fan around a new vertex at the mean of
    their edge midpoints, weighted by length. The rim of an open sheet is left alone.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], as `make_manifold` and `unify_winding` leave them.
    """
    found = edges(faces)
    label = face_components(faces, found)
    area = np.bincount(label, face_areas(vertices, faces))
    return close_loops(vertices, faces, label, boundary_edges(faces, found), max_perimeter, area)[:2]


def close_loops(
    vertices: Array, faces: Array, label: Array, rim: Array, max_perimeter: float, area: Array
) -> tuple[Array, Array, Array, Array]:
    """`fill_holes` with what is known of the mesh: components int [F], their areas, directed boundary edges int64 [B, 2].

    Returns:
        (vertices, faces, components of the faces with the caps behind, boundary edges that are left).
    """
    rim, other = _simple_loops(rim)
    if not len(rim) or max_perimeter <= 0:
        return vertices, faces, label, np.concatenate([rim, other])
    start, loop, size = _walk(rim[:, ::-1])  # a cap traverses the edge against its neighbour
    first = np.cumsum(size) - size
    end = start[np.arange(len(start)) + 1 - (size[loop] * (np.arange(len(start)) == (first + size - 1)[loop]))]
    a, b = vertices[start].astype(np.float64), vertices[end].astype(np.float64)
    length = np.linalg.norm(b - a, axis=1)
    perimeter = np.bincount(loop, length)
    weighted = (a + b) / 2 * length[:, None]
    middle = np.stack([np.bincount(loop, weighted[:, k]) for k in range(3)], axis=1) / perimeter.clip(1e-30)[:, None]
    fan = np.bincount(loop, 0.5 * np.linalg.norm(np.cross(a - middle[loop], b - middle[loop]), axis=1))
    part = labels_at(start[first], faces, label, len(vertices))
    close = (perimeter <= max_perimeter) & (fan <= _SHEET_SHARE * area[part])

    three = first[close & (size == 3)]
    four = first[close & (size == 4)]
    caps = [np.stack([start[three + k] for k in range(3)], axis=1), _quads(vertices, start[four[:, None] + np.arange(4)])]
    large = close & (size > 4)
    hub = len(vertices) + np.cumsum(large) - 1
    spoke = np.flatnonzero(large[loop])
    caps.append(np.stack([start[spoke], end[spoke], hub[loop[spoke]]], axis=1))
    owners = [part[loop[three]], np.tile(part[loop[four]], 2), part[loop[spoke]]]
    left = ~close[loop]
    return (
        np.concatenate([vertices, middle[large].astype(vertices.dtype)]),
        np.concatenate([faces, *caps]).astype(faces.dtype),
        np.concatenate([label, *owners]),
        np.concatenate([np.stack([end[left], start[left]], axis=1), other]),
    )


def _simple_loops(rim: Array) -> tuple[Array, Array]:
    """Part directed edges [B, 2]: those in loops that every vertex enters once and leaves once, and the others."""
    names, places = np.unique(rim, return_inverse=True)
    places = places.reshape(-1, 2)
    out, into = (np.bincount(places[:, k], minlength=len(names)) for k in range(2))
    label = graph_components(len(names), places[:, 0], places[:, 1])
    good = np.ones(int(label.max(initial=-1)) + 1, bool)
    good[label[(out != 1) | (into != 1)]] = False
    simple = good[label[places[:, 0]]]
    return rim[simple], rim[~simple]


def _walk(rim: Array) -> tuple[Array, Array, Array]:
    """Order the edges of disjoint loops: (start vertices [B] loop after loop, loop of each [B], size of each loop)."""
    names = np.unique(rim[:, 0])
    step = np.empty(len(names), np.int64)
    step[np.searchsorted(names, rim[:, 0])] = np.searchsorted(names, rim[:, 1])
    loop = graph_components(len(names), np.arange(len(names)), step)
    root = np.unique(loop, return_index=True)[1]
    jump = step.copy()
    at_root = np.zeros(len(names), bool)
    at_root[root] = True
    ahead = np.where(at_root, 0, 1)  # steps to the root, by pointer doubling on the chains that end there
    jump[root] = root
    while (jump != root[loop]).any():
        ahead = ahead + ahead[jump]
        jump = jump[jump]
    size = np.bincount(loop)
    rank = np.where(at_root, 0, size[loop] - ahead)
    order = np.lexsort((rank, loop))
    return names[order], loop[order], size


def _quads(vertices: Array, ring: Array) -> Array:
    """Two triangles for every ring [Q, 4], along its shorter diagonal."""
    a, b, c, d = vertices[ring].swapaxes(0, 1)
    short = np.linalg.norm(a - c, axis=1) <= np.linalg.norm(b - d, axis=1)
    cut = np.where(short[:, None], ring, np.roll(ring, -1, axis=1))
    return np.concatenate([cut[:, [0, 1, 2]], cut[:, [0, 2, 3]]])
