"""The program in surroundings that it did not choose: several at once, other languages, clocks that jump, odd folders."""

from __future__ import annotations

import locale
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.tiny_family import picture
from trellis_core import stages
from trellis_core.cli.main import main
from trellis_core.family import load_family
from trellis_core.files import locked
from trellis_core.settings import GenerationSettings

ROOT = Path(__file__).parents[1]
SHORT = {"ss_sampling_steps": 1, "shape_slat_sampling_steps": 1, "tex_slat_sampling_steps": 1, "decimation_target": 5000}
SETTINGS = GenerationSettings(resolution=512, texture_size=1024, remesh=False, **SHORT)


@pytest.fixture(scope="module")
def alone() -> bytes:
    """What comes out where nothing else happens."""
    return stages.generate(load_family("mini"), picture(), SETTINGS.model_copy(update={"seed": 5})).glb


def test_two_generations_in_two_threads_do_not_know_of_each_other(alone: bytes) -> None:
    family, made = load_family("mini"), {}

    def work(number: int) -> None:
        made[number] = stages.generate(family, picture(), SETTINGS.model_copy(update={"seed": 5 + number})).glb

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == alone and made[1] != alone


def test_a_clock_that_jumps_changes_nothing(alone: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10_000_000))
    monkeypatch.setattr(time, "time", lambda: 2e9 - 86_400.0 * next(jumps))
    asset = stages.generate(load_family("mini"), picture(), SETTINGS.model_copy(update={"seed": 5}))
    assert asset.glb == alone and all(0 <= seconds < 600 for seconds in asset.report.seconds.values())


def test_decimal_commas(alone: bytes) -> None:
    """Numbers in files and on the command line keep their point, whatever the user's language."""
    kept = locale.setlocale(locale.LC_ALL)
    known = [name for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "pl_PL.UTF-8", "German") if _is_there(name)]
    try:
        if known:
            locale.setlocale(locale.LC_ALL, known[0])
        made = stages.generate(load_family("mini"), picture(), SETTINGS.model_copy(update={"seed": 5}))
        assert made.glb == alone
        assert str(GenerationSettings(ss_guidance_strength="2.5").ss_guidance_strength) == "2.5"
    finally:
        locale.setlocale(locale.LC_ALL, kept)


def _is_there(name: str) -> bool:
    kept = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, kept)
    return True


FOLDERS = ["two words, Öl & Ähre, 猫 \N{CAT FACE} [a] {b} %20 #1", "x" * 255]


@pytest.mark.parametrize("name", FOLDERS)
def test_odd_folders_for_everything(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / name
    home.mkdir()
    shutil.copytree(ROOT / "trellis_core" / "mini", home / "weights")
    picture().save(home / "in put.png")
    long = "y" * 251
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SHORT.items()]
    flags += ["--texture-size=1024", "--no-remesh", "--resolution=512", "--weights", str(home / "weights")]
    assert main(["info", str(home / "weights")]) == 0
    outputs = ["-o", str(home / f"{long}.glb"), "--preview", str(home / f"{long}.png"), "--report", str(home / "ü.json")]
    assert main(["generate", str(home / "in put.png"), *outputs, *flags]) == 0
    assert {path.name for path in home.iterdir()} == {"weights", "in put.png", f"{long}.glb", f"{long}.png", "ü.json"}


def test_where_standard_output_cannot_say_it(tmp_path: Path) -> None:
    """A terminal of ASCII alone: names of any kind are still told, in some form, and no error of their own."""
    picture().save(tmp_path / "猫.png")
    command = [
        sys.executable,
        "-m",
        "trellis_core",
        "generate",
        str(tmp_path / "猫.png"),
        "-o",
        str(tmp_path / "no" / "猫.glb"),
    ]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "does not exist" in done.stderr and "Traceback" not in done.stderr


def test_a_second_training_in_one_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    (tmp_path / "out").mkdir()
    (tmp_path / "data").mkdir()
    with locked(tmp_path / "out" / ".lock"):
        before = set((tmp_path / "out").iterdir())
        call = ["train-lora", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--stage", "texture"]
        assert main(call) == 1
        assert set((tmp_path / "out").iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_disk_that_fills_up_under_a_whole_run(tmp_path: Path) -> None:
    """Every write of the command line breaks off in the middle; what was there before is still there."""
    picture().save(tmp_path / "disc.png")
    (tmp_path / "disc.glb").write_bytes(b"the model of yesterday")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SHORT.items()]
    arguments = [
        "generate",
        str(tmp_path / "disc.png"),
        "-o",
        str(tmp_path / "disc.glb"),
        "--texture-size=1024",
        "--no-remesh",
        *flags,
    ]
    script = f"""
import resource, sys
from trellis_core.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(main({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "disc.glb").read_bytes() == b"the model of yesterday"
    assert {path.name for path in tmp_path.iterdir()} == {"disc.png", "disc.glb"}
