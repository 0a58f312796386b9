"""The service on trial: attacks beside a client that asks how its job stands, and kills at random moments.

    python -m tests.service_trial                         # every attack, 100 kills of the service, 100 of the client
    python -m tests.service_trial --attacks gzip silent   # some of them
    python -m tests.service_trial --code /path/to/another/checkout --attacks-only

Each attack runs for some seconds against a server in a process of its own while another client asks for a status over and
over; the longest wait, the memory that the server took on top, and what it logged are printed beside the goals. With
`--code` the server is that of another checkout, for comparison.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.helpers.misbehaving import Stranger, tiresome_host

ROOT = Path(__file__).parents[1]
KEY, OTHER = "a-key-of-the-trial-itself", "another-key-of-the-trial"
APP = "fal-ai/trellis-2-lora"
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAYAAADED76LAAAAIUlEQVR42mNkYGBgOCEn958BB2DCJ8nAwMDAxEAADAkFANqCBBbq9AuHAAAAAElFTkSuQmCC"
)
PIXELS = "data:image/png;base64," + PICTURE
WAIT_GOAL, MEMORY_GOAL = 100.0, 300.0

NURSERY = """
import asyncio, os, sys, time
from pathlib import Path
folder, seconds, trusted = Path(sys.argv[1]), float(sys.argv[2]), tuple(sys.argv[4:])
keys = tuple(k for k in sys.argv[3].split(",") if k)
from trellis_core.fal.service.app import Service
from trellis_core.fal.service import local, serve
try:
    from trellis_core.fal.service.config import ServiceConfig
except ImportError:
    from trellis_core.fal.service.app import ServiceConfig
def make(inputs, ctx):
    for _ in range(int(seconds * 100)):
        ctx.check()
        time.sleep(0.01)
    return local.Made(b"glTF" + bytes(60), inputs.settings.seed or 0)
def run():
    service = Service(ServiceConfig(folder, keys, trusted=trusted))
    if hasattr(serve, "run_service"):
        serve.run_service(service, local.LocalRunner(make, service.reader, service.store, service.pools), "127.0.0.1", 0)
    else:
        asyncio.run(serve.serve(service, local.LocalRunner(make, service.reader, service.store), "127.0.0.1", 0))
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), time.monotonic(), flush=True)
        run()
        os._exit(0)
    os.waitpid(child, 0)
"""


@dataclass
class Server:
    """Services in processes of their own, one after the other, which a process that has imported everything brings forth."""

    folder: Path
    seconds: float = 0.0
    keys: str = f"{KEY},{OTHER}"
    trusted: tuple[str, ...] = ()
    code: Path = ROOT
    url: str = field(default="", init=False)
    process: int = field(default=0, init=False)
    start_seconds: float = field(default=0.0, init=False)

    def __enter__(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        command = [sys.executable, "-c", NURSERY, str(self.folder), str(self.seconds), self.keys, *self.trusted]
        environment = os.environ | {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"}
        self._nursery = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, cwd=self.code
        )  # fmt: skip
        self.start()
        return self

    def start(self) -> None:
        """The next service; `start_seconds` is how long it took until it listened."""
        assert self._nursery.stdin and self._nursery.stdout
        self._nursery.stdin.write("\n")
        self._nursery.stdin.flush()
        number, began = self._nursery.stdout.readline().split()
        self.process = int(number)
        self.url = self._nursery.stdout.readline().split()[1].rstrip(".")
        self.start_seconds = time.monotonic() - float(began)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self._nursery.kill()
        self._nursery.wait()
        self.log.close()

    def memory(self) -> float:
        """Largest MB that the process ever had."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY, timeout: float = 30.0) -> tuple[int, Any]:
        """Status and JSON of an answer; (0, None) if there is none."""
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=timeout)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        headers = {"Authorization": f"Key {key}", "Content-Type": "application/json"}
        try:
            connection.request(method, "/fal" + path, data, headers)
            reply = connection.getresponse()
            content = reply.read()
            return reply.status, json.loads(content) if "json" in reply.headers.get("Content-Type", "") else content
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def submit(self, key: str = KEY, **values: Any) -> str | None:
        status, body = self.ask("POST", f"/queue/{APP}", {"image_url": PIXELS, **values}, key)
        return body["request_id"] if status == 200 else None


# Attacks: called over and over, in several threads, while the other client asks

Attack = Callable[[Server, list[Stranger]], None]


def _send(server: Server, request: Callable[[Stranger], bytes]) -> None:
    with suppress(OSError), Stranger(server.url) as stranger:
        stranger.socket.settimeout(5)
        stranger.status(request(stranger))


@lru_cache
def _gigabyte() -> bytes:
    return gzip.compress(bytes(1 << 30), 9)


def packed(server: Server, _: list[Stranger]) -> None:
    """A gzip of a gigabyte."""
    head = ("Content-Encoding: gzip", f"Content-Length: {len(_gigabyte())}")
    _send(server, lambda stranger: stranger.head("POST", f"/run/{APP}", *head) + _gigabyte())


def silent(server: Server, held: list[Stranger]) -> None:
    """Connections on which nothing comes."""
    with suppress(OSError):
        held.append(Stranger(server.url))
    time.sleep(0.005)


def dripping(server: Server, held: list[Stranger]) -> None:
    """Headers that never end."""
    silent(server, held)
    for one in held[-50:]:
        with suppress(OSError):
            one.send(b"X")


def garbage(server: Server, _: list[Stranger]) -> None:
    """What is no request, with escapes."""
    _send(server, lambda stranger: b"\x1b[2J\x07 \xff\r\n\r\n")


def malformed(server: Server, _: list[Stranger]) -> None:
    """A Host that is none."""
    _send(server, lambda stranger: stranger.head("GET", "/openapi.json", host="["))


def proxied(server: Server, _: list[Stranger]) -> None:
    """The proxy asked to ask itself."""
    _send(server, lambda stranger: stranger.head("GET", "/proxy", f"x-fal-target-url: {server.url}/proxy/"))


def _body(server: Server, body: bytes, path: str = f"/queue/{APP}", key: str = OTHER) -> None:
    head = (f"Authorization: Key {key}", "Content-Type: application/json", f"Content-Length: {len(body)}")
    _send(server, lambda stranger: stranger.head("POST", path, *head) + body)


def percent(server: Server, _: list[Stranger]) -> None:
    """39 MB of percent signs as a picture."""
    _body(server, b'{"image_url": "data:;base64,' + b"%" * (39 << 20) + b'"}')


def lists(server: Server, _: list[Stranger]) -> None:
    """39 MB of JSON."""
    _body(server, b'{"a": [' + b"[]," * (13 << 20) + b"[]]}")


def small_lists(server: Server, _: list[Stranger]) -> None:
    """As much JSON as is allowed."""
    _body(server, b'{"a": [' + b"[]," * 340_000 + b"[]]}")


def nested(server: Server, _: list[Stranger]) -> None:
    """JSON nested just below what Python reads."""
    _body(server, b'{"seed": ' + b"[" * 950 + b"]" * 950 + b"}")


def half_sent(server: Server, held: list[Stranger]) -> None:
    """38 MB of bodies of 40."""
    if len(held) < 40:
        with suppress(OSError):
            one = Stranger(server.url)
            held.append(one)
            one.send(one.head("POST", f"/queue/{APP}", f"Authorization: Key {OTHER}", f"Content-Length: {40 << 20}"))
            one.send(b" " * (38 << 20))
    else:
        time.sleep(0.1)


def webhooks(server: Server, _: list[Stranger]) -> None:
    """Webhooks to a host that says nothing."""
    server.ask("POST", f"/queue/{APP}?fal_webhook=http://{server.trusted[0]}/", {"image_url": PIXELS}, OTHER, 5)


def trickling(server: Server, _: list[Stranger]) -> None:
    """Pictures from a host that says nothing."""
    server.ask("POST", f"/queue/{APP}", {"image_url": f"http://{server.trusted[0]}/"}, OTHER, 5)
    time.sleep(0.2)


def uploads(server: Server, _: list[Stranger]) -> None:
    """Empty uploads, begun and never ended."""
    server.ask("POST", "/rest/storage/upload/initiate-multipart", {}, OTHER, 5)


def pipelined(server: Server, held: list[Stranger]) -> None:
    """A thousand requests at a time, and no look at an answer."""
    with suppress(OSError):
        one = Stranger(server.url)
        held.append(one)
        one.socket.settimeout(1)
        one.send(one.head("GET", f"/openapi.json?endpoint_id={APP}") * 1000)
    time.sleep(0.02)


ATTACKS: dict[str, tuple[Attack, int]] = {
    "none": (lambda server, held: time.sleep(0.1), 1), "gzip": (packed, 2), "silent": (silent, 2), "dripping": (dripping, 2),
    "garbage": (garbage, 2), "malformed": (malformed, 2), "proxy": (proxied, 2), "percent": (percent, 2),
    "lists": (lists, 2), "small lists": (small_lists, 2), "nested": (nested, 2), "half-sent": (half_sent, 2),
    "webhooks": (webhooks, 2), "trickling": (trickling, 2), "uploads": (uploads, 2), "pipelined": (pipelined, 2),
}  # fmt: skip
"""Name -> what is done, and by how many threads."""


def attack_from_here(name: str, url: str, host: str) -> None:
    """Attack until standard input ends; says when it begins."""
    attack, threads = ATTACKS[name]
    server = Server(Path(), trusted=(host,))
    server.url = url
    held: list[Stranger] = []
    if attack is packed:
        _gigabyte()

    def go_on() -> None:
        while True:
            attack(server, held)

    for _ in range(threads):
        threading.Thread(target=go_on, daemon=True).start()
    print("begun", flush=True)
    sys.stdin.read()
    os._exit(0)


def attacked(name: str, folder: Path, seconds: float, code: Path) -> dict[str, float]:
    """Longest and median wait for a status (ms), how many got none, memory on top (MB), log (kB), while the attack runs."""
    with ExitStack() as stack:
        host, _ = stack.enter_context(tiresome_host())
        server = stack.enter_context(Server(folder, 0.02, trusted=(host[7:],), code=code))
        mine = server.submit()
        for _ in range(20):
            server.ask("GET", f"/queue/{APP}/requests/{mine}/status")
        before = server.memory()
        command = [sys.executable, "-m", "tests.service_trial", "--from-here", name, server.url, host[7:]]
        attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert attacker.stdout and attacker.stdin
        attacker.stdout.readline()
        waits, failed, end = [], 0, time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            status, _ = server.ask("GET", f"/queue/{APP}/requests/{mine}/status", timeout=15)
            waits.append(1000 * (time.perf_counter() - began))
            failed += status != 200
            time.sleep(0.02)
        memory = server.memory() - before
        attacker.kill()
        attacker.wait()
    log = folder.parent / f"{folder.name}.log"
    waits.sort()
    return {
        "longest": waits[-1], "median": waits[len(waits) // 2], "failed": failed, "memory": memory,
        "log": log.stat().st_size / 1000,
    }  # fmt: skip


def killing(folder: Path, kills: int, seed: int = 0, code: Path = ROOT) -> dict[str, float]:
    """Kill the server at random moments while jobs are submitted; what became of every job that was accepted.

    Returns:
        submitted, and of these: lost (404, or never ended), restarted (told so), made; half files; slowest start in s, from
        the process' beginning, modules loaded, until it listens.
    """
    chance = random.Random(seed)
    accepted: dict[str, int] = {}
    starts: list[float] = []
    ended: dict[str, int] = {}
    half = 0
    with Server(folder / "data", 0.03, code=code) as server:
        for _ in range(kills):
            over = threading.Event()

            def send(over: threading.Event = over) -> None:
                while not over.is_set():
                    if request_id := server.submit(seed=len(accepted)):
                        accepted[request_id] = len(accepted)

            senders = [threading.Thread(target=send, daemon=True) for _ in range(2)]
            for sender in senders:
                sender.start()
            time.sleep(chance.uniform(0.05, 0.6))
            server.kill()
            over.set()
            for sender in senders:
                sender.join()
            server.start()
            starts.append(server.start_seconds)
        for request_id in accepted:
            end = time.monotonic() + 120
            one = f"/queue/{APP}/requests/{request_id}"
            state = 0, None
            while time.monotonic() < end and (state := server.ask("GET", f"{one}/status"))[0] == 200:
                if state[1]["status"] == "COMPLETED":
                    ended[request_id], body = server.ask("GET", one)
                    if ended[request_id] == 200:
                        place = body["model_glb"]["url"].split("/fal", 1)[1]
                        half += len(server.ask("GET", place)[1]) != body["model_glb"]["file_size"]
                    break
                time.sleep(0.02)
            if state[0] != 200:
                ended[request_id] = state[0]
    made = sum(status == 200 for status in ended.values())
    restarted = sum(status == 500 for status in ended.values())
    return {
        "submitted": len(accepted), "made": made, "restarted": restarted, "lost": len(accepted) - made - restarted,
        "half files": half, "slowest start": max(starts),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attack")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--code", type=Path, default=ROOT, metavar="FOLDER", help="of the server: another checkout")
    parser.add_argument("--attacks-only", action="store_true")
    parser.add_argument("--from-here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.from_here:
        attack_from_here(*options.from_here)
    print(f"{'attack':12} {'longest':>10} {'median':>9} {'no answer':>10} {'memory':>9} {'log':>10}")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.attacks:
            found = attacked(name, Path(folder) / name.replace(" ", "_"), options.seconds, options.code)
            print(
                f"{name:12} {found['longest']:7.0f} ms {found['median']:6.1f} ms {found['failed']:10.0f} "
                f"{found['memory']:6.0f} MB {found['log']:7.1f} kB",
                flush=True,
            )
            if found["longest"] > WAIT_GOAL or found["memory"] > MEMORY_GOAL or found["failed"]:
                missed.append(name)
        print(f"goals: {WAIT_GOAL:.0f} ms at most, {MEMORY_GOAL:.0f} MB, every question answered; missed: {missed or 'none'}")
        if not options.attacks_only:
            from tests import trial_client

            told = killing(Path(folder) / "kills", options.kills, code=options.code)
            print(f"{options.kills} kills: " + ", ".join(f"{name} {value:.3g}" for name, value in told.items()))
            trial_client.report(options.kills)


if __name__ == "__main__":
    main()
