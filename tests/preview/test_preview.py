"""The software renderer: what hides what, where textures land, transparency, light, robustness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.context import RunContext
from trellis_core.errors import Cancelled
from trellis_core.mesh.scanline import visible_layers
from trellis_core.preview import Camera, Material, contact_sheet, render

FRONT = Camera(azimuth=0, elevation=0)
SIZE = 48


def plane(z: float = 0.0, half: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """A square facing the viewer; its corners double as texture coordinates (u right, v down)."""
    corners = np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]) * half
    return np.column_stack([corners, np.full(4, z)]), np.array([[0, 2, 1], [0, 3, 2]])


UV = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
RED, BLUE = (200, 20, 20), (20, 20, 200)


def sphere(rings: int = 24) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.arange(2 * rings) * np.pi / rings, indexing="ij")
    points = np.stack([np.sin(v) * np.sin(u), np.cos(v), np.sin(v) * np.cos(u)], axis=-1).reshape(-1, 3)
    i, j = (a.ravel() for a in np.meshgrid(np.arange(rings), np.arange(2 * rings), indexing="ij"))
    here, right = i * 2 * rings + j, i * 2 * rings + (j + 1) % (2 * rings)
    below, diagonal = here + 2 * rings, right + 2 * rings
    return points, np.concatenate([np.stack(t, 1) for t in ((here, below, diagonal), (here, diagonal, right))])


def is_red(pixel: np.ndarray) -> bool:
    return int(pixel[0]) > int(pixel[2]) + 40


@pytest.mark.parametrize("flip", [False, True])
def test_the_nearer_surface_hides_the_farther(flip: bool) -> None:
    (near, faces), (far, _) = plane(0.3), plane(-0.3)
    order = (near, far) if not flip else (far, near)
    colors = np.repeat(np.array([RED, BLUE] if not flip else [BLUE, RED]) / 255, 4, axis=0)
    picture = render(np.concatenate(order), np.concatenate([faces, faces + 4]), vertex_colors=colors, camera=FRONT, size=SIZE)
    assert is_red(picture[SIZE // 2, SIZE // 2])


@given(st.lists(st.tuples(st.floats(1, 15), st.floats(1, 15)), min_size=5, max_size=5), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_neighbouring_triangles_leave_no_gap_and_never_overlap(points: list[tuple[float, float]], seed: int) -> None:
    """A fan around a point inside a convex polygon tiles it."""
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 7))
    rim = 8 + 7.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    hub = rim.mean(0) + 0.2 * (np.array(points).mean(0) - 8) / 8
    fan = np.array([[0, 1 + k, 1 + (k + 1) % 7] for k in range(7)])
    layers = list(visible_layers(np.concatenate([hub[None], rim]), np.ones(8), fan, 16))
    assert len(layers) <= 1, "two triangles claim the same pixel"
    x, y = np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5)
    a, b = rim, np.roll(rim, -1, axis=0)
    edge = b - a
    side = edge[:, 0] * (y[..., None] - a[:, 1]) - edge[:, 1] * (x[..., None] - a[:, 0])
    inside = set(np.flatnonzero((side > 1e-9).all(-1)))
    assert inside <= set(layers[0].pixel if layers else ()), "a pixel inside is not covered"


def test_textures_follow_the_perspective() -> None:
    vertices, faces = plane()
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:, :32], texture[:, 32:] = RED, BLUE
    camera = Camera(azimuth=60, elevation=0, fov=60)
    picture = render(vertices, faces, uvs=UV, material=Material(texture), camera=camera, size=128)
    row = picture[64].astype(int)
    covered = np.flatnonzero(np.abs(row[:, 0] - row[:, 2]) > 40)
    boundary = np.flatnonzero(row[covered, 0] < row[covered, 2])[0]
    # The middle of the square is the middle of the picture, not the middle of the square's outline.
    assert abs(covered[boundary] - 64) <= 1
    assert abs((covered[0] + covered[-1]) / 2 - 64) > 3


def test_texture_v_runs_down() -> None:
    vertices, faces = plane()
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4], texture[4:] = RED, BLUE
    picture = render(vertices, faces, uvs=UV, material=Material(texture), camera=FRONT, size=SIZE)
    assert is_red(picture[SIZE // 2 - 6, SIZE // 2]) and not is_red(picture[SIZE // 2 + 6, SIZE // 2])


def test_what_is_transparent_shows_what_lies_behind() -> None:
    (near, faces), (far, _) = plane(0.3), plane(-0.3)
    colors = np.array([[0.0, 0, 1, 0]] * 4 + [[0.8, 0.1, 0.1, 1]] * 4)
    both = np.concatenate([near, far]), np.concatenate([faces, faces + 4])
    assert is_red(render(*both, vertex_colors=colors, camera=FRONT, size=SIZE)[SIZE // 2, SIZE // 2])
    half = colors.copy()
    half[:4, 3] = 0.5
    mixed = render(*both, vertex_colors=half, camera=FRONT, size=SIZE)[SIZE // 2, SIZE // 2].astype(int)
    assert mixed[0] > 60 and mixed[2] > 60


def test_a_transparent_background_is_clear_above_and_solid_on_the_object() -> None:
    picture = render(*sphere(), size=SIZE, background=None)
    assert picture.shape == (SIZE, SIZE, 4)
    assert picture[0, 0, 3] == 0 and picture[SIZE // 2, SIZE // 2, 3] == 255


def test_light_comes_from_above_and_a_shadow_lies_below() -> None:
    picture = render(*sphere(), size=64, background=(240, 240, 240)).astype(int).mean(-1)
    assert picture[16, 32] > picture[56, 32] + 25
    assert picture[62, 32] < 235 and picture[1, 1] == 240


def test_metal_mirrors_the_studio_and_paint_does_not() -> None:
    chrome, paint = (
        render(*sphere(), material=Material(metallic=m, roughness=r), size=64).astype(float).mean(-1)[20:44, 20:44]
        for m, r in ((1.0, 0.05), (0.0, 0.9))
    )
    assert chrome.std() > 2 * paint.std()


def test_both_sides_of_a_surface_are_lit_alike() -> None:
    vertices, faces = sphere(8)
    out, inward = (render(vertices, f, size=SIZE).astype(int) for f in (faces, faces[:, ::-1]))
    assert np.abs(out - inward).max() <= 2


def test_the_camera_goes_around_as_documented() -> None:
    vertices, faces = sphere(8)
    colors = np.where(vertices[:, :1] > 0.2, np.array(RED) / 255, np.array(BLUE) / 255)
    right = render(vertices, faces, vertex_colors=colors, camera=Camera(90, 0), size=SIZE)
    left = render(vertices, faces, vertex_colors=colors, camera=Camera(-90, 0), size=SIZE)
    assert is_red(right[SIZE // 2, SIZE // 2]) and not is_red(left[SIZE // 2, SIZE // 2])


def test_size_and_place_of_the_object_do_not_matter() -> None:
    vertices, faces = sphere(8)
    moved = render(vertices * 250 + [1000, -40, 3], faces, size=SIZE).astype(int)
    assert np.abs(render(vertices, faces, size=SIZE).astype(int) - moved).mean() < 0.5


def test_the_same_input_gives_the_same_bytes() -> None:
    assert render(*sphere(8), size=SIZE).tobytes() == render(*sphere(8), size=SIZE).tobytes()


def test_nothing_to_draw_and_broken_vertices_are_survived() -> None:
    empty = render(np.zeros((0, 3)), np.zeros((0, 3), int), size=16, background=(10, 20, 30))
    assert (empty == (10, 20, 30)).all()
    vertices, faces = sphere(6)
    broken = np.concatenate([vertices, [[np.nan] * 3]])
    extra = np.concatenate([faces, [[0, 1, len(vertices)], [0, 0, 0]]])
    assert np.array_equal(render(broken, extra, size=SIZE), render(vertices, faces, size=SIZE))


def test_cancel_is_heard() -> None:
    with pytest.raises(Cancelled):
        render(*sphere(6), size=16, ctx=RunContext(is_cancelled=lambda: True))


def test_a_contact_sheet_holds_its_pictures_and_labels() -> None:
    red, wide = np.full((20, 20, 3), RED, np.uint8), np.full((10, 40, 4), (*BLUE, 255), np.uint8)
    plain = np.asarray(contact_sheet([[red, wide], [red]], cell=64))
    labelled = np.asarray(contact_sheet([[red, wide], [red]], [["input", "view"], ["again"]], cell=64))
    assert labelled.shape[0] > plain.shape[0] and labelled.shape[1] == plain.shape[1]
    count = (np.abs(plain.astype(int) - RED).max(-1) < 3).sum()
    assert count == pytest.approx(2 * 64 * 64, rel=0.02)
    assert (labelled < 120).all(-1).any(), "no dark letters on the sheet"
