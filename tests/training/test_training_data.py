"""Training data: objects, compositions, blown-up pictures, dual-grid targets, pictures, shards."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("numba")

from trellis_core.errors import InputError
from trellis_core.mesh.topology import edges
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.training.mini.data import compose, kernels, outlines
from trellis_core.training.mini.data.dataset import ShardedObjects, blown_up, composed, dual_grid_targets, main, make_sample
from trellis_core.training.mini.data.objects import EXTENT, FRAME, HELD_OUT_SEED, MIN_HALF
from trellis_core.training.mini.data.render import Camera, Lighting, cropped_picture, render_view
from trellis_core.training.mini.data.toys import BUILDERS, CATEGORIES, make_object

SEEDS = range(HELD_OUT_SEED, HELD_OUT_SEED + 12)


def corner_signs(obj, grid):
    """Inside flags [grid+1]^3 by asking the distance at every single corner."""
    ticks = np.arange(grid + 1) / grid - 0.5
    return np.array([[[kernels.nearest(obj.table, x, y, z)[0] < 0 for z in ticks] for y in ticks] for x in ticks])


@pytest.mark.parametrize("category", BUILDERS)
def test_objects_are_deterministic_distinct_and_normalised(category):
    tables = [make_object(seed, category).table for seed in range(20)]
    assert np.array_equal(tables[3], make_object(3, category).table)
    assert len({table.tobytes() for table in tables}) == len(tables)
    for seed in range(20):
        obj = make_object(seed, category)
        bounds = np.array([part.bounds() for part in obj.parts])
        low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
        assert (high - low).max() == pytest.approx(EXTENT, rel=0.06)
        assert np.abs(low + high).max() < 0.06
        look = obj.table[:, -5:]
        assert look.min() >= 0 and look.max() <= 1 and set(look[:, 3]) <= {0.0, 1.0}
        assert all(part.size.max() >= MIN_HALF for part in obj.parts)


def test_training_seeds_visit_every_category_but_the_held_out_one():
    assert {make_object(seed).category for seed in range(len(CATEGORIES))} == set(BUILDERS) - {"rocket"}
    with pytest.raises(InputError, match="rocket"):
        make_object(0, "spaceship")


def test_ducks_cars_and_chairs_face_front():
    """The eyes of a duck and the lamps of a car lie at -y, the back of a chair at +y."""
    for seed in range(5):
        duck, chair = make_object(seed, "duck"), make_object(seed, "chair")
        assert min(duck.parts, key=lambda p: p.centre[1]).centre[1] < -0.2
        assert max(chair.parts, key=lambda p: p.centre[2]).centre[1] > 0
        lights = [p for p in make_object(seed, "car").parts if p.look.rgb == (1.0, 0.95, 0.75)]
        assert len(lights) == 2 and all(p.centre[1] < -0.25 for p in lights)


@pytest.mark.parametrize("grid", [32, 64])
def test_targets_mesh_to_a_closed_surface(grid):
    for seed in SEEDS:
        target = dual_grid_targets(make_object(seed), grid)
        coords = torch.from_numpy(target.coords.astype(np.int32))
        mesh = dual_grid_to_mesh(coords, torch.from_numpy(target.dual), torch.from_numpy(target.intersected), None, grid)
        assert len(mesh.faces) == 2 * target.intersected.sum()  # every crossed edge has its four voxels
        assert not (edges(mesh.faces.numpy()).counts % 2).any()


@pytest.mark.parametrize("category", ["mushroom", "car", "rocket"])
def test_targets_follow_the_corner_signs(category):
    obj, grid = make_object(1, category), 32
    target = dual_grid_targets(obj, grid)
    inside = corner_signs(obj, grid)
    shifted = [inside[i : grid + i, j : grid + j, k : grid + k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    active = np.argwhere(np.any(shifted, 0) & ~np.all(shifted, 0))
    assert np.array_equal(target.coords, active)  # argwhere is lexicographic too
    x, y, z = active.T
    far = inside[x + 1, y + 1, z + 1]
    expected = np.stack([inside[x, y + 1, z + 1] != far, inside[x + 1, y, z + 1] != far, inside[x + 1, y + 1, z] != far], 1)
    assert np.array_equal(target.intersected, expected)


def test_dual_vertices_lie_on_the_surface_and_wear_its_part():
    for seed in SEEDS:
        obj = make_object(seed)
        target = dual_grid_targets(obj, 64)
        assert target.dual.min() >= 0 and target.dual.max() <= 1
        found = [kernels.nearest(obj.table, *point) for point in target.surface().astype(float)]
        distance, part = np.abs([d for d, _ in found]) * 64, np.array([i for _, i in found])
        assert np.median(distance) < 0.06 and np.quantile(distance, 0.95) < 0.4  # in voxels
        agree = np.abs(target.attrs[:, :5] - obj.table[part][:, -5:]).max(1) < 1e-6
        assert agree.mean() > 0.99 and (target.attrs[:, 5] == 1).all()


def test_training_pictures_agree_with_the_pipelines_crop_of_a_picture():
    for seed in SEEDS:
        obj, camera, light = make_object(seed), Camera(25, 20), Lighting.studio(25)
        drawn = cropped_picture(obj, dual_grid_targets(obj, 32).surface(), camera, light, 64)
        picture = render_view(obj, camera, 512, light)
        rows, cols = np.nonzero(picture[..., 3] >= 205)
        half = max(np.ptp(cols), np.ptp(rows)) // 2
        cx, cy = (cols.min() + cols.max()) / 2, (rows.min() + rows.max()) / 2
        black = np.concatenate([picture[..., :3] * (picture[..., 3:] / 255.0), np.full((512, 512, 1), 255.0)], 2)[..., :3]
        crop = Image.fromarray(black.astype(np.uint8)).crop([round(e) for e in (cx - half, cy - half, cx + half, cy + half)])
        reference = np.asarray(crop.resize((64, 64), Image.Resampling.LANCZOS), float)
        assert np.abs(reference - drawn).mean() < 0.06 * drawn.mean() + 2


def a_picture(folder, name="pear.png"):
    """A red ball on a green stem, off the middle, and nothing else."""
    from PIL import ImageDraw

    picture = Image.new("RGBA", (160, 200))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((70, 20, 84, 80), fill=(20, 160, 40, 255))
    draw.ellipse((30, 70, 126, 180), fill=(220, 30, 40, 255))
    picture.save(folder / name)
    return folder / name


def test_a_blown_up_picture_keeps_its_outline_its_colours_and_is_closed(tmp_path):
    rgb, alpha = outlines.cropped(Image.open(a_picture(tmp_path)), 128)
    relief = outlines.relief(alpha, np.random.default_rng(0))
    coords, dual, flags = kernels.lattice_dual_grid(relief.values(64), 0.1)
    rows = torch.from_numpy(coords.astype(np.int32))
    mesh = dual_grid_to_mesh(rows, torch.from_numpy(dual), torch.from_numpy(flags), None, 64)
    assert len(mesh.faces) == 2 * flags.sum() and not (edges(mesh.faces.numpy()).counts % 2).any()
    points = (coords + dual) / 64 - 0.5
    assert np.ptp(points[:, 2]) == pytest.approx(FRAME, abs=0.03)
    seen = np.zeros((64, 64), bool)
    seen[coords[:, 0], coords[:, 2]] = True
    side = int(round(FRAME * 64))
    wanted = np.asarray(Image.fromarray(alpha).resize((side, side), Image.Resampling.BOX))[::-1].T > 0.5
    low = (64 - side) // 2
    seen = seen[low : low + side, low : low + side]
    assert (seen & wanted).sum() / (seen | wanted).sum() > 0.9
    colours = outlines.painted(rgb, alpha, points)
    front = points[:, 1] < 0
    ball, stem = points[:, 2] < 0.1, points[:, 2] > 0.3
    assert np.abs(colours[front & ball] - np.array([220, 30, 40]) / 255).mean() < 0.02
    assert np.abs(colours[front & stem] - np.array([20, 160, 40]) / 255).mean() < 0.03
    assert np.isfinite(colours).all()


def test_a_ball_is_blown_up_to_a_ball():
    yy, xx = np.mgrid[:128, :128]
    disc = ((xx - 63.5) ** 2 + (yy - 63.5) ** 2 < 63.5**2).astype(np.float32)
    relief = outlines.relief(disc, np.random.default_rng(1))
    round_one = outlines.Relief(relief.potential, 1.0, 1.0)
    coords, dual, _ = kernels.lattice_dual_grid(round_one.values(64), 0.1)
    radius = np.linalg.norm((coords + dual) / 64 - 0.5, axis=1)
    assert radius.mean() == pytest.approx(FRAME / 2, rel=0.04) and radius.std() < 0.015


def test_training_never_sees_the_evaluation_pictures_in_any_skin_tone(tmp_path):
    held = outlines.EVALUATED.read_text().split()
    assert len(held) == len(set(held)) >= 150
    for name in (held[0], held[0].replace(".webp", "-1f3fd.webp"), "00ff.webp", "00ff-1f3fb.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in outlines.training_pictures(tmp_path)] == ["00ff.webp"]


def test_compositions_are_many_kinds_closed_and_fill_the_frame():
    kinds = {compose.compose(seed).category for seed in range(60)}
    assert len(kinds) >= 15
    for seed in range(0, 24, 3):
        sample = composed(seed)
        points = sample.targets.surface()
        width, depth, height = np.ptp(points, axis=0)
        assert 0.8 * FRAME < max(width, depth, height) < 1 and depth < 1.15 * max(width, height)
        assert np.array_equal(sample.rgb, composed(seed).rgb)
        lit = sample.rgb.max(2) > 0
        assert 0.02 < lit.mean() < 1 and lit.any(0).mean() > 0.3


def test_shards_round_trip_and_resume(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    a_picture(pictures)
    out = tmp_path / "shards"
    arguments = ["--out", str(out), "--count", "5", "--shard", "3", "--grid", "32", "--pictures", str(pictures)]
    main(arguments)
    first = (out / "shard_00000.safetensors").read_bytes()
    (out / "shard_00001.safetensors").unlink()
    main(arguments)
    data = ShardedObjects(out)
    assert len(data) == 5 and data.grid == 32 and (out / "shard_00000.safetensors").read_bytes() == first
    for row in (3, 4):
        a, made = data.targets(row), make_sample(row, outlines.training_pictures(pictures), 32)
        b = made.targets
        assert np.array_equal(a.coords, b.coords) and np.array_equal(a.intersected, b.intersected)
        assert np.abs(a.dual - b.dual).max() < 1 / 255 + 1e-6 and np.abs(a.attrs - b.attrs).max() < 0.5 / 255 + 1e-6
        assert np.array_equal(data.gather("rgb", [row])[0], made.rgb)
    assert blown_up(0, [pictures / "pear.png"], 32).rgb.shape == (128, 128, 3)
    with pytest.raises(InputError, match="No shards"):
        ShardedObjects(tmp_path / "elsewhere")
