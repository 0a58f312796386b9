"""Remesh & Decimate on meshes that were not made here: any unit, any place, few faces or many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.gltf_files import volume
from trellis_core.asset.asset import refine_loaded
from trellis_core.errors import EmptyResultError, InputError
from trellis_core.mesh.own_size import decoded_resolution, fitted, judged_resolution
from trellis_core.settings import GenerationSettings
from trellis_core.values import Mesh

trimesh = pytest.importorskip("trimesh")
MAKE = trimesh.creation
SHAPES = {
    "cube of 12 faces": lambda: MAKE.box((1, 1, 1)),
    "flat box": lambda: MAKE.box((1, 0.6, 0.1)),
    "cylinder": lambda: MAKE.cylinder(0.3, 1.0, sections=24),
    "torus": lambda: MAKE.torus(0.4, 0.1),
}


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int32)))


@pytest.mark.parametrize("size, place", [(1e-3, 0), (1.0, 3), (10.0, 0), (1e4, 2e4)])
@pytest.mark.parametrize("remesh", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_volume_extent_and_place_stay(shape: str, remesh: bool, size: float, place: float) -> None:
    solid = SHAPES[shape]()
    vertices = solid.vertices * size + place
    done = refine_loaded(mesh_of(vertices, solid.faces), GenerationSettings(remesh=remesh, decimation_target=5000), 64)
    after = done.vertices.numpy().astype(np.float64)
    assert volume(after - place, done.faces.numpy()) == pytest.approx(solid.volume * size**3, rel=0.01)
    voxel = np.ptp(vertices, axis=0).max() / 64
    for end in (np.min, np.max):
        np.testing.assert_allclose(end(after, axis=0), end(vertices, axis=0), atol=voxel)


def test_the_grid_is_judged_by_the_meshs_own_edges() -> None:
    """However large it is; few large triangles get a grid that keeps their outline all the same."""
    for size in (1e-3, 1e4):
        cube, ball = (fitted(mesh_of(m.vertices * size, m.faces)).mesh for m in (MAKE.box((1, 1, 1)), MAKE.icosphere(5, 1.0)))
        assert judged_resolution(cube) == 256
        assert judged_resolution(ball) == 256
        assert judged_resolution(Mesh(ball.vertices / 10, ball.faces)) > 256


def test_a_decoded_mesh_is_known_by_its_grid() -> None:
    side = 64
    blocks = trimesh.voxel.ops.multibox(np.argwhere(np.ones((3, 2, 2))) + 0.5, pitch=1)
    assert decoded_resolution(mesh_of(np.asarray(blocks.vertices) / side, np.asarray(blocks.faces))) is None
    steps = np.stack(np.meshgrid(*[np.arange(4)] * 2, indexing="ij"), -1).reshape(-1, 2)
    place = (np.concatenate([steps, np.full((16, 1), 5)], 1) + 0.5) / side - 0.5
    at = np.arange(16).reshape(4, 4)
    quads = np.stack([at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]], -1).reshape(-1, 4)
    sheet = mesh_of(place, quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3))
    assert decoded_resolution(sheet) == side


@pytest.mark.parametrize("resolution", [3, 5000, -1])
def test_a_grid_out_of_range_is_told(resolution: int) -> None:
    cube = MAKE.box((1, 1, 1))
    with pytest.raises(InputError, match="16 to 2048"):
        refine_loaded(mesh_of(cube.vertices, cube.faces), GenerationSettings(), resolution)


def test_a_mesh_without_size_is_told() -> None:
    with pytest.raises(EmptyResultError, match="no face with an area"):
        refine_loaded(mesh_of(np.ones((3, 3)), np.array([[0, 1, 2]])), GenerationSettings())
