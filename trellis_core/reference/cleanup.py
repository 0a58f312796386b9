"""The reference's mesh clean-up (docs/method/mesh.md): pure functions from (vertices, faces) to (vertices, faces).

Vertices are float32 [V, 3], faces int32 [F, 3]. Order of vertices and faces is part of the contract.
"""

from __future__ import annotations

import numpy as np

from ..mesh.topology import (
    Array,
    compact,
    edges,
    face_areas,
    face_components,
    face_normals,
    first_seen_order,
    graph_components,
    manifold_pairs,
)


def fill_holes(vertices: Array, faces: Array, max_perimeter: float) -> tuple[Array, Array]:
    """Cap simple boundary loops shorter than `max_perimeter` with a fan around the mean of their edge midpoints.

    The caps ignore their neighbours' winding, as in the reference.
    """
    found = edges(faces)
    border = found.pairs[found.counts == 1]
    degree = np.bincount(border.reshape(-1), minlength=len(vertices))
    linking = (degree > 0) & (degree <= 2)
    linking[found.pairs[found.counts > 2]] = False

    edge, end = np.nonzero(linking[border])
    group = graph_components(len(border) + len(vertices), edge, len(border) + border[edge, end])[: len(border)]
    closed_end = linking[border] & (degree[border] == 2)
    length = np.linalg.norm(vertices[border[:, 0]] - vertices[border[:, 1]], axis=1)
    groups = int(group.max(initial=-1)) + 1
    broken = np.bincount(group, ~closed_end.all(1), minlength=groups) > 0
    capped = ~broken & (np.bincount(group, length, minlength=groups) < max_perimeter)

    members = np.flatnonzero(capped[group])
    members = members[np.argsort(group[members], kind="stable")]
    loop = first_seen_order(group[members])
    midpoints = vertices[border[members]].mean(axis=1)
    sizes = np.bincount(loop)
    centres = np.stack([np.bincount(loop, midpoints[:, k]) for k in range(3)], axis=1) / sizes[:, None]
    caps = np.stack([border[members, 1], border[members, 0], len(vertices) + loop], axis=1)
    return (
        np.concatenate([vertices, centres.astype(vertices.dtype)]),
        np.concatenate([faces, caps.astype(faces.dtype)]),
    )


def remove_duplicate_faces(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Of faces with equal vertex sets keep the first; drop unreferenced vertices."""
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return compact(vertices, faces[np.sort(first)])[:2]


def repair_non_manifold_edges(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Separate everything that does not hang together through manifold edges, bow-tie vertices included.

    Corners (3 * face + k) are welded at both ends of every manifold edge; each class of corners is a new vertex.
    """
    found = edges(faces)
    _, corners = manifold_pairs(found)
    face, side = corners // 3, corners % 3
    following = 3 * face + (side + 1) % 3
    flat = faces.reshape(-1)
    same_way = flat[corners[:, 0]] == flat[corners[:, 1]]
    other_start = np.where(same_way, corners[:, 1], following[:, 1])
    other_end = np.where(same_way, following[:, 1], corners[:, 1])
    a = np.concatenate([corners[:, 0], following[:, 0]])
    b = np.concatenate([other_start, other_end])
    corner_class = graph_components(len(flat), a, b)
    _, first = np.unique(corner_class, return_index=True)
    return vertices[flat[first]], corner_class.reshape(-1, 3).astype(faces.dtype)


def remove_small_components(vertices: Array, faces: Array, min_area: float) -> tuple[Array, Array]:
    """Drop components (over manifold edges) whose area is below `min_area`."""
    component = face_components(faces, manifold_only=True)
    area = np.bincount(component, face_areas(vertices, faces))
    return compact(vertices, faces[(area >= min_area)[component]])[:2]


def unify_face_orientations(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Wind neighbours alike across manifold edges; the lowest face of a component keeps its winding.

    Components found by walking the two-sheeted cover whose nodes are (face, flipped or not); a one-sided
    (Moebius) component has no consistent winding and stays as it is.
    """
    found = edges(faces)
    _, corners = manifold_pairs(found)
    flat = faces.reshape(-1)
    differ = flat[corners[:, 0]] == flat[corners[:, 1]]
    f, g = corners[:, 0] // 3, corners[:, 1] // 3
    count = len(faces)
    a = np.concatenate([f, f + count])
    b = np.concatenate([g + count * differ, g + count * ~differ])
    cover = graph_components(2 * count, a, b)
    component = graph_components(count, f, g)
    _, root = np.unique(component, return_index=True)
    flip = cover[:count] != cover[root[component]]
    return vertices, np.where(flip[:, None], faces[:, [0, 2, 1]], faces)


def remove_degenerate_faces(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Drop faces with a repeated vertex or with area below min(1e-24, 1e-12 * longest edge squared)."""
    corner = vertices[faces]
    longest = ((corner - np.roll(corner, -1, axis=1)) ** 2).sum(-1).max(1)
    repeated = (faces == np.roll(faces, -1, axis=1)).any(1)
    tiny = face_areas(vertices, faces) < np.minimum(1e-24, 1e-12 * longest.astype(np.float64))
    return compact(vertices, faces[~(repeated | tiny)])[:2]


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals float32 [V, 3], area weighted; where the sum vanishes the normal of the vertex's first face."""
    weighted = face_normals(vertices, faces)
    flat = faces.reshape(-1)
    total = np.zeros_like(vertices)
    np.add.at(total, flat, np.repeat(weighted, 3, axis=0))
    lost = np.linalg.norm(total, axis=1) == 0
    used, first = np.unique(flat, return_index=True)
    fallback = np.zeros_like(total)
    fallback[used] = weighted[first // 3]
    total[lost] = fallback[lost]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0)
