"""Meshes as nobody wants them, with and without remeshing: a result or a clear message, never a hang or a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.solid_objects import ball, cube, decoded
from trellis_core.asset.asset import Asset, make_asset
from trellis_core.errors import EmptyResultError, InputError
from trellis_core.settings import GenerationSettings
from trellis_core.values import Mesh, PbrVoxels

GRID = 16
BALL, VOXELS = decoded(*ball(), GRID)


@pytest.fixture(params=[False, True], ids=["as decoded", "remeshed"])
def settings(request: pytest.FixtureRequest) -> GenerationSettings:
    return GenerationSettings(decimation_target=5000, texture_size=1024, remesh=request.param)


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return Mesh(torch.from_numpy(np.asarray(vertices, np.float32)), torch.from_numpy(np.asarray(faces, np.int32)))


def specks(count: int, size: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    corners = np.random.default_rng(0).random((count, 1, 3)) * 0.8 - 0.4 + size * np.eye(3)
    return corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def check(asset: Asset) -> Asset:
    """Nothing is not a number, every face has corners, every texel a colour."""
    assert asset.vertices.isfinite().all() and asset.normals.isfinite().all() and asset.uvs.isfinite().all()
    assert 0 <= int(asset.faces.min()) and int(asset.faces.max()) < len(asset.vertices)
    assert asset.report.faces == len(asset.faces) > 0
    assert asset.glb[:4] == b"glTF"
    return asset


def test_nothing_at_all(settings: GenerationSettings) -> None:
    for vertices, faces in ((np.zeros((0, 3)), np.zeros((0, 3))), (BALL.vertices.numpy(), np.zeros((0, 3)))):
        with pytest.raises(EmptyResultError, match="no face"):
            make_asset(mesh_of(vertices, faces), VOXELS, settings)


@pytest.mark.parametrize("size", [0.3, 1e-6])
def test_one_triangle(settings: GenerationSettings, size: float) -> None:
    try:
        asset = check(make_asset(mesh_of(size * np.eye(3) + 0.02, [[0, 1, 2]]), VOXELS, settings))
    except EmptyResultError as error:
        assert settings.remesh and size < 1 / GRID and "voxel" in str(error)
    else:
        assert asset.report.boundary_edges >= 3


def test_all_faces_are_degenerate(settings: GenerationSettings) -> None:
    whole = BALL.faces.numpy()
    for vertices, faces in (
        (BALL.vertices.numpy() * [1, 0, 0], whole),  # a line
        (BALL.vertices.numpy() * 0, whole),  # a point
        (BALL.vertices.numpy(), whole[:, [0, 0, 1]]),
    ):
        with pytest.raises(EmptyResultError):
            make_asset(mesh_of(vertices, faces), VOXELS, settings)


def test_vertices_that_are_not_numbers(settings: GenerationSettings) -> None:
    vertices = BALL.vertices.numpy().copy()
    vertices[[3, 50]] = np.nan
    vertices[90, 1] = -np.inf
    assert check(make_asset(mesh_of(vertices, BALL.faces.numpy()), VOXELS, settings)).report.watertight
    with pytest.raises(EmptyResultError):
        make_asset(mesh_of(vertices * np.nan, BALL.faces.numpy()), VOXELS, settings)


def test_specks_beside_an_object_and_nothing_but_specks(settings: GenerationSettings) -> None:
    vertices, faces = specks(3000)
    both = mesh_of(
        np.concatenate([BALL.vertices.numpy(), vertices]), np.concatenate([BALL.faces.numpy(), faces + len(BALL.vertices)])
    )
    assert check(make_asset(both, VOXELS, settings)).report.components == 1
    try:
        check(make_asset(mesh_of(vertices, faces), VOXELS, settings))
    except (EmptyResultError, InputError) as error:
        assert "voxel" in str(error) or "texture_size" in str(error)


def test_bodies_that_run_through_each_other(settings: GenerationSettings) -> None:
    parts = [cube(0.4, (0.01, 0.02, 0.03)), cube(0.4, (0.15, 0.11, 0.12)), cube(0.2, (0.1, -0.1, 0.1))]
    start = np.cumsum([0] + [len(v) for v, _ in parts])
    faces = np.concatenate([f + n for (_, f), n in zip(parts, start, strict=False)])
    asset = check(make_asset(mesh_of(np.concatenate([v for v, _ in parts]), faces), VOXELS, settings))
    assert asset.report.watertight and asset.report.volume > 0.1
    if settings.remesh:
        assert asset.report.components == 1


def test_a_soup_without_any_manifold_edge(settings: GenerationSettings) -> None:
    random = np.random.default_rng(1)
    points = random.random((40, 3)) * 0.6 - 0.3
    asset = check(make_asset(mesh_of(points, random.integers(0, 40, (400, 3))), VOXELS, settings))
    assert asset.report.non_manifold_edges == 0


@pytest.mark.parametrize("scale", [3, 1e15])
def test_coordinates_outside_the_cube(settings: GenerationSettings, scale: float) -> None:
    far = mesh_of(BALL.vertices.numpy() * scale + scale, BALL.faces.numpy())
    try:
        asset = check(make_asset(far, VOXELS, settings))
    except InputError as error:
        assert "object space" in str(error)
    else:
        assert int(asset.base_color[..., :3].amax(2).min()) > 5


def test_no_voxels(settings: GenerationSettings) -> None:
    nothing = PbrVoxels(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 6), GRID)
    with pytest.raises(EmptyResultError, match="no voxel"):
        make_asset(BALL, nothing, settings)


def test_an_atlas_too_small_for_the_charts() -> None:
    vertices, faces = specks(120_000)
    settings = GenerationSettings(decimation_target=2_000_000, texture_size=1024, remesh=False)
    with pytest.raises(InputError, match="texture_size"):
        make_asset(mesh_of(vertices, faces), VOXELS, settings)


def test_a_target_above_the_input(settings: GenerationSettings) -> None:
    asset = check(make_asset(BALL, VOXELS, settings.model_copy(update={"decimation_target": 2_000_000})))
    assert asset.report.vertices == pytest.approx(len(BALL.vertices), rel=0.05)
