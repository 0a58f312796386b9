from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import CONFIGS, make_family, picture, random_tensors
from tests.image.test_image import png_header
from trellis_core.cli.generate import read_settings
from trellis_core.cli.main import build_parser, main
from trellis_core.settings import LORA_FIELDS, SOURCE_FIELDS, GenerationSettings
from trellis_core.weights import download
from trellis_core.weights.network_file import NetworkFile

FAST = [
    "--resolution=512", "--ss-sampling-steps=1", "--shape-slat-sampling-steps=1", "--tex-slat-sampling-steps=1",
    "--texture-size=1024", "--decimation-target=5000",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    picture().save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a network was read before the checks were done")

    monkeypatch.setattr(NetworkFile, "load", load)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_generate_writes_model_and_preview_and_repeats_itself(
    weights: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        call = ["generate", str(drawn), "-o", str(tmp_path / f"{name}.glb"), "--weights", str(weights), "--seed=7", *FAST]
        assert main([*call, "--preview", str(tmp_path / f"{name}.png"), "--report"]) == 0
    assert (tmp_path / "a.glb").read_bytes()[:4] == b"glTF"
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    preview = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert preview.shape[0] == preview.shape[1] and preview.std() > 1
    said = capsys.readouterr()
    assert "a.glb" in said.out and "seed 7" in said.out and "vertices" in said.out
    assert "structure" in said.err and "texture" in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.glb", "a.png", "b.glb", "b.png", "disc.png"]


def test_every_setting_is_a_flag() -> None:
    options = build_parser().parse_args(["generate", "x.png", "-o", "x.glb"])
    flags = {n for n in GenerationSettings.model_fields if n not in (*SOURCE_FIELDS, *LORA_FIELDS)}
    assert flags <= set(vars(options)) and all(getattr(options, n) is None for n in flags)
    given = ["--ss-guidance-strength=3.5", "--no-remesh", "--texture-size=4096", "--seed=5", "--no-cascade"]
    chosen = read_settings(build_parser().parse_args(["generate", "x.png", "-o", "x.glb", *given]))
    assert chosen.ss_guidance_strength == 3.5 and chosen.texture_size == 4096 and chosen.seed == 5
    assert not chosen.remesh and not chosen.cascade
    assert "ss_rescale_t" not in chosen.model_fields_set, "settings not given must stay open to the family's defaults"


def test_seed_is_drawn_when_not_given() -> None:
    options = build_parser().parse_args(["generate", "x.png", "-o", "x.glb"])
    assert {read_settings(options).seed for _ in range(3)} != {None}


@pytest.mark.usefixtures("no_network")
def test_wrong_settings_are_named_as_flags(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", drawn, "-o", tmp_path / "x.glb", "--ss-sampling-steps=0", "--texture-size=77"]
    text = refused(capsys, *call)
    assert "--ss-sampling-steps" in text and "--texture-size" in text and "given: 77" in text


@pytest.mark.usefixtures("no_network")
def test_pictures_are_checked_first(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(name: str, *more: str) -> str:
        return refused(capsys, "generate", tmp_path / name, "-o", tmp_path / "x.glb", "--weights", weights, *more)

    assert "no picture file" in call("missing.png")
    (tmp_path / "text.png").write_text("hello")
    assert "not a picture" in call("text.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "opaque.png")
    assert "transparent background" in call("opaque.png")
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert "transparent everywhere" in call("clear.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "noise.png")
    assert "not plain" in call("noise.png", "--key-background")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "dot.png")
    assert "2 x 2" in call("dot.png")


@pytest.mark.usefixtures("no_network")
def test_outputs_are_checked_first(weights: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*outputs: object) -> str:
        return refused(capsys, "generate", drawn, "--weights", weights, *outputs)

    assert "does not exist" in call("-o", tmp_path / "no" / "x.glb")
    assert "must end in .glb" in call("-o", tmp_path / "x.obj")
    (tmp_path / "folder.glb").mkdir()
    assert "is a folder" in call("-o", tmp_path / "folder.glb")
    assert "longer than" in call("-o", tmp_path / f"{'x' * 252}.glb")
    assert "must end in .png" in call("-o", tmp_path / "x.glb", "--preview", tmp_path / "x.jpg")
    assert "does not exist" in call("-o", tmp_path / "x.glb", "--preview", tmp_path / "no" / "x.png")


@pytest.mark.usefixtures("no_network")
def test_weights_and_budget_are_checked_first(
    weights: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*more: object) -> str:
        return refused(capsys, "generate", drawn, "-o", tmp_path / "x.glb", *more)

    assert "There are no weights" in call("--weights", tmp_path / "nowhere")
    assert "budget" in call("--weights", weights, "--memory-budget=0.00001")
    assert "above 0" in call("--weights", weights, "--memory-budget=-1")
    for device in ("abacus",) if torch.cuda.is_available() else ("abacus", "cuda"):
        assert f'The device "{device}" cannot be used' in call("--weights", weights, f"--device={device}")
    assert "cascade" in call("--weights", weights, "--resolution=1536", "--no-cascade")


def test_plain_background_can_be_keyed(weights: Path, tmp_path: Path) -> None:
    on_white = Image.new("RGB", (48, 48), "white")
    on_white.paste(picture(), mask=picture())
    on_white.save(tmp_path / "white.png")
    call = ["generate", str(tmp_path / "white.png"), "-o", str(tmp_path / "x.glb"), "--weights", str(weights), *FAST]
    assert main([*call, "--seed=7", "--key-background"]) == 0


def test_disk_full_leaves_nothing(
    weights: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    call = ["generate", drawn, "-o", tmp_path / "x.glb", "--weights", weights, "--seed=7", *FAST]
    assert "No space left" in refused(capsys, *call)
    assert [p.name for p in tmp_path.iterdir()] == ["disc.png"]


def test_ctrl_c_stops_and_leaves_nothing(weights: Path, drawn: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "trellis_core", "generate", str(drawn), "-o", str(tmp_path / "x.glb")]
    call += [
        "--weights",
        str(weights),
        "--seed=7",
        "--ss-sampling-steps=50",
        "--shape-slat-sampling-steps=50",
        "--texture-size=4096",
    ]
    home = Path(__file__).parents[2]
    running = subprocess.Popen(
        call,
        cwd=home,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background shells hand on an ignored one
    )
    assert running.stderr is not None
    for line in running.stderr:  # the first stage is over: it runs
        if "condition" in line:
            break
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 130 and "Nothing was written" in errors and "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir()] == ["disc.png"]


def test_keyboard_interrupt_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trellis_core.cli.info.run", stop)
    assert main(["info", "x"]) == 130


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(root: Path, role: str, edit) -> Path:
    """Change the tensors of a network on disk."""
    file = root / "ckpts" / f"{role}.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return root


def test_bad_weights_found_late_leave_nothing(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that are none show when a network is read; an empty result when it has run."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["output_layer.bias"][0] = float("nan")

    def silence(tensors: dict[str, torch.Tensor]) -> None:
        tensors["out_layer.2.weight"].zero_()
        tensors["out_layer.2.bias"].fill_(-1)

    homes = tmp_path / "homes"
    places = [make_family(homes / name) for name in ("nan", "void")]
    damage(places[0], "tex_slat_decoder", spoil)
    damage(places[1], "sparse_structure_decoder", silence)
    before = left(tmp_path)
    call = ["generate", drawn, "-o", tmp_path / "x.glb", "--preview", tmp_path / "x.png", "--seed=7", *FAST]
    text = refused(capsys, *call, "--weights", places[0])
    assert "tex_slat_decoder.safetensors" in text and '"output_layer.bias" holds NaN' in text
    assert "came out empty" in refused(capsys, *call, "--weights", places[1])
    assert left(tmp_path) == before


@pytest.mark.usefixtures("no_network")
def test_damaged_and_mixed_weights_are_refused_before_any_network_is_read(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(weights: Path) -> str:
        return refused(capsys, "generate", drawn, "-o", tmp_path / "x.glb", "--weights", weights)

    cut = make_family(tmp_path / "cut")
    file = cut / "ckpts" / "tex_slat_decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    text = call(cut)
    assert "tex_slat_decoder.safetensors" in text and 'cut short: tensor "' in text
    pickled = make_family(tmp_path / "pickled")
    torch.save({}, pickled / "ckpts" / "shape_slat_decoder.safetensors")
    assert "is a Python pickle" in call(pickled)
    mixed = make_family(tmp_path / "mixed", sparse_structure_decoder={"latent_channels": 8})
    assert "do not belong together" in call(mixed)
    assert not (tmp_path / "x.glb").exists()


@pytest.mark.parametrize(("name", "picture", "options"), [
    ("grey16.png", Image.fromarray(np.full((40, 40), 30_000, np.uint16)), {}),
    ("palette.png", Image.new("P", (40, 40), 3), {}),
    ("cmyk.jpg", Image.new("CMYK", (40, 40), (0, 90, 90, 0)), {}),
    ("moving.gif", Image.new("P", (40, 40), 3), {"save_all": True, "append_images": [Image.new("P", (40, 40), 9)]}),
    ("moving.webp", Image.new("RGB", (40, 40), "red"), {"save_all": True, "append_images": [Image.new("RGB", (40, 40))]}),
])  # fmt: skip
@pytest.mark.usefixtures("no_network")
def test_unusual_pictures_get_as_far_as_their_missing_cut_out(
    name: str, picture: Image.Image, options: dict, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / name, **options)
    text = refused(capsys, "generate", tmp_path / name, "-o", tmp_path / "x.glb", "--weights", weights)
    assert "transparent background" in text and left(tmp_path) == [name]


@pytest.mark.usefixtures("no_network")
def test_a_huge_picture_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(20_000, 20_000).getvalue())
    text = refused(capsys, "generate", tmp_path / "huge.png", "-o", tmp_path / "x.glb", "--weights", weights)
    assert "80 megapixels" in text and left(tmp_path) == ["huge.png"]


def test_ctrl_c_that_ends_in_another_error_is_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when it comes while a library is imported."""

    def stop(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("half a library") from None

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr("trellis_core.cli.info.run", stop)
        assert main(["info", "x"]) == 130 and "Nothing was written" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_before_the_work_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trellis_core.cli.main.build_parser", stop)
    assert main(["info", "x"]) == 130 and "Nothing was written" in capsys.readouterr().err


def test_info_of_a_family(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(weights)]) == 0
    text = capsys.readouterr().out
    assert "Family tiny" in text and "1536: 48^3 voxels" in text
    assert "shape_slat_flow_model_1024" in text and "F16" in text


def test_info_of_files(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(weights / "ckpts" / "shape_slat_decoder")]) == 0
    assert "FlexiDualGridVaeDecoder" in capsys.readouterr().out
    part = {f"shape_dec.{k}": v for k, v in random_tensors(*CONFIGS["shape_slat_decoder"], 0).items()}
    save_file(part, tmp_path / "vae.safetensors")
    assert main(["info", str(tmp_path / "vae.safetensors")]) == 0
    assert "shape_slat_decoder: FlexiDualGridVaeDecoder" in capsys.readouterr().out
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert main(["info", str(tmp_path / "other.safetensors")]) == 0
    assert "no network that this program knows" in capsys.readouterr().out
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    assert "pickle" in refused(capsys, "info", tmp_path / "bad.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A stand-in for huggingface_hub; returns the downloads that were asked of it."""
    asked: list[tuple] = []
    listing = {
        "microsoft/TRELLIS.2-4B": ["pipeline.json", "ckpts/ss_flow_x.json", "ckpts/shape_dec_x.safetensors", "README.md"],
        "microsoft/TRELLIS-image-large": ["ckpts/ss_dec_conv3d_16l8_fp16.json", "ckpts/slat_dec.safetensors"],
        "timm/vit_large_patch16_dinov3.lvd1689m": ["config.json", "model.safetensors", "flax_model.msgpack"],
    }

    class Api:
        def model_info(self, repository: str, files_metadata: bool) -> object:
            files = [types.SimpleNamespace(rfilename=name, size=1_500_000_000) for name in listing[repository]]
            return types.SimpleNamespace(siblings=files)

    def snapshot_download(repository: str, allow_patterns: list[str], local_dir: Path) -> None:
        asked.append((repository, allow_patterns, local_dir))

    module = types.SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_download_says_sizes_and_asks_first(
    hub: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main(["download", "--to", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert hub == [] and "microsoft/TRELLIS.2-4B (MIT): 3 files, 4.50 GB" in text and "9.00 GB" in text
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(["download", "--to", str(tmp_path)]) == 0
    assert [(name, folder) for name, _, folder in hub] == [(p.repository, tmp_path / p.folder) for p in download.PARTS]
    assert hub[1][1] == ["ckpts/ss_dec_conv3d_16l8_fp16.json"]


def test_download_checks_the_room_and_says_how_to_go_on(
    hub: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=8_900_000_000))
    assert "9.00 GB are to come" in refused(capsys, "download", "--yes", "--to", tmp_path / "new")
    here = tmp_path / "TRELLIS.2-4B" / "pipeline.json"
    here.parent.mkdir()
    here.touch()
    assert main(["download", "--yes", "--to", str(tmp_path)]) == 0, "what is there already needs no room"

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("connection lost")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", lost)
    text = refused(capsys, "download", "--yes", "--to", tmp_path)
    assert "microsoft/TRELLIS.2-4B cannot be fetched: connection lost" in text and "run the command again" in text


def test_download_without_the_hub_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused(capsys, "download")


def test_imports_and_finding_a_family_are_light_and_need_no_optional_package() -> None:
    code = """
import sys
for name in ("cv2", "numba", "rembg", "huggingface_hub", "trimesh", "xatlas"):
    sys.modules[name] = None
import trellis_core, trellis_core.stages, trellis_core.cli.generate, trellis_core.weights.download
trellis_core.cli.generate.load_family("mini")
names = ("scipy.spatial", "fast_simplification", "torchvision", "pydantic.v1", "torch._dynamo", "sympy")
heavy = [n for n in names if n in sys.modules]
import json; print(json.dumps(heavy))
"""
    home = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout) == []


def test_help_tells_what_settings_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0 and "--ss-guidance-strength" in text and "(default: 7.5)" in text


def test_the_resolution_is_what_the_weights_recommend_unless_given(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture().save(tmp_path / "p.png")
    call = ["generate", str(tmp_path / "p.png"), "-o", str(tmp_path / "p.glb"), "--plan"]
    for more, wanted in ([], "tex_slat_flow_model_512"), (["--resolution=1024"], "tex_slat_flow_model_1024"):
        assert main([*call, *more]) == 0
        assert wanted in capsys.readouterr().out


def test_the_service_keeps_its_data_in_the_users_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from trellis_core.fal.service.serve import config
    from trellis_core.files import user_state

    monkeypatch.chdir(tmp_path)
    assert config(build_parser().parse_args(["serve"])).data == user_state("service")
    assert config(build_parser().parse_args(["serve", "--data", "here"])).data == Path("here")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "{picture}", "-o", "{folder}/{long}.glb"],
        ["generate", "{picture}", "-o", "{folder}/x.glb", "--weights", "{long}"],
        ["generate", "{picture}", "-o", "{folder}/x.glb", "--lora", "{long}"],
        ["generate", "{long}", "-o", "{folder}/x.glb"],
        ["info", "{long}"],
        ["lora", "info", "{long}"],
    ],
)
def test_names_that_are_too_long_are_told_in_words(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Path(__file__).parents[2] / "examples" / "icon_duck.png"
    assert main([part.format(picture=picture, folder=tmp_path, long="x" * 300) for part in command]) == 1
    said = capsys.readouterr().err
    assert "error: " in said and "too long" in said.lower() or "longer than" in said
