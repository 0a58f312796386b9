"""Starts one real ComfyUI for all tests of this folder, with the pack linked into it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows" / "api").glob("*.json"))
STARTS_WITHIN = 900.0


@dataclass(frozen=True)
class Host:
    """A running server: its address, its base folder, its log, its number as a process, and what it was started from."""

    url: str
    base: Path
    log: Path
    process: int
    source: Path

    @property
    def client(self) -> Any:
        from .client import Client

        return Client(self.url, self.process)


@pytest.fixture(scope="session")
def source() -> Path:
    """Where ComfyUI lies. Without one its tests are skipped, but not in CI."""
    folder = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))
    missing = "" if (folder / "main.py").is_file() else f"There is no ComfyUI in {folder}"
    if find_spec("aiohttp") is None:
        missing = "ComfyUI's requirements are not installed"
    if missing:
        assert not os.environ.get("CI"), missing
        pytest.skip(f"{missing}: bash scripts/host.sh, or set COMFYUI_PATH to a checkout before it")
    return folder


@pytest.fixture(scope="session")
def host(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("host")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "server.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
            + ["--base-directory", str(base), "--database-url", f"sqlite:///{base}/user/comfyui.db"]
            + ["--extra-model-paths-config", str(_furnish(base)), "--disable-auto-launch"],
            cwd=source,
            env=environment(),
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    here = Host(f"http://127.0.0.1:{port}", base, log, server.pid, source)
    try:
        _wait(here, server)
        yield here
    finally:
        server.terminate()
        server.wait(30)


def environment() -> dict[str, str]:
    """Of processes that import ComfyUI."""
    ours = {"PYTHONPATH": str(Path(__file__).parent / "site"), "PYTHONDONTWRITEBYTECODE": "1", "TRELLIS_SERVE": "1"}
    return {**{k: v for k, v in os.environ.items() if k != "FAL_KEY"}, **ours}


def _furnish(base: Path) -> Path:
    """Folders of a host with the pack, pictures, and mini's weights once more in two other places; their list of paths."""
    for folder in ("custom_nodes", "input", "output", "temp", "user", "models/trellis2", "models/diffusion_models", "more"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "trellis2-core").symlink_to(ROOT, target_is_directory=True)
    for picture in (ROOT / "examples").glob("*.png"):
        shutil.copy(picture, base / "input")
    mini = ROOT / "trellis_core" / "mini"
    (base / "models" / "trellis2" / "mine").symlink_to(mini, target_is_directory=True)
    (base / "more" / "theirs").symlink_to(mini, target_is_directory=True)
    paths = base / "paths.yaml"
    paths.write_text(f"elsewhere:\n  trellis2: {base / 'more'}\n")
    return paths


def _wait(host: Host, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{host.url}/system_stats", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start:\n{host.log.read_text()[-4000:]}")


SMALL = {"texture_size": "1024", "decimation_target": 5000}


def workflow(name: str, **changes: Any) -> dict[str, Any]:
    """A stored API workflow made small, and with inputs changed: `n4_seed=7` is seed of node 4."""
    prompt = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text())
    for node in prompt.values():
        for key in node["inputs"]:
            if key.endswith("sampling_steps"):
                node["inputs"][key] = 4
            elif key in SMALL:
                node["inputs"][key] = SMALL[key]
    for change, value in changes.items():
        node, key = change[1:].split("_", 1)
        prompt[node]["inputs"][key] = value
    return prompt


def find(prompt: dict[str, Any], kind: str) -> str:
    """The only node of a kind of ours, without the prefix of its id."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == f"TrellisCore{kind}")
    return key
