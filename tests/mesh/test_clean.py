"""Cleanup: merging, specks, non-manifold repair, holes, winding, decimation."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.benchmarks.mesh_kinds import _creature, _sheet, make
from tests.helpers.solid_objects import ball, cube, decoded, grid_surface, is_watertight, torus, volume
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, EmptyResultError, InputError
from trellis_core.mesh import clean as cleanup
from trellis_core.mesh import decimate as decimation
from trellis_core.mesh.clean import check_mesh, clean, drop_repeated_faces, drop_specks, first_equal, merge_vertices
from trellis_core.mesh.decimate import decimate
from trellis_core.mesh.holes import fill_holes
from trellis_core.mesh.manifold import make_manifold
from trellis_core.mesh.orient import face_outward, unify_winding
from trellis_core.mesh.topology import compact, edges, face_areas, face_components, face_normals


def join(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    first = np.cumsum([0] + [len(v) for v, _ in parts])
    vertices = np.concatenate([v for v, _ in parts]).astype(np.float32)
    return vertices, np.concatenate([f + n for (_, f), n in zip(parts, first, strict=False)]).astype(np.int32)


def shuffled_winding(faces: np.ndarray, seed: int = 0) -> np.ndarray:
    flip = np.random.default_rng(seed).random(len(faces)) < 0.5
    return np.where(flip[:, None], faces[:, [0, 2, 1]], faces)


def test_equal_rows_are_found() -> None:
    rows = np.random.default_rng(1).integers(0, 4, (500, 3))
    expected = [np.flatnonzero((rows == row).all(1))[0] for row in rows]
    assert first_equal(rows).tolist() == expected


def test_rows_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_hash", lambda rows: np.zeros(len(rows), np.uint64))
    rows = np.array([[0, 0, 7], [1, 0, 7], [0, 0, 7], [1, 0, 7], [5, 5, 5]])
    assert first_equal(rows).tolist() == [0, 1, 0, 1, 4]


def test_split_vertices_and_repeated_faces_are_merged() -> None:
    vertices, faces = torus(steps=12)
    soup = vertices[faces].reshape(-1, 3)
    soup[soup == 0] = -0.0
    soup_faces = np.arange(len(soup), dtype=np.int32).reshape(-1, 3)
    doubled = np.concatenate([soup_faces, soup_faces[:5, [1, 2, 0]], soup_faces[:3, [0, 0, 1]]])
    merged, merged_faces = merge_vertices(soup, doubled)
    kept = drop_repeated_faces(merged_faces)
    assert len(merged) == len(vertices) and len(kept) == len(faces)
    np.testing.assert_array_equal(merged[kept], vertices[faces])


def test_specks_go_and_real_parts_stay() -> None:
    speck = cube(0.01, (0.45, 0.45, 0.45))
    small_part = cube(0.1, (-0.4, -0.4, -0.4))
    vertices, faces = join(ball(0.3), speck, small_part)
    kept = drop_specks(vertices, faces, voxel=1 / 64)
    assert len(faces) - len(kept) == 12 and len(np.unique(face_components(kept))) == 2
    only = drop_specks(*join(speck, cube(0.01)), voxel=1 / 64)
    assert len(only) == 24, "where all is small, nothing is a speck"


def test_confetti_is_dropped_first_and_too_many_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    corner = np.random.default_rng(0).random((2000, 1, 3)) - 0.5 + 1e-3 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    tetrahedra = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    confetti = corner.reshape(-1, 3), (4 * np.arange(2000)[:, None, None] + tetrahedra).reshape(-1, 3)
    vertices, faces = clean(*join(ball(0.3), confetti), voxel=1 / 64)
    assert len(faces) == len(ball(0.3)[1])
    monkeypatch.setattr(cleanup, "MOST_PARTS", 1000)
    with pytest.raises(InputError, match="2,000 loose parts"):
        clean(*join(confetti), voxel=1 / 64)


@pytest.mark.parametrize(
    "centres",
    [
        [(0, 0, 0), (1, 1, 0)],
        [(0, 0, 0), (1, 1, 1)],
        [(0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1)],
        [(0, 0, 0), (1, 1, 0), (2, 0, 0), (1, -1, 0)],
    ],
)
def test_touching_cubes_become_manifold_and_stay_closed(centres: list[tuple[float, float, float]]) -> None:
    vertices, faces = merge_vertices(*join(*[cube(1.0, centre) for centre in centres]))
    vertices, faces = clean(vertices, shuffled_winding(faces), voxel=0.25)
    assert is_watertight(faces)
    assert volume(vertices, faces) == pytest.approx(len(centres), rel=0.02)
    welded = merge_vertices(vertices, faces)[1]
    assert edges(welded).counts.max() == 2, "merging equal positions must not undo the repair"


@pytest.mark.parametrize("patience", [0, 10, 25])
def test_a_cancel_is_obeyed_between_blocks(patience: int) -> None:
    asked = []
    vertices, faces = torus(steps=200)
    ctx = RunContext(is_cancelled=lambda: asked.append(1) or len(asked) > patience)
    with pytest.raises(Cancelled):
        clean(vertices.astype(np.float32), faces.astype(np.int32), 1 / 256, ctx)
    assert len(asked) == patience + 1


def test_random_blocks_become_manifold() -> None:
    """Every corner and edge contact that blocks can have."""
    filled = np.pad(np.random.default_rng(5).random((6, 6, 6)) < 0.4, 1)
    corners = []
    for axis in range(3):
        for cell in np.argwhere(np.diff(filled.astype(int), axis=axis)):
            base = cell + np.eye(3, dtype=int)[axis]
            u, v = np.eye(3, dtype=int)[(axis + 1) % 3], np.eye(3, dtype=int)[(axis + 2) % 3]
            corners += [base, base + u, base + u + v, base + v]
    soup = np.array(corners, np.float32)
    quads = np.arange(len(soup)).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
    vertices, faces = merge_vertices(soup, faces)
    assert edges(faces).counts.max() == 4
    vertices, faces = make_manifold(vertices, faces)
    vertices, faces = vertices, face_outward(vertices, unify_winding(vertices, faces))
    assert is_watertight(faces)
    assert volume(vertices, faces) == pytest.approx(filled.sum(), rel=0.02)


def test_a_sheet_on_a_wall_leaves_the_wall_closed() -> None:
    vertices, faces = cube(1.0)
    fin = np.array([[0.5, -0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.0, 1.0]], np.float32)
    vertices, faces = merge_vertices(*join((vertices, faces), (fin, np.array([[0, 1, 2]]))))
    assert edges(faces).counts.max() == 3
    vertices, faces = make_manifold(vertices, faces)
    found = edges(faces)
    assert found.counts.max() == 2 and (found.counts == 1).sum() >= 3
    rims = np.unique(face_components(faces)[(found.counts[found.of_face] == 1).any(1)])
    assert len(rims) == 1 and len(np.unique(face_components(faces))) == 2, "the fin is open, the cube is not"


def test_holes_are_closed_with_matching_winding() -> None:
    vertices, faces = ball(0.4, 4)
    inside_hub = np.flatnonzero((faces == 100).any(1))
    quad_edge = edges(faces)
    pair = np.flatnonzero((quad_edge.of_face == quad_edge.of_face[700, 0]).any(1))
    gone = np.concatenate([inside_hub, pair, [400]])
    holed = np.delete(faces, gone, axis=0).astype(np.int32)
    filled_vertices, filled = fill_holes(vertices, holed, max_perimeter=1.0)
    assert is_watertight(filled)
    assert volume(filled_vertices, filled) == pytest.approx(volume(vertices, faces), rel=1e-2)
    small_only = fill_holes(vertices, holed, max_perimeter=0.2)[1]
    assert len(holed) < len(small_only) < len(filled)


def test_the_rim_of_a_sheet_is_no_hole() -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 0.1, 5)] * 2), axis=-1).reshape(-1, 2)
    sheet = np.column_stack([grid, np.zeros(len(grid))]).astype(np.float32)
    faces = grid_surface(5, 5, False, False).astype(np.int32)
    assert len(fill_holes(sheet, faces, max_perimeter=10.0)[1]) == len(faces)


def test_nested_walls_face_the_open_space() -> None:
    outer, inner, core = ball(0.4), ball(0.25), ball(0.1)
    vertices, faces = join(outer, inner, core, cube(0.05, (0.48, 0.48, 0.48)))
    faces = face_outward(vertices, unify_winding(vertices, shuffled_winding(faces)))
    expected = [volume(*outer), -volume(*inner), volume(*core), volume(*cube(0.05))]
    assert is_watertight(faces)
    assert volume(vertices, faces) == pytest.approx(sum(expected), rel=1e-4)
    parts = face_components(faces)
    assert [volume(vertices, faces[parts == k]) > 0 for k in range(4)] == [True, False, True, True]


def test_bodies_that_run_through_each_other_all_face_outward() -> None:
    vertices, faces = join(cube(0.4, (0.01, 0.02, 0.03)), cube(0.4, (0.15, 0.11, 0.12)), cube(0.2, (0.1, -0.1, 0.1)))
    turned = face_outward(vertices, faces[:, [0, 2, 1]])
    assert volume(vertices, turned) == pytest.approx(2 * 0.4**3 + 0.2**3, rel=1e-4)


def test_a_body_with_a_sheet_through_it_faces_outward() -> None:
    """As decoded they share vertices where they meet, and the way around them contradicts itself."""
    data = make("organic", 64)
    vertices, faces = clean(data["verts"], data["faces"], 1 / 64)
    middle = vertices[faces].mean(1).astype(np.float64)
    body = (abs(_creature(middle)) < 0.3 / 64) & (abs(_sheet(middle)) > 2 / 64)
    slope = np.stack([_creature(middle + e) - _creature(middle - e) for e in 1e-4 * np.eye(3)], axis=1)
    assert ((face_normals(vertices, faces) * slope).sum(1) > 0)[body].mean() > 0.97


def test_an_open_shell_faces_outward_and_a_moebius_strip_survives() -> None:
    vertices, faces = ball(0.4)
    shell = faces[vertices[faces].mean(1)[:, 2] < 0.2]
    turned = face_outward(vertices, unify_winding(vertices, shuffled_winding(shell)))
    normal = np.cross(vertices[turned[:, 1]] - vertices[turned[:, 0]], vertices[turned[:, 2]] - vertices[turned[:, 0]])
    assert ((normal * vertices[turned].mean(1)).sum(1) > 0).all()
    twist = np.arange(20) * np.pi / 20
    rim = np.stack([np.cos(2 * twist), np.sin(2 * twist), 0 * twist], axis=1)
    half = np.column_stack([np.cos(twist) * np.cos(2 * twist), np.cos(twist) * np.sin(2 * twist), np.sin(twist)]) * 0.3
    strip = np.stack([rim - half, rim + half], axis=1).reshape(-1, 3).astype(np.float32)
    index = np.arange(40).reshape(20, 2)
    after = np.concatenate([index[1:], index[:1, ::-1]])
    quads = np.stack([index[:, 0], after[:, 0], after[:, 1], index[:, 1]], axis=1)
    band = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
    assert len(clean(strip, band, voxel=0.01)[1]) == len(band)


def test_a_decoded_object_comes_out_watertight_and_outward() -> None:
    mesh, _ = decoded(*torus(), 32)
    vertices, faces = clean(mesh.vertices.numpy(), mesh.faces.numpy(), 1 / 32)
    assert is_watertight(faces) and len(np.unique(faces)) == len(vertices)
    assert volume(vertices, faces) == pytest.approx(2 * np.pi**2 * 0.3 * 0.13**2, rel=0.05)


@pytest.mark.parametrize("target", [600, 100, 20])
def test_decimation_hits_its_vertex_target(target: int) -> None:
    vertices, faces = ball(0.4, 4)
    assert len(decimate(vertices, faces.astype(np.int32), 10_000)[0]) == len(vertices)
    few, less = decimate(vertices, faces.astype(np.int32), target)
    assert abs(len(few) - target) <= max(0.02 * target, 1)
    assert is_watertight(less)
    assert volume(few, less) == pytest.approx(volume(vertices, faces), rel=5 / target)


def test_decimation_of_an_open_surface_hits_its_target_too() -> None:
    vertices, faces = ball(0.4, 4)
    vertices, faces, _ = compact(vertices, faces[vertices[faces].mean(1)[:, 2] < 0.1].astype(np.int32))
    few, _ = decimate(vertices, faces, 300)
    assert abs(len(few) - 300) <= 6


def test_the_child_process_gives_the_same_result_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = ball(0.4, 4)
    faces = faces.astype(np.int32)
    here = decimate(vertices, faces, 300)
    monkeypatch.setattr(decimation, "_IN_PROCESS", 0)
    there = decimate(vertices, faces, 300)
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])
    monkeypatch.setattr(decimation, "_CHILD", "import threading\nthreading.Event().wait()")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Cancelled):
        decimate(vertices, faces, 300, RunContext(is_cancelled=stop.is_set))
    monkeypatch.setattr(decimation, "_CHILD", "raise SystemExit('no library')")
    with pytest.raises(RuntimeError, match="no library"):
        decimate(vertices, faces, 300)


def test_bad_meshes_are_refused_in_words() -> None:
    vertices, faces = cube()
    with pytest.raises(EmptyResultError, match="no face"):
        check_mesh(vertices, np.zeros((0, 3), np.int32))
    with pytest.raises(EmptyResultError):
        check_mesh(vertices, np.array([[0, 0, 1], [2, 2, 2]]))
    with pytest.raises(EmptyResultError):
        check_mesh(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="outside"):
        check_mesh(vertices, np.array([[0, 1, 99]]))
    with pytest.raises(InputError, match="vertices"):
        check_mesh(vertices[:, :2], faces)
    broken = vertices.copy()
    broken[0] = np.inf
    assert 0 < len(check_mesh(broken, faces)[1]) < len(faces)


def test_cleaning_keeps_every_area_of_a_sound_mesh() -> None:
    vertices, faces = torus(steps=20)
    cleaned, kept = clean(vertices, faces.astype(np.int32), voxel=1 / 512)
    assert face_areas(cleaned, kept).sum() == pytest.approx(face_areas(vertices, faces).sum(), rel=1e-6)
