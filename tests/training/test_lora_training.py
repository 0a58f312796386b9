"""The LoRA trainer: data of several kinds, three stages, going on after an interruption."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trellis_core.cli.main import main
from trellis_core.context import QUIET, RunContext
from trellis_core.errors import Cancelled, InputError
from trellis_core.family import load_family
from trellis_core.gltf.read_textured import read_textured_mesh
from trellis_core.lora.read import read_lora
from trellis_core.lora.stack import Lora, match
from trellis_core.training.lora.data import Prepared, Views, _collect, _Object, _unzip, draw, prepare
from trellis_core.training.lora.loss_plot import draw_curve, running_mean
from trellis_core.training.lora.progress import Progress
from trellis_core.training.lora.samples import change_between
from trellis_core.training.lora.train import Recipe, train

pytest.importorskip("peft")
trimesh = pytest.importorskip("trimesh")


def gold_box(extents=(1.0, 2.0, 1.0)) -> bytes:
    box = trimesh.creation.box(extents)
    colour = trimesh.visual.material.PBRMaterial(baseColorFactor=(255, 204, 51, 255), metallicFactor=1.0, roughnessFactor=0.2)
    box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(box.vertices), 2)), material=colour)
    return box.export(file_type="glb")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "box.glb").write_bytes(gold_box())
    (folder / "pin.obj").write_text(trimesh.creation.icosphere(1).export(file_type="obj"))
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[8:56, 8:56] = (200, 40, 40, 255)
    Image.fromarray(pixels).save(folder / "pin_1.png")
    return folder


@pytest.fixture(scope="module")
def prepared(data, tmp_path_factory):
    family = load_family("mini")
    return family, prepare(data, family, 512, Views(2, 45.0), 0, tmp_path_factory.mktemp("store") / "prepared.safetensors")


def test_a_model_comes_upright_with_its_material():
    mesh = read_textured_mesh(gold_box(), "glb")
    size = mesh.triangles.flatten(0, 1).amax(0) - mesh.triangles.flatten(0, 1).amin(0)
    torch.testing.assert_close(size, torch.tensor([0.5, 0.5, 1.0]), atol=1e-4, rtol=0)
    (material,) = mesh.materials
    assert material.base_color_factor == pytest.approx((1.0, 0.8, 0.2), abs=0.01)
    assert (material.metallic_factor, material.roughness_factor) == (1.0, 0.2)
    picture = np.asarray(draw(mesh, Views(1, 45.0), 0, 96)[0]).reshape(-1, 3).max(0)
    assert picture[0] > picture[2] + 40, "gold is more red than blue"


def test_what_is_prepared_decodes_to_the_models(prepared):
    family, data = prepared
    assert data.tokens.shape[:2] == (2, 2) and len(data.offsets) == 3
    rows, coords = data.rows([1, 0, 1])
    assert coords[:, 0].bincount().tolist() == [
        int(data.offsets[2] - data.offsets[1]),
        int(data.offsets[1]),
        int(data.offsets[2] - data.offsets[1]),
    ]
    with family.network("sparse_structure_decoder") as decoder, torch.no_grad():
        on = decoder(data.structure) > 0
    grid = family.scales[512].output // family.structure_side
    for item in range(2):
        low, high = int(data.offsets[item]), int(data.offsets[item + 1])
        filled = torch.zeros(on.shape[2:], dtype=torch.bool)
        x, y, z = (data.coords[low:high].long() * family.upscale // grid).unbind(1)
        filled[x, y, z] = True
        assert (on[item, 0] & filled).sum() / (on[item, 0] | filled).sum() > 0.8


def test_what_is_prepared_is_kept_and_belongs_to_its_family(prepared, data, tmp_path, monkeypatch):
    family, first = prepared
    monkeypatch.setattr("trellis_core.training.lora.data._encode", lambda *_: pytest.fail("was prepared already"))
    store = tmp_path / "prepared.safetensors"
    with pytest.raises(BaseException, match="already"):
        prepare(data, family, 512, Views(2, 45.0), 0, store)
    monkeypatch.undo()
    second = prepare(data, family, 512, Views(2, 45.0), 0, store)
    monkeypatch.setattr("trellis_core.training.lora.data._encode", lambda *_: pytest.fail("was prepared already"))
    for again in (prepare(data, family, 512, Views(2, 45.0), 0, store), prepare(store, family, 512, Views(), 0, store)):
        assert torch.equal(again.shape, second.shape) and torch.equal(again.shape, first.shape)
    with pytest.raises(InputError, match="not prepared for this"):
        prepare(store, family, 1024, Views(), 0, store)


@pytest.mark.parametrize("stage", ["structure", "shape", "texture"])
def test_every_stage_learns_and_its_file_fits(prepared, stage, tmp_path):
    family, data = prepared
    recipe = Recipe(16, 5e-3, 24, batch=2, sample_every=24)
    file = train(family, stage, data, 512, recipe, tmp_path, QUIET)
    losses = json.loads((tmp_path / stage / "losses.json").read_text())
    assert len(losses) == 24
    assert (tmp_path / stage / "loss.png").is_file()
    assert [p.name for p in (tmp_path / stage / "samples").iterdir()] == ["step_00024.png"]
    assert Image.open(tmp_path / stage / "before_after.png").size == (2 * 256, 2 * 256), "two objects, before and after"
    assert json.loads((tmp_path / stage / "change.json").read_text())["change"] > 0
    (report,) = match(family, Lora(file))
    assert report.stage == stage and not report.skipped and not report.warnings and report.share > 1e-4
    (adapter,) = read_lora(file).adapters
    assert adapter.ranks == (16,) and {alpha for alpha, _ in adapter.alphas} == {16.0}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(prepared, tmp_path, monkeypatch):
    family, data = prepared
    monkeypatch.setattr("trellis_core.training.lora.train.SAVE_EVERY", 4)
    recipe = Recipe(16, 1e-3, 10, batch=2, sample_every=100)
    whole = train(family, "structure", data, 512, recipe, tmp_path / "whole", QUIET)
    seen = []

    def stop() -> bool:
        seen.append(1)
        return (tmp_path / "cut" / "structure" / "state.pt").is_file() and len(seen) > 30

    with pytest.raises(Cancelled):
        train(family, "structure", data, 512, recipe, tmp_path / "cut", RunContext(is_cancelled=stop))
    kept = len(torch.load(tmp_path / "cut" / "structure" / "state.pt", weights_only=True)["losses"])
    assert 0 < kept < recipe.steps
    cut = train(family, "structure", data, 512, recipe, tmp_path / "cut", QUIET)
    losses = [json.loads((tmp_path / name / "structure" / "losses.json").read_text()) for name in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # matrix products may differ in the last bit between two runs
    (first,), (second,) = (read_lora(file).adapters for file in (whole, cut))
    for name, delta in first.deltas.items():
        one, other = (d.matrix(torch.empty(0)) for d in (delta, second.deltas[name]))
        assert (one - other).norm() < 0.05 * one.norm()
    with pytest.raises(InputError, match="other settings"):
        train(family, "structure", data, 512, Recipe(32, 1e-3, 10), tmp_path / "cut", QUIET)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rate", "1"], "learning-rate must be from 1e-06 to 0.01"),
        (["--steps", "50"], "steps must be from 100 to 10000"),
        (["--views", "0"], "views"),
        ([], "holds no models"),
    ],
)
def test_wrong_calls_are_said_at_once(tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    call = ["train-lora", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out"), "--stage", "shape", *arguments]
    assert main(call) == 1
    assert words in capsys.readouterr().err


def call(monkeypatch, data, out, *arguments, change=0.5):
    """The command with training itself left out: the recipe that it would have been given."""
    seen = []

    def trained(family, stage, prepared, resolution, recipe, folder, ctx):
        seen.append((stage, recipe))
        (folder / stage).mkdir(parents=True)
        (folder / stage / "change.json").write_text(json.dumps({"change": change}))
        (folder / f"{stage}.safetensors").write_bytes(b"")
        return folder / f"{stage}.safetensors"

    def prepared(*given):
        seen.append(given[3])
        return Prepared(*[torch.zeros(1, 1)] * 7)

    monkeypatch.setattr("trellis_core.training.lora.train.train", trained)
    monkeypatch.setattr("trellis_core.training.lora.train.prepare", prepared)
    assert main(["train-lora", "--data", str(data), "--out", str(out), *arguments]) == 0
    return seen


def test_rate_steps_and_views_are_the_familys_own(monkeypatch, tmp_path, data):
    views, (_, recipe), (second, _) = call(monkeypatch, data, tmp_path / "a", "--stage", "shape", "--stage", "texture")
    usual = load_family("mini").lora_training
    assert (recipe.learning_rate, recipe.steps) == (usual.learning_rate, usual.steps) and second == "texture"
    assert (views.count, views.azimuth) == (usual.views, usual.azimuth) and usual.learning_rate > 1e-4
    for flag in ("--weights", "--family"):
        given = (
            "--stage",
            "shape",
            flag,
            "mini",
            "--steps",
            "123",
            "--learning-rate",
            "2e-4",
            "--views",
            "2",
            "--azimuth",
            "0",
        )
        views, (_, recipe) = call(monkeypatch, data, tmp_path / flag, *given)
        assert (recipe.learning_rate, recipe.steps, views) == (2e-4, 123, Views(2, 0.0))


def test_a_lora_that_hardly_acts_is_told(monkeypatch, tmp_path, data, capsys):
    call(monkeypatch, data, tmp_path / "a", "--stage", "texture", change=0.004)
    told = capsys.readouterr()
    assert "before_after.png: before and after, 0.4%" in told.out and "hardly acts" in told.err and "--steps" in told.err
    call(monkeypatch, data, tmp_path / "b", "--stage", "texture", change=0.2)
    assert "hardly acts" not in capsys.readouterr().err


def test_what_is_told_without_a_terminal():
    stream = io.StringIO()
    progress = Progress("texture", 10, 30, stream)
    for _ in range(20):
        progress.step(0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("texture  step 11 of 30, loss 0.5000, ") and lines[0].endswith(" left")
    assert lines[-1] == "texture  step 30 of 30, loss 0.5000, 0:00 left"


def test_the_missing_package_is_told_with_the_extra(monkeypatch, tmp_path, data, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("trellis_core.training.lora.train.find_spec", lambda name: None)
    assert main(["train-lora", "--data", str(data), "--out", str(tmp_path), "--stage", "shape"]) == 1
    assert "pip install -e .[lora]" in capsys.readouterr().err


def test_change_between_pictures_is_that_of_what_they_show():
    white = Image.new("RGB", (10, 10), "white")
    red, blue = white.copy(), white.copy()
    red.paste((255, 0, 0), (4, 4, 6, 6))
    blue.paste((0, 0, 255), (4, 4, 6, 6))
    assert change_between(red, red) == change_between(white, white) == 0
    assert change_between(red, blue) == pytest.approx(2 / 3)


def test_a_zip_cannot_write_elsewhere(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("../outside.glb", b"x")
    with pytest.raises(InputError, match="leads out"):
        _unzip(tmp_path / "bad.zip", tmp_path / "inner")
    assert not (tmp_path / "outside.glb").exists()


def test_what_macos_adds_to_a_zip_is_no_model(tmp_path, data):
    """Resource forks, indexes of folders, a model of the same name in another format, and what an earlier zip left."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/stale.glb").write_bytes(gold_box())
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as packed:
        for name in ("toys/Box.GLB", "toys/box.obj"):
            packed.writestr(name, gold_box() if name.endswith("GLB") else (data / "pin.obj").read_bytes())
        packed.write(data / "pin_1.png", "toys/box_1.PNG")
        for name in ("__MACOSX/toys/._Box.GLB", "toys/._Box.GLB", "toys/.DS_Store", ".cache/box.glb"):
            packed.writestr(name, b"\0\5\x16\7")
    models = _collect(tmp_path / "models.zip", tmp_path)
    assert [name for name, _, _ in models] == ["toys/Box.GLB", "toys/box.obj"]
    assert [[p.name for p in pictures] for _, _, pictures in models] == [["box_1.PNG"]] * 2


@pytest.mark.parametrize(
    "damage", [lambda z: z[: len(z) // 2] + z[len(z) // 2 + 9 :], lambda z: z.replace(b"box.glb", b"\xffox.glb", 1)]
)
def test_a_damaged_zip_is_told(tmp_path, damage):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("box.glb", gold_box())
    (tmp_path / "b.zip").write_bytes(damage((tmp_path / "a.zip").read_bytes()))
    with pytest.raises(InputError, match="b.zip"):
        _collect(tmp_path / "b.zip", tmp_path)


def test_a_models_own_texture_is_not_its_picture(tmp_path):
    """chair.png is what chair.mtl paints with; chair_1.png is the picture."""
    family = load_family("mini")
    box = trimesh.creation.box((1, 1, 1))
    corners = "".join(f"v {x} {y} {z}\n" for x, y, z in box.vertices)
    sides = "".join(f"f {a}/1 {b}/1 {c}/1\n" for a, b, c in box.faces + 1)
    (tmp_path / "chair.obj").write_text(f"mtllib chair.mtl\nvt 0.5 0.5\nusemtl wood\n{corners}{sides}")
    (tmp_path / "chair.mtl").write_text("newmtl wood\nmap_Kd chair.png\n")
    for name in ("chair.png", "chair_1.png"):
        Image.new("RGBA", (64, 64), (200, 40, 40, 255)).save(tmp_path / name)
    ((_, path, pictures),) = _collect(tmp_path, tmp_path)
    assert [p.name for p in pictures] == ["chair.png", "chair_1.png"]
    item = _Object.read(path, pictures[:1], family, 512, Views(2, 45.0), 0)
    assert len(item.pictures) == 2, "rendered, for the texture is none of its pictures"
    np.testing.assert_allclose(item.attributes[:, :3].mean(0) * 255, [200, 40, 40], atol=1)


def test_vertex_colours_are_painted_and_seen(tmp_path):
    """A bar that is red at one end and blue at the other has these colours in its voxels and in its pictures."""
    bar = trimesh.creation.box((3, 1, 1))
    bar = bar.subdivide().subdivide()
    bar.visual.vertex_colors = np.where(bar.vertices[:, :1] > 0, [255, 0, 0, 255], [0, 0, 255, 255]).astype(np.uint8)
    (tmp_path / "bar.ply").write_bytes(bar.export(file_type="ply"))
    item = _Object.read(tmp_path / "bar.ply", [], load_family("mini"), 512, Views(1, 10.0), 0)
    right = item.coords[:, 0] > item.coords[:, 0].float().mean() + 6
    left = item.coords[:, 0] < item.coords[:, 0].float().mean() - 6
    np.testing.assert_allclose(item.attributes[right, :3].mean(0), [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(item.attributes[left, :3].mean(0), [0, 0, 1], atol=0.02)
    pixels = np.asarray(item.pictures[0]).reshape(-1, 3).astype(int)
    assert (pixels[:, 0] > pixels[:, 2] + 60).mean() > 0.05 and (pixels[:, 2] > pixels[:, 0] + 60).mean() > 0.05


def test_the_curve_is_the_running_mean():
    assert running_mean(np.array([4.0, 2.0, 0.0]), share=0.5).tolist() == [4.0, 3.0, 1.0]
    assert draw_curve([1.0, 0.5]).size == draw_curve([0.1] * 500).size
