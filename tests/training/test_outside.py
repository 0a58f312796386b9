"""The evaluations on pictures and models from outside: their measures, on things that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("numba")
trimesh = pytest.importorskip("trimesh")

from trellis_core.training import models, outside  # noqa: E402
from trellis_core.training.mini import metrics  # noqa: E402

TREE = [(60, 10), (100, 90), (70, 90), (70, 150), (50, 150), (50, 90), (45, 90)]


def a_tree() -> Image.Image:
    """Taller than wide, its left side not its right side: green, with a brown stem."""
    picture = Image.new("RGBA", (120, 160))
    draw = ImageDraw.Draw(picture)
    draw.polygon(TREE, fill=(30, 140, 60, 255))
    draw.rectangle((50, 90, 70, 150), fill=(120, 80, 40, 255))
    return picture


def as_points(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """A flat model of a picture: a point for every pixel, in front of a small red one."""
    pixels = np.asarray(picture)
    rows, columns = np.nonzero(pixels[..., 3])
    points = np.stack([columns, 0 * rows, -rows], 1) / 100.0
    wall = points * 0.2 + (0.48, 0.4, -0.5)
    colours = pixels[rows, columns, :3] / 255.0
    return np.concatenate([points, wall]), np.concatenate([colours, np.ones((len(wall), 3)) * (1, 0, 0)])


def test_a_model_like_its_picture_agrees_with_it_and_a_mirrored_one_does_not() -> None:
    wanted = outside.picture_front(a_tree())
    points, colours = as_points(a_tree())
    outline, colour = outside.agreement(outside.model_front(points, colours, 0.0, 0.0), wanted)
    assert outline > 0.92 and colour < 0.03
    turned, _ = outside.agreement(outside.model_front(points * (-1, 1, 1), colours, 0.0, 0.0), wanted)
    behind, paint = outside.agreement(outside.model_front(points * (1, -1, 1), colours, 0.0, 0.0), wanted)
    assert turned < outline - 0.2 and behind > 0.92 and paint > colour + 0.01


def test_cameras_turn_and_rise() -> None:
    box = trimesh.creation.box((1.0, 3.0, 1.0))
    points = metrics.surface_points(np.asarray(box.vertices), np.asarray(box.faces), 600_000)
    grey = np.full((len(points), 3), 0.5)
    square = outside.model_front(points, grey, 0.0, 0.0).cover
    side = outside.model_front(points, grey, 90.0, 0.0).cover
    above = outside.model_front(points, grey, 0.0, 30.0).cover
    assert square.mean() > 0.97 and side.mean() == pytest.approx(1 / 3, abs=0.03)
    assert above.any(0).mean() == pytest.approx(1 / (np.cos(np.pi / 6) + 1.5), abs=0.05)


def test_roughness_and_parts() -> None:
    ball, box = trimesh.creation.icosphere(3), trimesh.creation.box()
    assert outside.roughness(np.asarray(box.vertices), np.asarray(box.faces)) == pytest.approx(60, abs=1)
    assert outside.roughness(np.asarray(ball.vertices), np.asarray(ball.faces)) < 10
    assert outside.smallest_part(np.asarray(ball.vertices), np.asarray(ball.faces)) == 1
    speck = trimesh.util.concatenate([ball, trimesh.creation.icosphere(2, 0.1).apply_translation((3, 0, 0))])
    assert outside.smallest_part(np.asarray(speck.vertices), np.asarray(speck.faces)) == pytest.approx(1e-3, rel=0.2)


def test_the_summary_counts_pictures_without_a_model_as_failures() -> None:
    good = {
        "outline": 0.9, "colour": 0.1, "boundary_edges": 0.0, "watertight": 1.0, "parts": 1.0, "smallest_part": 1.0,
        "roughness": 5.0, "raw_boundary": 0.0,
    }  # fmt: skip
    said = outside.summary([good] * 9 + [{"outline": 0.0, "colour": 1.0}])
    assert said["outline"] == pytest.approx(0.81) and said["outline_worst_tenth"] == 0 and said["watertight"] == 1


def test_a_model_is_drawn_in_the_frame_of_its_camera(tmp_path: Path) -> None:
    long = trimesh.creation.box((0.4, 0.4, 2.0))  # y up: long from front to back
    (tmp_path / "long.obj").write_text(trimesh.exchange.obj.export_obj(long))
    ahead, triangles = models.drawn(tmp_path / "long.obj", 0.0, 96)
    spread = np.ptp(triangles.reshape(-1, 3), axis=0)
    assert spread[1] == pytest.approx(5 * spread[0], rel=1e-3) and spread[2] == pytest.approx(spread[0], rel=1e-3)
    aside, turned = models.drawn(tmp_path / "long.obj", 90.0, 96)
    spread = np.ptp(turned.reshape(-1, 3), axis=0)
    assert spread[0] == pytest.approx(5 * spread[1], rel=1e-3)
    width = [np.ptp(np.nonzero(np.asarray(p)[..., 3])[1]) for p in (ahead, aside)]
    assert width[1] > 2 * width[0]


def test_the_baseline_is_a_good_guess_for_a_ball() -> None:
    yy, xx = np.mgrid[:100, :100]
    disc = (xx - 49.5) ** 2 + (yy - 49.5) ** 2 < 49.5**2
    ball = trimesh.creation.icosphere(4, 0.5)
    truth = metrics.surface_points(np.asarray(ball.vertices), np.asarray(ball.faces))
    distances = [metrics.chamfer_and_f(models.inflated(disc, depth)[::4], truth)[0] for depth in models.DEPTHS]
    assert distances[2] < distances[1] < distances[0] and distances[2] < 0.1  # a double cone in place of a ball


def test_the_lists_hold_what_no_training_sees() -> None:
    names = models.LIST.read_text().split()
    assert len(names) == len(set(names)) >= 60 and all(models.is_held_out(name) for name in names)
    assert len(outside.evaluated_pictures(Path())) >= 150
