"""The reference's post-processing where its meaning can be stated without golden data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from trellis_core.errors import TrellisError
from trellis_core.mesh.topology import edges, face_areas, face_components
from trellis_core.reference import cleanup
from trellis_core.reference.charts import ChartSettings, cluster, unwrap
from trellis_core.reference.distance import ReferenceIndex
from trellis_core.reference.remesh import Grid, narrow_band
from trellis_core.reference.simplify import simplify
from trellis_core.reference.to_glb import ReferenceSettings, rasterise, reference_asset
from trellis_core.values import Mesh, PbrVoxels


def ball(rings: int = 10, radius: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """A closed sphere of longitude and latitude, wound outward."""
    turns = 2 * rings
    polar = np.pi * np.arange(1, rings) / rings
    around = 2 * np.pi * np.arange(turns) / turns
    p, a = np.meshgrid(polar, around, indexing="ij")
    side = np.stack([np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)], axis=-1).reshape(-1, 3)
    vertices = radius * np.concatenate([side, [[0, 0, 1], [0, 0, -1]]])
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(rings - 2), np.arange(turns), indexing="ij"))
    k = (j + 1) % turns
    a0, a1, b0, b1 = i * turns + j, i * turns + k, (i + 1) * turns + j, (i + 1) * turns + k
    ring, after, last = np.arange(turns), (np.arange(turns) + 1) % turns, (rings - 2) * turns
    top, bottom = np.full(turns, len(side)), np.full(turns, len(side) + 1)
    faces = np.concatenate(
        [
            np.stack([a0, b0, b1], 1),
            np.stack([a0, b1, a1], 1),
            np.stack([top, ring, after], 1),
            np.stack([bottom, last + after, last + ring], 1),
        ]
    )
    return vertices.astype(np.float32), faces.astype(np.int32)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def cube() -> tuple[np.ndarray, np.ndarray]:
    corner = np.array([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)], np.float32) - np.float32(0.5)
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    return corner, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32)


def test_holes_up_to_the_perimeter_are_capped() -> None:
    vertices, faces = ball()
    gone = np.isin(np.arange(len(faces)), [0, 180])  # the two triangles of one quad: a loop of four edges
    open_faces = faces[~gone]
    rim = float(np.linalg.norm(np.diff(vertices[[0, 20, 21, 1, 0]], axis=0), axis=1).sum())
    assert (edges(open_faces).counts == 1).sum() > 0
    capped_vertices, capped = cleanup.fill_holes(vertices, open_faces, 10.0)
    assert (edges(capped).counts == 2).all()
    assert len(capped) > len(open_faces) and np.array_equal(capped[: len(open_faces)], open_faces)
    assert np.abs(np.linalg.norm(capped_vertices[-1]) - 0.3) < 0.05
    assert len(cleanup.fill_holes(vertices, open_faces, min(rim, 1e-3))[1]) == len(open_faces)


def test_a_third_face_on_an_edge_comes_apart() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]], np.int32)
    parted, new_faces = cleanup.repair_non_manifold_edges(vertices, faces)
    assert len(parted) == 9 and (edges(new_faces).counts == 1).all()
    np.testing.assert_array_equal(parted[new_faces], vertices[faces])


def test_duplicates_specks_and_degenerates_go() -> None:
    vertices, faces = ball()
    doubled = np.concatenate([faces, faces[5:6, [1, 2, 0]]])
    np.testing.assert_array_equal(cleanup.remove_duplicate_faces(vertices, doubled)[1], faces)
    speck = np.array([[0.4, 0.4, 0.4], [0.41, 0.4, 0.4], [0.4, 0.41, 0.4]], np.float32)
    more = np.concatenate([faces, [[len(vertices) + k for k in range(3)]]]).astype(np.int32)
    kept = cleanup.remove_small_components(np.concatenate([vertices, speck]), more, 1e-3)
    np.testing.assert_array_equal(kept[1], faces)
    flat = np.concatenate([faces, [[3, 3, 4]]]).astype(np.int32)
    assert len(cleanup.remove_degenerate_faces(vertices, flat)[1]) == len(faces)


def test_winding_becomes_uniform() -> None:
    vertices, faces = ball()
    flip = np.random.default_rng(0).random(len(faces)) < 0.5
    flip[0] = False
    mixed = np.where(flip[:, None], faces[:, [0, 2, 1]], faces)
    unified = cleanup.unify_face_orientations(vertices, mixed)[1]
    assert volume(vertices, unified) == pytest.approx(volume(vertices, faces))


def test_simplify_keeps_the_shape_and_always_ends() -> None:
    vertices, faces = ball(16)
    small_vertices, small = simplify(vertices, faces, 200)
    assert 50 < len(small) <= 200
    assert volume(small_vertices, small) == pytest.approx(volume(vertices, faces), rel=0.15)
    simplify(*cube(), 0)


def test_the_narrow_band_has_two_walls_one_voxel_off() -> None:
    vertices, faces = ball(12)
    found = narrow_band(ReferenceIndex(vertices, faces), Grid(24, 27 / 24, np.zeros(3)), 1.0)
    parts = face_components(found.faces)
    assert parts.max() == 1 and (edges(found.faces).counts == 2).all()
    off = ReferenceIndex(vertices, faces).distance(found.vertices) * 24 / (27 / 24)
    assert np.abs(off - 1).max() < 0.25
    pulled = narrow_band(ReferenceIndex(vertices, faces), Grid(24, 27 / 24, np.zeros(3)), 1.0, 1.0)
    assert ReferenceIndex(vertices, faces).distance(pulled.vertices).max() < 1e-5


def test_a_cube_has_a_chart_a_side_when_nothing_may_bend() -> None:
    vertices, faces = cube()
    chart = cluster(vertices, faces, ChartSettings(max_cost=0.3))
    np.testing.assert_array_equal(chart, np.repeat(np.arange(6), 2))
    flat_vertices, flat_faces, uv, source = unwrap(vertices, faces, chart)
    assert len(flat_vertices) == 24 and uv.min() >= 0 and uv.max() <= 1
    np.testing.assert_array_equal(flat_vertices, vertices[source])
    np.testing.assert_allclose(face_areas(flat_vertices, flat_faces), 0.5, rtol=1e-6)


def test_rasterised_square_is_covered_once() -> None:
    uv = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], np.float32)
    face, weights = rasterise(uv, np.array([[0, 1, 2], [0, 2, 3]]), 32)
    row, column = np.nonzero(face >= 0)
    centre = (np.stack([column, row], axis=1) + 0.5) / 32
    assert len(row) == int(((np.arange(32) + 0.5 > 3.2) & (np.arange(32) + 0.5 < 28.8)).sum()) ** 2
    corner = uv[np.array([[0, 1, 2], [0, 2, 3]])[face[row, column]]]
    np.testing.assert_allclose((weights[row, column][:, :, None] * corner).sum(1), centre, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    voxels = PbrVoxels(torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 6), 8)
    with pytest.raises(TrellisError, match="opencv"):
        reference_asset(Mesh(*map(torch.from_numpy, cube())), voxels, ReferenceSettings())
