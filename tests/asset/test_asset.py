"""The whole way from a decoded mesh and voxels to a GLB."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gltf.test_glb import issues
from tests.helpers.solid_objects import ball, cube, decoded, is_watertight, rainbow, torus, volume
from trellis_core.asset.asset import Asset, make_asset
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, EmptyResultError, InputError
from trellis_core.gltf.placement import Placement
from trellis_core.projection.project import View
from trellis_core.settings import GenerationSettings
from trellis_core.values import Mesh, PbrVoxels

PLAIN = GenerationSettings(texture_size=1024, remesh=False)
SOLID = GenerationSettings(texture_size=1024, remesh=True)
SURFACES = {"torus": torus, "ball": ball, "cube": lambda: cube(0.6, (0.01, 0.01, 0.01))}


@lru_cache
def asset_of(name: str, settings: GenerationSettings = PLAIN, resolution: int = 32) -> Asset:
    return make_asset(*decoded(*SURFACES[name](), resolution), settings)


@pytest.mark.parametrize("settings", [PLAIN, SOLID], ids=["plain", "solid"])
@pytest.mark.parametrize("name", SURFACES)
def test_closed_objects_become_watertight_well_packed_assets(name: str, settings: GenerationSettings) -> None:
    asset = asset_of(name, settings)
    report = asset.report
    assert report.watertight and report.components == 1 and not asset.double_sided
    assert (report.boundary_edges, report.non_manifold_edges) == (0, 0)
    assert report.volume == pytest.approx(volume(*SURFACES[name]()), rel=0.05)
    assert report.atlas_use >= 0.45 and report.overlap <= 5e-4 and report.texels_per_face > 4
    assert report.alpha_mode == "OPAQUE" and report.see_through == 0
    assert report.file_bytes == len(asset.to_glb_bytes())
    assert asset.normals.norm(dim=1).sub(1).abs().max() < 1e-5
    assert not report.warnings()


@pytest.mark.parametrize("name", SURFACES)
def test_another_reader_finds_the_right_colour_at_every_point(name: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    loaded = trimesh.load(io.BytesIO(asset_of(name).glb), file_type="glb", force="mesh")
    points, face = trimesh.sample.sample_surface(loaded, 2000, seed=1)
    weights = trimesh.triangles.points_to_barycentric(loaded.triangles[face], points)
    uv = (loaded.visual.uv[loaded.faces[face]] * weights[:, :, None]).sum(1)
    color = loaded.visual.material.baseColorTexture
    pixels = np.asarray(color)[..., :3][((1 - uv[:, 1]) * 1024).astype(int), (uv[:, 0] * 1024).astype(int)] / 255
    place = np.column_stack([points[:, 0], -points[:, 2], points[:, 1]])
    error = np.abs(pixels - (place + 0.5)).max(1)
    assert np.quantile(error, 0.99) < 0.03 and error.max() < 0.1
    assert pixels.max(1).min() > 0.02, "no black texel"
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.is_watertight and loaded.volume > 0


@pytest.mark.parametrize("name", ["torus", "cube"])
def test_the_validator_accepts_assets(name: str, tmp_path: Path) -> None:
    found = issues(asset_of(name).glb, tmp_path)
    assert (found["numErrors"], found["numWarnings"]) == (0, 0), found["messages"]


def test_the_same_input_gives_the_same_bytes() -> None:
    again = make_asset(*decoded(*torus(), 32), PLAIN)
    assert again.to_glb_bytes() == asset_of("torus").to_glb_bytes()


def test_decimation_reaches_its_vertex_target() -> None:
    few = make_asset(*decoded(*ball(), 64), PLAIN.model_copy(update={"decimation_target": 5000}))
    assert 4900 <= few.report.vertices <= 5100 and few.report.watertight


def test_edges_of_a_cube_stay_sharp_and_a_ball_stays_smooth() -> None:
    box = asset_of("cube")
    sharp = box.normals.abs().amax(1) > 0.99
    assert sharp.float().mean() > 0.9
    round_ = asset_of("ball")
    radial = torch.nn.functional.normalize(round_.vertices, dim=1)
    assert (radial * round_.normals).sum(1).min() > 0.97


def test_a_tattered_object_is_mended() -> None:
    mesh, voxels = decoded(*ball(), 32)
    rng = np.random.default_rng(0)
    kept = mesh.faces[torch.from_numpy(rng.random(len(mesh.faces)) > 0.02)]
    specks = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.45
    loose = torch.arange(30, dtype=torch.int32).view(10, 3) + len(mesh.vertices)
    asset = make_asset(Mesh(torch.cat([mesh.vertices, specks]), torch.cat([kept, loose])), voxels, PLAIN)
    assert asset.report.watertight and asset.report.components == 1
    assert asset.report.volume == pytest.approx(volume(*ball()), rel=0.05)


def test_cut_outs_and_glass_set_alpha_and_both_sides() -> None:
    def leaf(points: np.ndarray) -> np.ndarray:
        attrs = rainbow(points)
        attrs[points[:, 0] > 0.1, 5] = 0.0
        return attrs

    asset = make_asset(*decoded(*ball(), 32, leaf), PLAIN)
    assert (asset.alpha_mode, asset.double_sided) == ("MASK", True)
    forced = make_asset(*decoded(*ball(), 32, leaf), PLAIN.model_copy(update={"alpha_mode": "OPAQUE"}))
    assert (forced.alpha_mode, forced.double_sided) == ("OPAQUE", False)


def test_an_open_sheet_stays_a_sheet_seen_from_both_sides() -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-0.4, 0.4, 9)] * 2), axis=-1).reshape(-1, 2)
    from tests.helpers.solid_objects import grid_surface

    sheet = np.column_stack([grid, 0.05 * np.sin(6 * grid[:, 0]) + 0.013])
    mesh, voxels = decoded(sheet, grid_surface(9, 9, False, False), 32)
    asset = make_asset(mesh, voxels, PLAIN)
    assert asset.double_sided and asset.report.boundary_edges > 0 and asset.report.components == 1


def test_bad_input_gets_a_message_and_odd_input_a_result() -> None:
    mesh, voxels = decoded(*ball(), 16)
    nothing = PbrVoxels(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 6), 16)
    none = torch.zeros(0, 3, dtype=torch.int32)
    for bad_mesh, bad_voxels, error in (
        (Mesh(mesh.vertices, none), voxels, EmptyResultError),
        (Mesh(mesh.vertices * float("nan"), mesh.faces), voxels, EmptyResultError),
        (Mesh(mesh.vertices * 0, mesh.faces), voxels, EmptyResultError),
        (mesh, nothing, EmptyResultError),
        (mesh, PbrVoxels(voxels.coords, voxels.attrs[:, :3], 16), InputError),
        (mesh, PbrVoxels(voxels.coords + 99, voxels.attrs, 16), EmptyResultError),
        (Mesh(mesh.vertices, mesh.faces + 1), voxels, InputError),
    ):
        with pytest.raises(error):
            make_asset(bad_mesh, bad_voxels, PLAIN)
    triangle = Mesh(torch.eye(3) * 0.3, torch.tensor([[0, 1, 2]], dtype=torch.int32))
    assert make_asset(triangle, voxels, PLAIN).report.faces == 1
    holed = mesh.vertices.clone()
    holed[5] = float("inf")
    assert make_asset(Mesh(holed, mesh.faces), voxels, PLAIN).report.watertight
    far = Mesh(mesh.vertices * 3, mesh.faces)
    assert int(make_asset(far, voxels, PLAIN).base_color[..., :3].amax(2).min()) > 5


def test_progress_never_runs_backwards_and_a_cancel_is_obeyed() -> None:
    seen: list[tuple[float, str]] = []
    mesh, voxels = decoded(*ball(), 16)
    make_asset(mesh, voxels, SOLID, RunContext(on_progress=lambda fraction, name: seen.append((fraction, name))))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    steps = ["remesh", "decimate", "unwrap", "bake", "write"]
    assert steps == [name for name in dict.fromkeys(n for _, n in seen) if name in steps]
    for after in range(0, len(seen), 7):
        calls = iter(range(10**6))
        with pytest.raises(Cancelled):
            make_asset(mesh, voxels, SOLID, RunContext(is_cancelled=lambda calls=calls, after=after: next(calls) >= after))


def test_saving_and_the_report(tmp_path: Path) -> None:
    asset = asset_of("torus")
    asset.save(tmp_path / "ring.glb")
    assert (tmp_path / "ring.glb").read_bytes() == asset.glb
    with pytest.raises(InputError, match=r"\.glb"):
        asset.save(tmp_path / "ring.obj")
    facts = json.loads(asset.report.to_json())
    assert facts["vertices"] == asset.report.vertices and set(facts["seconds"]) >= {"clean", "unwrap", "bake"}
    text = asset.report.to_text()
    assert "watertight" in text and "1024 px" in text
    assert is_watertight(_welded(asset))


def _welded(asset: Asset) -> np.ndarray:
    _, inverse = np.unique(Placement().points(asset.vertices.numpy()), axis=0, return_inverse=True)
    return inverse.reshape(-1)[asset.faces.numpy()]


def test_the_pictures_detail_goes_onto_the_texture_or_the_report_says_why_not() -> None:
    mesh, voxels = decoded(*ball(), 16)
    cross = np.zeros((64, 64, 4), np.float32)
    cross[4:60, 28:36] = cross[28:36, 4:60] = (0.1, 0.9, 0.1, 1)
    wanted = PLAIN.model_copy(update={"picture_detail": 1.0})
    asset = make_asset(mesh, voxels, wanted, pictures=[View(cross)])
    assert "not projected" in asset.report.note
    assert torch.equal(asset.base_color, make_asset(mesh, voxels, PLAIN).base_color)
