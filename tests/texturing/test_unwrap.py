"""Charts, their projections and their places in the atlas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.solid_objects import ball, grid_surface, torus
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, InputError
from trellis_core.mesh.topology import face_areas, face_normals
from trellis_core.texturing.charts import ChartOptions, cut_charts
from trellis_core.texturing.pack import pack_charts
from trellis_core.texturing.raster import Interpolator, Texels, rasterise
from trellis_core.texturing.surface import Surface
from trellis_core.texturing.unwrap import Unwrap, texel_corners, unwrap

SIZE = 256


def lumpy(rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = ball(0.35, rounds)
    waves = 1 + 0.25 * np.sin(18 * vertices[:, :1]) * np.cos(14 * vertices[:, 1:2])
    return (vertices * waves).astype(np.float32), faces


def fine_cube(steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = ball(1.0, int(np.log2(steps)))
    return (vertices / np.abs(vertices).max(1, keepdims=True) * 0.4).astype(np.float32), faces


def helix(turns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A spiral ramp: seen from above its turns hide each other, though every face looks up."""
    angle = np.linspace(0, 2 * np.pi * turns, 40 * turns)
    reach = np.linspace(0.1, 0.4, 6)
    u, v = np.meshgrid(angle, reach, indexing="ij")
    points = np.stack([v * np.cos(u), v * np.sin(u), u * 0.02], axis=-1).reshape(-1, 3)
    return points.astype(np.float32), grid_surface(len(angle), 6, False, False)


def signed_uv_areas(flat: Unwrap) -> np.ndarray:
    a, b, c = (flat.uvs[flat.faces[:, k]].astype(np.float64) for k in range(3))
    ab, ac = b - a, c - a
    return (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]) / 2


SURFACES = {"ball": ball, "torus": torus, "lumpy": lumpy, "cube": fine_cube, "helix": helix}


@pytest.mark.parametrize("name", SURFACES)
def test_charts_fill_the_atlas_without_overlap_or_mirrors(name: str) -> None:
    vertices, faces = SURFACES[name]()
    flat = unwrap(Surface.of(vertices, faces), SIZE)
    assert flat.uvs.min() > 0 and flat.uvs.max() < 1
    np.testing.assert_array_equal(flat.source[flat.faces], faces)
    area = signed_uv_areas(flat)
    assert (area < 0).all(), "v points down: unmirrored charts have negative areas"
    assert abs(area).sum() > (0.35 if name == "helix" else 0.42), "padding takes its share of so small an atlas"
    assert flat.overlap <= 5e-4 * len(flat.texels.number)
    size_of_texels = np.sqrt(abs(area) / face_areas(vertices, faces))
    assert np.quantile(size_of_texels, 0.99) / np.median(size_of_texels) < 1.6, "texels are of one size everywhere"


def test_charts_keep_their_distance() -> None:
    flat = unwrap(Surface.of(*lumpy()), SIZE, padding=4)
    owner = torch.full((SIZE, SIZE), -1, dtype=torch.int32)
    owner.view(-1)[flat.texels.number] = torch.from_numpy(flat.chart)[flat.texels.face]
    for rows, columns in ((0, 1), (1, 0), (2, 2), (3, 0), (0, 3), (3, 2)):
        a, b = owner[rows:, columns:], owner[: SIZE - rows, : SIZE - columns]
        assert not ((a != b) & (a >= 0) & (b >= 0)).any(), (rows, columns)


def test_a_cube_has_six_charts_and_a_box_in_pieces_one_each() -> None:
    chart, axis = cut_charts(Surface.of(*fine_cube()))
    assert len(axis) == 6
    assert sorted(np.abs(axis).max(1).round(6).tolist()) == [1.0] * 6
    normal = face_normals(*fine_cube())
    assert ((normal * axis[chart]).sum(1) > 0).all()


def test_every_axis_sees_its_faces_from_the_front() -> None:
    for surface in (lumpy(), torus(), helix()):
        chart, axis = cut_charts(Surface.of(*surface))
        normal = face_normals(*surface)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        assert (normal * axis[chart]).sum(1).min() > 0.03


def test_options_steer_the_charts() -> None:
    surface = lumpy()
    count = {
        "default": len(cut_charts(Surface.of(*surface))[1]),
        "narrow": len(cut_charts(Surface.of(*surface), ChartOptions(angle_threshold_deg=40))[1]),
        "ragged": len(cut_charts(Surface.of(*surface), ChartOptions(smooth_strength=0))[1]),
    }
    assert count["narrow"] > count["default"]
    smooth = cut_charts(Surface.of(*surface))[0]
    assert not np.array_equal(smooth, cut_charts(Surface.of(*surface), ChartOptions(refine_iterations=1))[0])
    assert not np.array_equal(smooth, cut_charts(Surface.of(*surface), ChartOptions(smooth_strength=0))[0])
    joined = cut_charts(Surface.of(*surface), ChartOptions(smooth_strength=0, global_iterations=10))[1]
    assert len(joined) <= count["ragged"]


def test_the_result_is_the_same_every_time() -> None:
    first, second = unwrap(Surface.of(*lumpy()), SIZE), unwrap(Surface.of(*lumpy()), SIZE)
    assert first.uvs.tobytes() == second.uvs.tobytes() and first.faces.tobytes() == second.faces.tobytes()


def test_tiny_and_degenerate_surfaces_unwrap() -> None:
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    flat = unwrap(Surface.of(triangle, np.array([[0, 1, 2]])), 64)
    assert abs(signed_uv_areas(flat)).sum() > 0.3
    needle = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0, 0], [0, 1, 0]], np.float32)
    flat = unwrap(Surface.of(needle, np.array([[0, 2, 1], [0, 1, 3]])), 64)
    assert np.isfinite(flat.uvs).all()


def test_ten_thousand_specks_fit_or_are_refused() -> None:
    count = 900
    place = np.random.default_rng(0).random((count, 1, 3)).astype(np.float32)
    corners = (place + 1e-3 * np.eye(3, dtype=np.float32)).reshape(-1, 3)
    faces = np.arange(len(corners)).reshape(-1, 3)
    flat = unwrap(Surface.of(corners, faces), 256)
    assert len(flat.axis) == count and flat.overlap == 0
    with pytest.raises(InputError, match="texture_size"):
        unwrap(Surface.of(corners, faces), 64)


def test_packing_long_and_mixed_shapes_does_not_overlap() -> None:
    """Rectangles of all proportions, one as wide as the atlas."""
    rng = np.random.default_rng(3)
    sides = np.concatenate([rng.uniform(0.02, 0.4, (60, 2)), [[0.01, 1.5]], rng.uniform(1e-4, 1e-2, (40, 2))])
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    points = (unit * sides[:, None]).reshape(-1, 2)
    owner = np.repeat(np.arange(len(sides)), 4)
    first = np.arange(len(sides))[:, None] * 4
    rim = np.stack([first + [0, 1, 2, 3], first + [1, 2, 3, 0]], axis=-1).reshape(-1, 2)
    texels = pack_charts(points, owner, rim, 512, 2)[0].reshape(-1, 4, 2)
    low, high = np.floor(texels.min(1)), np.ceil(texels.max(1))
    assert low.min() >= 1 and high.max() <= 511
    apart = (low[:, None] >= high[None] + 2) | (high[:, None] + 2 <= low[None])
    assert (apart.any(-1) | np.eye(len(sides), dtype=bool)).all()
    extent = texels.max(1) - texels.min(1)
    scale = np.sqrt(extent.prod(1) / sides.prod(1))
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)


def test_unwrapping_stops_when_told() -> None:
    with pytest.raises(Cancelled):
        unwrap(Surface.of(*lumpy()), SIZE, ctx=RunContext(is_cancelled=lambda: True))


def brute_force_cover(corners: np.ndarray, size: int) -> set[tuple[int, int]]:
    """(texel, face) of all centres strictly inside triangles, in float64."""
    centre = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2) + 0.5
    covered = set()
    for face, triangle in enumerate(corners.astype(np.float64)):
        ends = np.roll(triangle, -1, axis=0)
        cross = [(b - a)[0] * (centre - a)[:, 1] - (b - a)[1] * (centre - a)[:, 0] for a, b in zip(triangle, ends, strict=True)]
        inside = (np.min(cross, axis=0) > 1e-4) | (np.max(cross, axis=0) < -1e-4)
        covered |= {(int(texel), face) for texel in np.flatnonzero(inside)}
    return covered


def test_the_rasteriser_covers_exactly_the_centres_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_core.texturing.raster._SPANS", 7)
    corners = np.random.default_rng(2).uniform(-4, 28, (60, 3, 2)).astype(np.float32)
    parts = list(rasterise(torch.from_numpy(corners), 24))
    got = {pair for part in parts for pair in zip(part.number.tolist(), part.face.tolist(), strict=True)}
    expected = brute_force_cover(corners, 24)
    assert expected <= got and len(got - expected) <= 2
    assert len(parts) > 10


def test_shared_edges_are_covered_once() -> None:
    rng = np.random.default_rng(4)
    points = np.stack(np.meshgrid(np.arange(9), np.arange(9), indexing="ij"), axis=-1).reshape(-1, 2) * 7.0
    points += rng.uniform(-2, 2, points.shape) * ((points > 0) & (points < 56))
    corners = torch.from_numpy(points[grid_surface(9, 9, False, False)].astype(np.float32))
    numbers = torch.cat([part.number for part in rasterise(corners, 56)])
    assert torch.equal(numbers.sort().values, torch.arange(56 * 56))


def test_interpolation_is_affine_inside_triangles() -> None:
    corners = torch.tensor([[[2.0, 1.0], [30.0, 5.0], [8.0, 28.0]]])
    weights = torch.tensor([[0.5, 2.0], [-1.0, 0.25]])
    values = corners @ weights + 3
    (texels,) = rasterise(corners, 32)
    centre = torch.stack([texels.number % 32, texels.number // 32], dim=1) + 0.5
    torch.testing.assert_close(Interpolator(corners, values)(texels, 32), centre @ weights + 3, atol=1e-4, rtol=1e-5)
    flat = torch.zeros(1, 3, 2)
    needle = Interpolator(flat, torch.arange(6.0).view(1, 3, 2))
    assert needle(Texels(torch.tensor([5]), torch.tensor([0])), 32).isfinite().all()


def test_corners_are_measured_in_texels() -> None:
    uvs = np.array([[0.5, 0.25], [1, 0], [0, 1]], np.float32)
    assert texel_corners(uvs, np.array([[0, 1, 2]]), 8)[0].tolist() == [[4, 2], [8, 0], [0, 8]]


def test_charts_without_an_outline_find_a_place() -> None:
    """A closed sliver without area between real charts."""
    vertices, faces = ball(0.3, 2)
    line = np.array([[0.4, 0.4, 0], [0.4, 0.4, 0.1], [0.4, 0.4, 0.2], [0.4, 0.4, 0.05]], np.float32)
    closed = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]) + len(vertices)
    flat = unwrap(Surface.of(np.concatenate([vertices, line]), np.concatenate([faces, closed])), SIZE)
    assert flat.uvs.min() > 0 and flat.uvs.max() < 1
    assert flat.overlap == 0


def test_thin_wires_across_space_do_not_need_a_huge_sketch() -> None:
    rng = np.random.default_rng(5)
    ends = rng.uniform(-0.5, 0.5, (300, 2, 3))
    vertices = np.concatenate([ends, ends[:, :1] + 1e-5 * rng.normal(size=(300, 1, 3))], axis=1).reshape(-1, 3)
    flat = unwrap(Surface.of(vertices.astype(np.float32), np.arange(900).reshape(-1, 3)), SIZE)
    assert len(flat.axis) == 300 and 0 < flat.uvs.min() and flat.uvs.max() < 1
