"""Procedural training data: objects, dual-grid targets, views, shards."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("numba")

from trellis_core.errors import InputError
from trellis_core.mesh.topology import edges
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.training.mini.data import kernels
from trellis_core.training.mini.data.dataset import ShardedObjects, dual_grid_targets, main, make_sample
from trellis_core.training.mini.data.objects import EXTENT, HELD_OUT_SEED, MIN_HALF, make_object
from trellis_core.training.mini.data.render import Camera, Lighting, cropped_view, render_view
from trellis_core.training.mini.data.toys import BUILDERS, CATEGORIES

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


def test_training_views_agree_with_the_pipelines_crop_of_a_picture():
    for seed in SEEDS:
        obj, camera, light = make_object(seed), Camera(25, 20), Lighting.studio(25)
        view = cropped_view(obj, dual_grid_targets(obj, 32).surface(), camera, light)
        picture = render_view(obj, camera, 512, light)
        rows, cols = np.nonzero(picture[..., 3] >= 205)
        half = max(np.ptp(cols), np.ptp(rows)) // 2
        cx, cy = (cols.min() + cols.max()) / 2, (rows.min() + rows.max()) / 2
        black = np.concatenate([picture[..., :3] * (picture[..., 3:] / 255.0), np.full((512, 512, 1), 255.0)], 2)[..., :3]
        crop = Image.fromarray(black.astype(np.uint8)).crop([round(e) for e in (cx - half, cy - half, cx + half, cy + half)])
        reference = np.asarray(crop.resize((64, 64), Image.Resampling.LANCZOS), float)
        assert np.abs(reference - view.rgb).mean() < 0.06 * view.rgb.mean() + 2


def test_views_see_the_surface_and_its_material():
    sample = make_sample(HELD_OUT_SEED + 6, views=3)
    obj = make_object(HELD_OUT_SEED + 6)
    for view in sample.views:
        seen = view.mask > 0
        assert 0.2 < seen.mean() < 0.95 and not view.rgb[~seen].any() and not view.xyz[~seen].any()
        points = view.xyz[seen].astype(float)
        assert max(abs(kernels.nearest(obj.table, *p)[0]) for p in points[::17]) < 4e-3
        looks = {tuple(row) for row in np.rint(255 * obj.table[:, -5:]).astype(np.uint8).tolist()}
        assert {tuple(row) for row in view.material[seen].tolist()} <= looks
    assert not np.array_equal(sample.views[0].rgb, sample.views[1].rgb)


def test_shards_round_trip_and_resume(tmp_path):
    arguments = ["--out", str(tmp_path), "--count", "5", "--shard", "3", "--grid", "32", "--grid", "64", "--views", "1"]
    main(arguments)
    first = (tmp_path / "shard_00000.safetensors").read_bytes()
    (tmp_path / "shard_00001.safetensors").unlink()
    main(arguments)
    data = ShardedObjects(tmp_path)
    assert len(data) == 5 and data.grids == (32, 64) and (tmp_path / "shard_00000.safetensors").read_bytes() == first
    stored, made = data.objects(4), make_sample(4, (32, 64), views=1)
    assert (stored.seed, stored.category) == (4, made.category)
    for grid in (32, 64):
        a, b = stored.targets[grid], made.targets[grid]
        assert np.array_equal(a.coords, b.coords) and np.array_equal(a.intersected, b.intersected)
        assert np.abs(a.dual - b.dual).max() < 1 / 255 + 1e-6 and np.abs(a.attrs - b.attrs).max() < 0.5 / 255 + 1e-6
    for name in ("rgb", "mask", "xyz", "material"):
        assert np.array_equal(data.gather(name, [4])[0, 0], getattr(made.views[0], name))
    with pytest.raises(InputError, match="No shards"):
        ShardedObjects(tmp_path / "elsewhere")
