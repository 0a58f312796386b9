"""The tests themselves on other machines: fewer packages, another name of the checkout, other languages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONAL = ("triton", "numba", "peft", "trimesh", "xatlas", "cv2", "aiohttp", "cryptography", "fal_client", "ray", "gguf")
OPTIONAL += ("rembg", "onnxruntime", "nvdiffrast", "flash_attn", "psutil", "huggingface_hub")
"""What Windows, macOS, ARM, or a user may be without."""


def test_tests_collect_and_pass_with_less_and_in_a_folder_named_like_a_module(tmp_path: Path) -> None:
    checkout = tmp_path / "queue"
    checkout.mkdir()
    for part in ROOT.iterdir():
        if part.name == "tests":
            shutil.copytree(part, checkout / "tests", ignore=shutil.ignore_patterns("golden", "__pycache__"))
        elif not part.name.startswith("."):
            (checkout / part.name).symlink_to(part)
    (checkout / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
    options = [part for package in OPTIONAL for part in ("--without", package)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_settings or test_sampler", *options]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CI", "PYTEST_ADDOPTS")}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "error" not in done.stdout.splitlines()[-1]
