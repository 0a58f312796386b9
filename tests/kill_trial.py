"""Kills the program at random moments, as a power cut does, and looks at what is left.

    python -m tests.kill_trial                                  # 100 kills each of generate, service, training, download
    python -m tests.kill_trial --kills 20 --seed 3 download     # fewer, of some

After every kill: no file under a final name is half, every job that the service accepted is still there, and the next
start works. At the end each program runs once to its end in the folder that the kills have left.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from trellis_core.files import DRAFT

ROOT = Path(__file__).parents[1]
LONGEST = 300.0
"""Seconds that a run may take."""
EAGER = 0.5
"""Share of the kills that come just after a file was begun: most of a run writes nothing."""


class Trial:
    """A program that is killed again and again in one folder."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'tests' / 'host' / 'site'}{os.pathsep}{ROOT}",
            "HF_HUB_DISABLE_XET": "1",
        }

    def command(self) -> list[str]:
        """What is run, anew each time."""
        raise NotImplementedError

    def after(self) -> None:
        """Look at what a kill left; asserts."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.name.endswith((DRAFT, ".incomplete")):
                check_whole(path)

    def at_end(self) -> None:
        """Look at what a whole run left."""
        self.after()

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                self.command(), cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill_once(self, chance: random.Random, seconds: float) -> None:
        """Start it, kill it within `seconds`, and look."""
        process = self.start()
        deadline = time.monotonic() + chance.uniform(0, seconds)
        eager = chance.random() < EAGER
        before = self._files()
        while process.poll() is None and time.monotonic() < deadline + (seconds if eager else 0):
            if eager and self._files() != before and time.monotonic() > deadline:
                time.sleep(chance.uniform(0, 0.01))
                break
            time.sleep(0.0005 if eager else 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.after()

    def run_whole(self) -> float:
        """Run it to its end; the seconds that it took."""
        began = time.monotonic()
        process = self.start()
        assert process.wait(LONGEST) == 0, (self.folder.parent / f"{self.name}.log").read_text()[-3000:]
        self.at_end()
        return time.monotonic() - began

    def _files(self) -> set[tuple[str, int]]:
        found = set()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    found.add((name, os.stat(os.path.join(folder, name)).st_size))
        return found


def check_whole(path: Path) -> None:
    """Assert that a file of a kind that we write is whole."""
    data = path.read_bytes()
    if path.suffix == ".glb":
        assert data[:4] == b"glTF" and struct.unpack_from("<I", data, 8)[0] == len(data), f"{path} is half"
    elif path.suffix == ".png":
        Image.open(io.BytesIO(data)).load()
    elif path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():
                file.get_tensor(name)
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)


class Generate(Trial):
    """A picture to a GLB, its picture and its report."""

    name = "generate"

    def command(self) -> list[str]:
        at = [str(self.folder / name) for name in ("model.glb", "view.png", "report.json")]
        return [
            sys.executable, "-m", "trellis_core", "generate", "examples/icon_tree.png", "-o", at[0], "--preview", at[1],
            "--report", at[2], "--texture-size", "1024", "--ss-sampling-steps", "1", "--shape-slat-sampling-steps", "1",
            "--tex-slat-sampling-steps", "1", "--decimation-target", "5000", "--no-remesh", "--seed", "2",
        ]  # fmt: skip

    def at_end(self) -> None:
        super().at_end()
        assert {"model.glb", "view.png", "report.json"} <= {path.name for path in self.folder.iterdir()}


class Training(Trial):
    """A LoRA for the texture stage, which goes on where the kill stopped it."""

    name = "training"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = folder.parent / "models"
        self.data.mkdir()
        corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        faces = ["1 3 4 2", "5 6 8 7", "1 2 6 5", "3 7 8 4", "1 5 7 3", "2 4 8 6"]
        lines = [*(f"v {x} {y} {z}" for x, y, z in corners), *(f"f {face}" for face in faces)]
        (self.data / "box.obj").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "trellis_core", "train-lora", "--data", str(self.data), "--stage", "texture",
            "--out", str(self.folder), "--steps", "100", "--rank", "16",
            "--batch", "1", "--views", "1", "--sample-every", "50", "--resolution", "512",
        ]  # fmt: skip

    def at_end(self) -> None:
        super().at_end()
        assert list(self.folder.rglob("*.safetensors"))


class Service(Trial):
    """The queue with work that costs nothing: what was accepted is done, or waits, or says that it was broken off."""

    name = "service"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/fal"
        self.accepted: set[str] = set()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.kill_trial", "--serve", str(self.folder), self.url]

    def kill_once(self, chance: random.Random, seconds: float) -> None:
        process = self.start()
        self._wait(process)
        stop = threading.Event()
        clients = [threading.Thread(target=self._submit, args=(stop,)) for _ in range(3)]
        for client in clients:
            client.start()
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop.set()
        for client in clients:
            client.join()
        self.after()

    def run_whole(self) -> float:
        """Every job that was ever accepted is known to the next start, and comes to an end."""
        began = time.monotonic()
        process = self.start()
        try:
            self._wait(process)
            for job in self.accepted:
                while (state := self._ask(f"queue/fal-ai/trellis-2/requests/{job}/status"))["status"] != "COMPLETED":
                    assert time.monotonic() < began + LONGEST
                    time.sleep(0.01)
                if "error" in state:
                    assert "restarted" in state["error"] or state["error_type"] == "runner_server_error", state
                else:
                    made = self._ask(f"queue/fal-ai/trellis-2/requests/{job}")["model_glb"]
                    with urllib.request.urlopen(made["url"], timeout=30) as reply:
                        assert len(reply.read()) == made["file_size"]
        finally:
            process.kill()
            process.wait()
        return time.monotonic() - began

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + LONGEST
        while True:
            with contextlib.suppress(OSError):
                self._ask("openapi.json?endpoint_id=fal-ai/trellis-2")
                return
            assert process.poll() is None and time.monotonic() < deadline, "the service does not start"
            time.sleep(0.02)

    def _submit(self, stop: threading.Event) -> None:
        from tests.helpers.fal_service import PIXELS

        while not stop.is_set():
            with contextlib.suppress(OSError, ValueError):
                self.accepted.add(self._ask("queue/fal-ai/trellis-2", {"image_url": PIXELS})["request_id"])

    def _ask(self, path: str, body: dict[str, str] | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)


def serve(folder: Path, url: str) -> None:
    """What `Service` kills."""
    import asyncio
    import logging

    from tests.helpers.fal_service import Gate
    from trellis_core.fal.service import app, local
    from trellis_core.fal.service import serve as command

    logging.disable()

    async def run() -> None:
        service = app.Service(app.ServiceConfig(folder))
        runner = local.LocalRunner(Gate(), service.reader, service.store, service.pools)
        async with command.running(service, runner, "127.0.0.1", int(url.split(":")[2].split("/")[0])):
            await asyncio.Event().wait()

    asyncio.run(run())


class Download(Trial):
    """The official weights from a hub that is slow and small."""

    name = "download"
    SIZE = 300_000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hub = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
        threading.Thread(target=self.hub.serve_forever, daemon=True).start()
        self.environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.hub.server_port}", "HF_HOME": str(folder.parent / "home")}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "trellis_core", "download", "--to", str(self.folder), "--yes"]

    def after(self) -> None:
        for repository, files in _Hub.REPOSITORIES.items():
            for name in files:
                path = self.folder / repository.split("/")[1] / name
                assert not path.exists() or path.read_bytes() == content(repository, name), f"{path} is half"

    def at_end(self) -> None:
        self.after()
        there = {path.name for path in self.folder.rglob("*") if path.is_file()}
        assert {Path(name).name for files in _Hub.REPOSITORIES.values() for name in files} <= there


def content(repository: str, name: str) -> bytes:
    """Bytes of a file of the small hub."""
    if name.endswith(".json"):
        return json.dumps({"file": name}).encode()
    return random.Random(f"{repository}/{name}").randbytes(Download.SIZE)


class _Hub(BaseHTTPRequestHandler):
    """The calls of the Hugging Face Hub that a download makes."""

    REPOSITORIES = {
        "microsoft/TRELLIS.2-4B": ("pipeline.json", "ckpts/ss_flow_img_dit.safetensors", "ckpts/shape_dec_next.safetensors"),
        "microsoft/TRELLIS-image-large": ("ckpts/ss_dec_conv3d_16l8_fp16.safetensors", "ckpts/ss_dec_conv3d_16l8_fp16.json"),
        "timm/vit_large_patch16_dinov3.lvd1689m": ("config.json", "model.safetensors"),
    }
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0].lstrip("/")
        if path.startswith("api/models/"):
            self._describe("/".join(path.split("/")[2:4]), "/tree/" in path)
        else:
            self._send("/".join(path.split("/")[:2]), "/".join(path.split("/")[4:]))

    def _describe(self, repository: str, tree: bool) -> None:
        files = self.REPOSITORIES[repository]
        if tree:
            entries = [{"type": "file", "path": n, "size": len(content(repository, n)), "oid": "0" * 40} for n in files]
            self._answer(200, json.dumps(entries).encode())
            return
        siblings = [{"rfilename": name, "size": len(content(repository, name)), "blobId": "0" * 40} for name in files]
        self._answer(200, json.dumps({"id": repository, "sha": "f" * 40, "siblings": siblings}).encode())

    def _send(self, repository: str, name: str) -> None:
        data = content(repository, name)
        head = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "f" * 40, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if found := self.headers.get("Range"):
            start, status = int(found.removeprefix("bytes=").split("-")[0]), 206
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(status, data[start:], head)

    def _answer(self, status: int, body: bytes, head: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(head or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            for start in range(0, len(body), 50_000):
                self.wfile.write(body[start : start + 50_000])
                time.sleep(0.002)

    def log_message(self, *_: object) -> None:
        pass


TRIALS = {trial.name: trial for trial in (Generate, Training, Service, Download)}


@contextlib.contextmanager
def made(name: str, folder: Path) -> Iterator[Trial]:
    """A trial in a new folder below `folder`."""
    (folder / "out").mkdir(parents=True)
    yield TRIALS[name](folder / "out")


def hold(name: str, kills: int, seed: int, folder: Path, seconds: float | None = None) -> None:
    """Kill a program so often, then let it run to its end.

    Args:
        seconds: how long a run takes; None measures it.
    """
    chance = random.Random(seed)
    if seconds is None:
        with made(name, folder / "measured") as trial:
            seconds = trial.run_whole()
    with made(name, folder / "killed") as trial:
        for number in range(kills):
            trial.kill_once(chance, seconds)
            print(f"\r{name}: {number + 1} of {kills} kills", end="", flush=True)
        trial.run_whole()
    print(f"\r{name}: {kills} kills, nothing half, nothing lost")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_trial", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), options.serve[1])
        return
    for name in options.names or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            hold(name, options.kills, options.seed, Path(folder))


if __name__ == "__main__":
    main()
