"""Held-out measures: coarse overlap, surface distance, colour at the nearest point, boundary edges."""

from __future__ import annotations

import numpy as np

POINTS = 3000


def grid_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two voxel sets, integer [N, 3] and [M, 3] with distinct rows below 1024."""
    key = lambda c: (c[:, 0].astype(np.int64) << 20) | (c[:, 1].astype(np.int64) << 10) | c[:, 2].astype(np.int64)  # noqa: E731
    common = len(np.intersect1d(key(a), key(b)))
    return common / max(len(a) + len(b) - common, 1)


def surface_points(vertices: np.ndarray, faces: np.ndarray, count: int = POINTS, seed: int = 0) -> np.ndarray:
    """`count` points float [count, 3], uniform over the area of triangles int [F, 3]; [0, 3] for a mesh without area."""
    corners = vertices[faces]
    edge_a, edge_b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(edge_a, edge_b), axis=1)
    if not area.sum() > 0:
        return np.zeros((0, 3))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    return corners[chosen, 0] + u * edge_a[chosen] + v * edge_b[chosen]


def chamfer_and_f(a: np.ndarray, b: np.ndarray, radii: tuple[float, ...] = (0.05, 0.03)) -> tuple[float, list[float]]:
    """(mean of both directions' mean distance, F-score at each radius) of two point sets float [N, 3], [M, 3]."""
    from scipy.spatial import cKDTree

    if not len(a) or not len(b):
        return 1.0, [0.0] * len(radii)
    to_b, to_a = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    scores = []
    for radius in radii:
        precision, recall = (to_b < radius).mean(), (to_a < radius).mean()
        scores.append(float(2 * precision * recall / max(precision + recall, 1e-9)))
    return float((to_b.mean() + to_a.mean()) / 2), scores


def two_way_attribute_error(
    points: np.ndarray, attrs: np.ndarray, truth_points: np.ndarray, truth_attrs: np.ndarray
) -> np.ndarray:
    """Mean absolute error [C] between attributes [N, C] and [M, C] of nearest points, mean of both directions."""
    from scipy.spatial import cKDTree

    to_truth = cKDTree(truth_points).query(points)[1]
    to_points = cKDTree(points).query(truth_points)[1]
    return (np.abs(attrs - truth_attrs[to_truth]).mean(0) + np.abs(attrs[to_points] - truth_attrs).mean(0)) / 2


def boundary_share(faces: np.ndarray) -> float:
    """Share of the distinct edges of triangles int [F, 3] that only one triangle uses; 0 for a closed mesh."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    _, uses = np.unique(edges[:, 0] << 32 | edges[:, 1], return_counts=True)
    return float((uses == 1).mean()) if len(uses) else 1.0
