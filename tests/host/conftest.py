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
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows" / "api").glob("*.json"))
STARTS_WITHIN = 300.0


@dataclass(frozen=True)
class Host:
    """A running server: its address, its base folder and its log."""

    url: str
    base: Path
    log: Path

    @property
    def client(self) -> Any:
        from .client import Client

        return Client(self.url)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    pytest.importorskip("aiohttp", reason="ComfyUI's requirements are not installed: bash scripts/host.sh")
    source = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))
    if not (source / "main.py").is_file():
        pytest.skip(f"There is no ComfyUI in {source}: bash scripts/host.sh, or set COMFYUI_PATH to a checkout")
    base = tmp_path_factory.mktemp("host")
    for folder in ("custom_nodes", "input", "output", "temp", "user", "models/trellis2"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "TrellisCore").symlink_to(ROOT, target_is_directory=True)
    for picture in (ROOT / "examples").glob("*.png"):
        shutil.copy(picture, base / "input")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Host(f"http://127.0.0.1:{port}", base, base / "server.log")
    with here.log.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
            + ["--base-directory", str(base), "--database-url", f"sqlite:///{base}/user/comfyui.db"]
            + ["--disable-auto-launch"],
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(here, server)
        yield here
    finally:
        server.terminate()
        server.wait(30)


def _wait(host: Host, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{host.url}/system_stats", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start:\n{host.log.read_text()[-4000:]}")


def workflow(name: str, **changes: Any) -> dict[str, Any]:
    """A stored API workflow with few steps and a small texture, and with inputs changed: `n4_seed=7` is seed of node 4."""
    prompt = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text())
    for node in prompt.values():
        for key in node["inputs"]:
            if key.endswith("sampling_steps"):
                node["inputs"][key] = 4
    for change, value in changes.items():
        node, key = change[1:].split("_", 1)
        prompt[node]["inputs"][key] = value
    return prompt
