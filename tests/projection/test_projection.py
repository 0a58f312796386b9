"""The picture's pixels on the surface: its camera is found, small misfits are mended, and only what it shows changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trellis_core.projection.camera import PictureCamera, look
from trellis_core.projection.images import blur, distance_inside, masked_blur, sample
from trellis_core.projection.project import View, project_pictures
from trellis_core.projection.register import register
from trellis_core.projection.search import Match, Model, find_camera

Array = np.ndarray
BOX = (0.05, 0.05, 0.95, 0.95)


def creature(rings: int = 40) -> tuple[Array, Array, Array]:
    """A lopsided body with a nose and a tail: vertices, faces, and a colour for each vertex."""
    v, u = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False), indexing="ij")
    way = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], axis=-1).reshape(-1, 3)

    def bump(direction: tuple[float, float, float], height: float, width: float) -> Array:
        toward = np.array(direction) / np.linalg.norm(direction)
        return height * np.exp(-((1 - way @ toward) / width))

    radius = 0.25 + bump((0, -1, 0.3), 0.2, 0.05) + bump((0.6, 0.8, 0.6), 0.15, 0.08) + bump((1, 0, -0.4), 0.1, 0.1)
    points = way * radius[:, None] * np.array([1.0, 0.8, 1.1])
    row, column = np.arange(rings - 1)[:, None], np.arange(2 * rings)[None]
    a, b = row * 2 * rings + column, row * 2 * rings + (column + 1) % (2 * rings)
    faces = np.concatenate([np.stack([a, a + 2 * rings, b], -1), np.stack([b, a + 2 * rings, b + 2 * rings], -1)]).reshape(
        -1, 3
    )
    colors = 0.5 + 0.4 * np.sin(7 * way + np.array([0.0, 1.0, 2.0]))
    return points, faces, colors


def shot(model: Model, camera: PictureCamera, size: int = 192) -> Array:
    """What the camera sees, under a lamp."""
    seen = look(camera, model.vertices, model.faces, size)
    corner = model.vertices[model.faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)
    lamp = 0.6 + 0.4 * np.clip(np.abs(normal[seen.face] @ np.array([0.4, -0.6, 0.7])), 0, 1)
    image = np.zeros((size * size, 4), np.float32)
    image[seen.pixel, :3] = seen.blend(model.colors, model.faces) * lamp[:, None]
    image[seen.pixel, 3] = 1
    return image.reshape(size, size, 4)


@pytest.mark.parametrize(("azimuth", "elevation", "perspective"), [(20, 15, 0.3), (-130, 40, 0.5), (95, -8, 0.15)])
def test_the_camera_of_a_picture_is_found_to_a_degree(azimuth: float, elevation: float, perspective: float) -> None:
    model = Model(*creature())
    true = PictureCamera(azimuth, elevation, 3.0, perspective).fitted(model.vertices, BOX)
    found = find_camera(model, shot(model, true))
    turned = np.degrees(np.arccos(np.clip(found.camera.axes[2] @ true.axes[2], -1, 1)))
    assert turned < 1.0
    assert found.confidence > 0.9


def test_a_picture_of_something_else_is_not_trusted() -> None:
    model = Model(*creature())
    other = np.zeros((128, 128, 4), np.float32)
    other[8:120, 60:70] = other[60:70, 8:120] = (0.1, 0.9, 0.1, 1)  # a cross
    assert find_camera(model, other).confidence < 0.5


def test_directions_are_those_that_people_say() -> None:
    """The front of an object looks to -y; its left is +x, and lies at the right of a picture from the front."""
    spots = np.array([[0.4, 0, 0], [0, -0.4, 0], [0, 0, 0.4]])
    front, _ = PictureCamera(0, 0, 0, 0.3).project(spots)
    assert front[0, 0] > 0.6 and abs(front[1, 0] - 0.5) < 1e-9 and front[2, 1] < 0.4
    assert np.allclose(PictureCamera(90, 0).axes[2], (1, 0, 0)) and np.allclose(PictureCamera(0, 90).axes[2], (0, 0, 1))
    _, near = PictureCamera(180, 0, 0, 0.3).project(np.array([[0, 0.4, 0], [0, -0.4, 0]]))
    assert near[0] > near[1]


def test_a_small_shift_is_registered() -> None:
    model = Model(*creature())
    camera = PictureCamera(20, 15, 0, 0.3).fitted(model.vertices, (0.1, 0.1, 0.9, 0.9))
    image = shot(model, camera)
    moved = shot(model, replace(camera, x=camera.x + 4 / 192))
    field = register(image, moved, 1 / 64)
    inside = image[..., 3] > 0
    assert np.median(field[inside][:, 0]) == pytest.approx(4, abs=1.0)
    assert abs(np.median(field[inside][:, 1])) < 0.7


def textured(size: int = 512) -> tuple[Array, Array, Array, Array, Array, Array]:
    """A half sphere's front and a half sphere's back, each in a half of the atlas: mesh, coarse and fine texture."""
    n = 40
    x, z = np.meshgrid(np.linspace(-0.7, 0.7, n), np.linspace(-0.7, 0.7, n))
    depth = np.sqrt(np.maximum(1 - x**2 - z**2, 0)) * 0.45
    vertices, normals, uvs, faces = [], [], [], []
    for half, side in enumerate((-1, 1)):
        point = np.stack([0.45 * x, side * depth, 0.45 * z], axis=-1).reshape(-1, 3)
        vertices.append(point)
        normals.append(point / np.linalg.norm(point, axis=1, keepdims=True))
        uvs.append(
            np.stack([(x / 1.4 + 0.5) * 0.45 + 0.025 + 0.5 * half, (z / 1.4 + 0.5) * 0.9 + 0.05], axis=-1).reshape(-1, 2)
        )
        a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)[None]).reshape(-1) + half * n * n
        quad = np.stack([a, a + 1, a + n, a + 1, a + n + 1, a + n], axis=-1).reshape(-1, 3)
        faces.append(quad if side < 0 else quad[:, ::-1])
    grid = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(grid, grid)
    coarse = np.stack([0.3 + 0.4 * u, 0.5 + 0 * u, 0.3 + 0.3 * v, np.ones_like(u)], axis=-1)
    checks = np.where((np.floor(u * 40) + np.floor(v * 40)) % 2 > 0, 0.15, -0.15)[..., None]
    fine = np.concatenate([coarse[..., :3] + checks, coarse[..., 3:]], axis=-1)
    as_bytes = [np.rint(255 * image).astype(np.uint8) for image in (coarse, fine)]
    mesh = (np.concatenate(part).astype(np.float32) for part in (vertices, normals, uvs))
    return *mesh, np.concatenate(faces), *as_bytes


def image_of(vertices: Array, faces: Array, uvs: Array, texture: Array, camera: PictureCamera, size: int = 320) -> Array:
    seen = look(camera, vertices, faces, size)
    image = np.zeros((size * size, 4), np.float32)
    image[seen.pixel, :3] = sample(texture[..., :3] / 255.0, seen.blend(uvs, faces) * len(texture))
    image[seen.pixel, 3] = 1
    return image.reshape(size, size, 4)


def error(a: Array, b: Array) -> float:
    both = (a[..., 3] > 0) & (b[..., 3] > 0)
    return float(((a[both] - b[both]) ** 2).mean())


def test_detail_of_the_picture_comes_onto_the_texture_and_only_where_it_is_seen() -> None:
    vertices, normals, uvs, faces, coarse, fine = textured()
    camera = PictureCamera(8, 10, 0, 0.3).fitted(vertices, BOX)
    picture = image_of(vertices, faces, uvs, fine, camera)
    match = Match(camera, 1.0, 0.0)  # found by outline alone the camera of a ball would be anybody's guess
    made = project_pictures(vertices, faces, normals, uvs, coarse, [View(picture)], voxel=1 / 24, matches=[match])
    assert made.used == (True,) and made.base_color.shape == coarse.shape
    for aside, gain in ((0, 4.0), (15, 3.0), (30, 2.0)):  # times less square error: 6, 4.8 and 3 dB
        other = replace(camera, azimuth=camera.azimuth + aside)
        wanted = image_of(vertices, faces, uvs, fine, other)
        before, after = (error(image_of(vertices, faces, uvs, t, other), wanted) for t in (coarse, made.base_color))
        assert after < before / gain
    back = made.base_color[:, 300:490].astype(int) - coarse[:, 300:490]
    assert np.abs(back[40:470]).max() <= 1


def test_light_of_the_picture_is_left_behind_unless_wanted() -> None:
    vertices, normals, uvs, faces, coarse, fine = textured()
    camera = PictureCamera(0, 0, 0, 0.3).fitted(vertices, BOX)
    picture = image_of(vertices, faces, uvs, fine, camera)
    picture[..., :3] *= 0.5
    given = dict(voxel=1 / 24)
    kept = project_pictures(vertices, faces, normals, uvs, coarse, [View(picture, 0.0, 0.0)], **given)
    raw = project_pictures(vertices, faces, normals, uvs, coarse, [View(picture, 0.0, 0.0)], raw=True, **given)
    middle = (slice(200, 312), slice(100, 160))
    mean = [image[middle][..., :3].mean() / coarse[middle][..., :3].mean() for image in (kept.base_color, raw.base_color)]
    assert mean[0] == pytest.approx(1, abs=0.05) and mean[1] == pytest.approx(0.5, abs=0.08)


def test_no_detail_changes_nothing_and_the_same_input_gives_the_same_bytes() -> None:
    vertices, normals, uvs, faces, coarse, fine = textured(256)
    picture = image_of(vertices, faces, uvs, fine, PictureCamera(8, 10, 0, 0.3).fitted(vertices, BOX), 128)
    views = [View(picture, 8.0, 10.0)]
    none = project_pictures(vertices, faces, normals, uvs, coarse, views, voxel=1 / 24, detail=0.0)
    assert np.abs(none.base_color[20:230, 15:110].astype(int) - coarse[20:230, 15:110]).max() <= 1
    first = project_pictures(vertices, faces, normals, uvs, coarse, views, voxel=1 / 24)
    again = project_pictures(vertices, faces, normals, uvs, coarse, views, voxel=1 / 24, matches=first.matches)
    assert (first.base_color == again.base_color).all() and (first.base_color != none.base_color).any()


def test_image_operations() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((40, 50, 2)).astype(np.float32)
    assert blur(noise, 2.0).std() < 0.3 * noise.std() and blur(noise, 2.0).mean() == pytest.approx(noise.mean(), abs=0.02)
    mask = np.zeros((40, 50), np.float32)
    mask[10:30, 10:30] = 1
    assert masked_blur(np.where(mask[..., None] > 0, 0.7, 0.0), mask, 3.0)[12, 12] == pytest.approx(0.7, abs=1e-3)
    assert distance_inside(mask > 0)[20, 12] == 3 and distance_inside(mask > 0)[5, 5] == 0
    assert distance_inside(np.ones((5, 5), bool))[0, 0] == 1
    assert np.allclose(sample(noise, np.array([[3.5, 7.5]])), noise[7, 3])
