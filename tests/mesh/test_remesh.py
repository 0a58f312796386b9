"""Remeshing of tattered surfaces, as a decoder makes them: arbitrary winding, holes, specks, inner walls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from trellis_core.errors import EmptyResultError, InputError
from trellis_core.mesh.distance import unsigned_distance
from trellis_core.mesh.remesh import solid_remesh
from trellis_core.mesh.solid.dual_marching_cubes import fill_pinches, patch_table, solid_quads, split_quads, triangles
from trellis_core.mesh.solid.enclosure import of_nodes
from trellis_core.mesh.solid.flood import find_spaces
from trellis_core.mesh.solid.lattice import Lattice
from trellis_core.mesh.topology import edges, face_areas, face_components
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.values import Mesh

Solid = Callable[[np.ndarray], np.ndarray]
R = 24


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Solid:
    return lambda p: np.linalg.norm(p - np.array(centre), axis=-1) - radius


def block(half: tuple[float, float, float], centre: tuple[float, float, float] = (0.01, 0.01, 0.01)) -> Solid:
    def distance(p: np.ndarray) -> np.ndarray:
        q = np.abs(p - np.array(centre)) - np.array(half)
        return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)

    return distance


def decoded(solid: Solid, resolution: int = R) -> Mesh:
    """The dual grid mesh of a distance function, as the shape decoder would give it: winding by axis only."""
    node = np.stack(np.meshgrid(*[np.arange(resolution + 1)] * 3, indexing="ij"), axis=-1)
    inside = solid(node / resolution - 0.5) < 0
    crossed = np.zeros((resolution,) * 3 + (3,), bool)
    for axis in range(3):
        far = [slice(1, None)] * 3
        far[axis] = slice(None, -1)
        crossed[..., axis] = inside[tuple(far)] != inside[1:, 1:, 1:]
    corner = np.stack(
        [inside[x : x + resolution, y : y + resolution, z : z + resolution] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    )
    coords = np.argwhere(corner.any(0) & ~corner.all(0))
    point = (coords + 0.5) / resolution - 0.5
    for _ in range(6):
        value = solid(point)
        slope = np.stack([(solid(point + 1e-4 * e) - solid(point - 1e-4 * e)) / 2e-4 for e in np.eye(3)], axis=1)
        point = point - value[:, None] * slope / np.maximum((slope**2).sum(1, keepdims=True), 0.1)
    inner = np.clip((point + 0.5) * resolution - coords, 0.01, 0.99)
    tensors = (coords.astype(np.int32), inner.astype(np.float32), crossed[tuple(coords.T)])
    return dual_grid_to_mesh(*map(torch.from_numpy, tensors), None, resolution)


def joined(*meshes: Mesh) -> Mesh:
    start = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + int(offset) for mesh, offset in zip(meshes, start[:-1], strict=True)]
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), torch.cat(faces).int())


def tattered(mesh: Mesh, share: float = 0.06, seed: int = 0) -> Mesh:
    """Without `share` of its quads, and with half of the others turned round."""
    random = np.random.default_rng(seed)
    quads = mesh.faces.reshape(-1, 2, 3)
    quads = quads[torch.from_numpy(random.random(len(quads)) >= share)]
    turned = torch.from_numpy(random.random(len(quads)) < 0.5)
    quads = torch.where(turned[:, None, None], quads[:, :, [0, 2, 1]], quads)
    return Mesh(mesh.vertices, quads.reshape(-1, 3))


def soup(mesh: Mesh) -> Mesh:
    """The same surface, its faces in another order: no longer to be read as a dual grid, so it is built anew."""
    return Mesh(mesh.vertices, mesh.faces[torch.from_numpy(np.random.default_rng(1).permutation(len(mesh.faces)))])


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.double()[mesh.faces.long()].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def is_closed_and_uniform(mesh: Mesh) -> bool:
    """Every edge is traversed once each way."""
    faces = mesh.faces.long()
    sides = torch.stack([faces, faces.roll(-1, 1)], 2).reshape(-1, 2)
    keys = sides[:, 0] * len(mesh.vertices) + sides[:, 1]
    back = sides[:, 1] * len(mesh.vertices) + sides[:, 0]
    return len(keys.unique()) == len(keys) and torch.equal(keys.sort().values, back.sort().values)


def furthest(a: Mesh, b: Mesh) -> float:
    """Largest distance in voxels from the vertices and face middles of `a` to `b`."""
    points = torch.cat([a.vertices, a.vertices[a.faces.long()].mean(1)])
    return float(unsigned_distance(points, b.vertices, b.faces).distance.max()) * R


SOLIDS = {
    "ball": ball(0.35),
    "block": block((0.31, 0.22, 0.38)),
    "thin plate": block((0.35, 0.35, 0.055)),
    "table": lambda p: np.minimum(block((0.3, 0.3, 0.06))(p), block((0.07, 0.07, 0.35), (0.1, 0.1, -0.05))(p)),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_an_intact_surface_keeps_its_vertices(name: str) -> None:
    mesh = decoded(SOLIDS[name])
    result = solid_remesh(mesh, R)
    assert is_closed_and_uniform(result)
    assert volume(result) > 0
    assert len(result.vertices) == len(mesh.vertices)
    nearest = torch.cdist(result.vertices.double(), mesh.vertices.double()).min(1).values
    assert (nearest < 1e-6).float().mean() > 0.9
    assert furthest(result, mesh) < 0.3 and furthest(mesh, result) < 0.3


@pytest.mark.parametrize("name", SOLIDS)
def test_a_tattered_surface_becomes_watertight(name: str) -> None:
    intact = decoded(SOLIDS[name])
    result = solid_remesh(tattered(intact), R)
    assert is_closed_and_uniform(result)
    assert volume(result) == pytest.approx(volume(solid_remesh(intact, R)), rel=0.02)
    assert furthest(result, intact) < 0.75 and furthest(intact, result) < 0.75


def test_a_long_slit_is_closed() -> None:
    intact = decoded(ball(0.35))
    middle = intact.vertices[intact.faces.long()].mean(1)
    slit = (middle[:, 2].abs() < 0.7 / R) & (middle[:, 0] > 0)  # a quarter to a half of the equator, one voxel high
    assert 20 < int(slit.sum()) < 200
    result = solid_remesh(Mesh(intact.vertices, intact.faces[~slit]), R)
    assert is_closed_and_uniform(result)
    assert volume(result) == pytest.approx(volume(solid_remesh(intact, R)), rel=0.02)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_wider_slit_is_closed_where_that_makes_the_mesh_bound_something(rebuilt: bool) -> None:
    resolution = 40
    intact = decoded(ball(0.35), resolution)
    middle = intact.vertices[intact.faces.long()].mean(1)
    slit = middle[:, 2].abs() < 1.8 / resolution
    torn = Mesh(intact.vertices, intact.faces[~slit])
    result = solid_remesh(soup(torn) if rebuilt else torn, resolution)
    assert is_closed_and_uniform(result)
    assert volume(result) == pytest.approx(volume(solid_remesh(intact, resolution)), rel=0.03)


def test_inner_walls_and_specks_are_dropped() -> None:
    speck = Mesh(torch.tensor([[0.45, 0.45, 0.45], [0.46, 0.45, 0.45], [0.45, 0.47, 0.46]]), torch.tensor([[0, 1, 2]]))
    outer = decoded(ball(0.35))
    result = solid_remesh(joined(outer, decoded(ball(0.2)), speck), R)
    assert face_components(result.faces.numpy()).max() == 0
    assert furthest(result, outer) < 0.3


def test_a_bowl_stays_a_sheet() -> None:
    mesh = decoded(ball(0.35))
    bowl = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces.long()].mean(1)[:, 2] < 0])
    result = solid_remesh(bowl, R)
    area = face_areas(result.vertices.numpy(), result.faces.numpy()).sum()
    assert area == pytest.approx(face_areas(bowl.vertices.numpy(), bowl.faces.numpy()).sum(), rel=0.03)
    counts = edges(result.faces.numpy()).counts
    assert counts.max() == 2 and (counts == 1).any()
    assert furthest(result, bowl) < 0.3


def openings(name: str) -> tuple[Mesh, float]:
    """A sheet with real openings, and its area."""
    if name == "vase":
        mesh = decoded(
            lambda p: np.maximum(np.hypot(p[..., 0] - 0.01, p[..., 1] - 0.01) - 0.2, np.abs(p[..., 2] - 0.003) - 0.4)
        )
        keep = lambda middle: middle[:, 2] < 0.37  # noqa: E731
    else:
        mesh = decoded(ball(0.35))
        keep = lambda middle: middle[:, 2] < 0.28  # noqa: E731
    mesh = Mesh(mesh.vertices, mesh.faces[keep(mesh.vertices[mesh.faces.long()].mean(1))])
    return mesh, float(face_areas(mesh.vertices.numpy(), mesh.faces.numpy()).sum())


@pytest.mark.parametrize("name", ["vase", "flask"])
def test_deep_vessels_keep_their_openings(name: str) -> None:
    mesh, area = openings(name)
    result = solid_remesh(mesh, R)
    assert face_areas(result.vertices.numpy(), result.faces.numpy()).sum() == pytest.approx(area, rel=0.03)
    assert (edges(result.faces.numpy()).counts == 1).any()


def test_a_solid_torn_wide_open_is_closed() -> None:
    intact = decoded(SOLIDS["block"])
    middle = intact.vertices[intact.faces.long()].mean(1)
    holes = torch.from_numpy(np.random.default_rng(5).choice(middle.numpy(), 14, replace=False))
    torn = torch.cdist(middle, holes).min(1).values < 2.2 / R  # too wide for gaps of two steps, even tripled
    assert 0.1 < float(torn.float().mean()) < 0.2
    result, whole = solid_remesh(Mesh(intact.vertices, intact.faces[~torn]), R), solid_remesh(intact, R)
    assert is_closed_and_uniform(result)
    assert volume(result) == pytest.approx(volume(whole), rel=0.03)
    assert furthest(result, whole) < 1.5


def test_two_bodies_a_slot_apart_stay_apart() -> None:
    slabs = [decoded(block((0.3, 0.3, 0.1), (0.01, 0.01, z))) for z in (-0.17, 0.17)]
    result = solid_remesh(joined(*slabs), R)
    assert face_components(result.faces.numpy()).max() == 1
    assert volume(result) == pytest.approx(sum(volume(solid_remesh(slab, R)) for slab in slabs), rel=0.01)


def test_the_result_does_not_depend_on_winding() -> None:
    mesh = decoded(SOLIDS["table"])
    turned = Mesh(mesh.vertices, mesh.faces[:, [0, 2, 1]])
    one, two = solid_remesh(mesh, R), solid_remesh(turned, R)
    assert torch.equal(one.vertices, two.vertices) and torch.equal(one.faces, two.faces)


def test_bad_input_is_refused() -> None:
    mesh = decoded(ball(0.3), 8)
    with pytest.raises(InputError):
        solid_remesh(mesh, 1)
    with pytest.raises(InputError):
        solid_remesh(mesh, 8, close_gaps=-1)
    with pytest.raises((InputError, EmptyResultError)):
        solid_remesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32)), 8)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_spaces_are_those_of_a_flood_node_by_node(share: float) -> None:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    lattice = Lattice(np.zeros(3), 1.0, (7, 8, 9))
    inner = np.zeros(lattice.shape, bool)
    inner[1:-2, 1:-2, 1:-2] = True
    edge = np.flatnonzero(np.repeat(inner.reshape(-1), 3))
    walls = edge[np.random.default_rng(1).random(len(edge)) < share]
    open_edges = [
        3 * np.arange(lattice.size).reshape(lattice.shape)[tuple(cut)] + axis for axis, cut in enumerate(_all_but_last())
    ]
    passable = np.setdiff1d(np.concatenate([e.reshape(-1) for e in open_edges]), walls)
    low, high = lattice.ends(passable)
    graph = coo_matrix((np.ones(len(low)), (low, high)), shape=(lattice.size, lattice.size))
    count, expected = connected_components(graph, directed=False)
    found = find_spaces(walls, lattice)
    assert found.count == count
    assert len(np.unique(np.stack([found.at(np.arange(lattice.size)), expected]), axis=1).T) == count
    assert (found.at(np.array([0])) == 0).all()


def _all_but_last() -> list[list[slice]]:
    return [[slice(None, -1) if k == axis else slice(None) for k in range(3)] for axis in range(3)]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_any_set_of_inside_nodes_has_a_manifold_surface(share: float) -> None:
    lattice = Lattice(np.zeros(3), 1.0, (9, 10, 11))
    inside = np.zeros(lattice.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = np.random.default_rng(3).random((7, 8, 9)) < share
    found = of_nodes(inside.reshape(-1), np.zeros(0, np.int64), lattice)
    surface, pattern = fill_pinches(found.surface(np.zeros(0, np.int64), lattice), lattice)
    quads = solid_quads(surface, pattern)
    vertices = lattice.unflatten(surface.cell[quads.cell]) + 0.5
    mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(triangles(quads.corner, split_quads(vertices, quads.corner))))
    assert is_closed_and_uniform(mesh)
    assert volume(mesh) >= inside.sum()  # a node stands for a voxel around it; nodes are only added


def test_patch_table() -> None:
    table = patch_table()
    assert table.count[0] == table.count[255] == 0
    assert table.count[1 << 0 | 1 << 7] == 2  # opposite corners: two patches
    assert table.count[1 << 0 | 1 << 3] == 1  # joined across the face between them
    assert table.count[255 ^ (1 << 0 | 1 << 3)] == 2
    assert ((table.of_edge >= 0).sum(1)[1:255] >= 3).all()


def apart(a: Mesh, b: Mesh) -> float:
    """Root mean square distance in voxels from the vertices of `a` to `b`."""
    return float(unsigned_distance(a.vertices, b.vertices, b.faces).distance.square().mean().sqrt()) * R


@pytest.mark.parametrize("name", SOLIDS)
def test_band_and_projection_say_how_far_vertices_leave_the_surface(name: str) -> None:
    mesh = decoded(SOLIDS[name])
    by_project = [apart(solid_remesh(mesh, R, band=4.0, project=share), mesh) for share in (0.0, 0.3, 0.7, 1.0)]
    assert by_project == sorted(by_project, reverse=True) and by_project[0] > 0.01 and by_project[-1] < 1e-6
    by_band = [apart(solid_remesh(mesh, R, band=band, project=0.0), mesh) for band in (0.0, 1.0, 2.0, 4.0)]
    assert by_band == sorted(by_band) and by_band[0] < 1e-6
    assert by_band[1] < 0.05


def test_a_little_smoothing_makes_quads_more_even() -> None:
    mesh = decoded(ball(0.35))
    spread = []
    for band in (0.0, 1.0, 2.0):
        found = solid_remesh(mesh, R, band=band, project=0.0)
        area = face_areas(found.vertices.numpy().astype(float), found.faces.numpy())
        spread.append(area.std() / area.mean())
    assert spread[1] < 0.9 * spread[0] and spread[2] < spread[1]


def test_the_wall_of_a_decoded_mesh_is_its_own_vertices_and_triangles() -> None:
    mesh = decoded(SOLIDS["table"])
    result = solid_remesh(mesh, R)
    corners = [np.sort(m.vertices.numpy()[m.faces.numpy()].sum(axis=2), axis=1) for m in (mesh, result)]
    rows = [np.sort(np.round(c, 5).view([("", c.dtype)] * 3).ravel()) for c in corners]
    assert len(rows[0]) == len(rows[1]) and np.allclose(rows[0].view(np.float32), rows[1].view(np.float32), atol=1e-5)


def test_voxels_of_vertices_that_lie_outside_of_them_are_believed() -> None:
    """Decoders may put a dual vertex up to half a voxel outside its voxel."""
    mesh = decoded(ball(0.35))
    moved = mesh.vertices + 0.4 / R * torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, mesh.vertices.shape)).float()
    result = solid_remesh(Mesh(moved, mesh.faces, mesh.cells), R)
    assert is_closed_and_uniform(result) and len(result.faces) == len(mesh.faces)
    assert torch.cdist(result.vertices.double(), moved.double()).min(1).values.max() < 1e-6


def test_thin_things_survive() -> None:
    """A plate of less than a voxel, a strand of one voxel, and a part of its own."""
    plate = decoded(block((0.35, 0.3, 0.3 / R)))
    strand = decoded(block((0.4, 0.55 / R, 0.55 / R)))
    for thin in (plate, strand):
        result = solid_remesh(thin, R)
        assert furthest(thin, result) < 0.5 and furthest(result, thin) < 0.5
    pair = solid_remesh(joined(decoded(ball(0.1, (-0.3, 0, 0))), decoded(ball(0.1, (0.3, 0, 0)))), R)
    assert face_components(pair.faces.numpy()).max() == 1
