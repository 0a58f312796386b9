"""Kills our client at random moments, over and over: nothing may be lost, and nothing may be paid twice.

    python -m tests.trial_client --kills 100

`python -m tests.service_trial` does it too, after its own.

A server that counts what it accepts, answers late and breaks downloads off runs in a process of its own. Each job is begun in a
process that is killed after a random time, several times, and then once more to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from tests.helpers.fal_faults import Fault, Faulty, glb, served
from trellis_core.fal.answers import Unsure
from trellis_core.fal.client import FalClient
from trellis_core.fal.open_requests import Notebook
from trellis_core.fal.order import Order, order
from trellis_core.fal.remote import generate
from trellis_core.fal.wire import Pace
from trellis_core.settings import GenerationSettings

PROCESSES = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
APP = "fal-ai/trellis-2"
MODEL = glb(200_000)
KILLS_A_JOB = 2
LATEST = 0.03
"""Seconds that an answer takes at most."""


@dataclass
class Account:
    """What came of a trial.

    Attributes:
        jobs, kills: how many there were. made: jobs whose model was had without a word of the user.
        unsure: jobs of which the client said that it did not know whether they were accepted.
        paid_twice, lost: seeds of jobs that were accepted twice, or accepted and never had.
        moments: how many kills fell before a submit, and into each of its states.
    """

    jobs: int = 0
    kills: int = 0
    made: int = 0
    unsure: int = 0
    paid_twice: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """In words."""
        moments = ", ".join(f"{count} {name}" for name, count in self.moments.most_common())
        return (
            f"{self.kills} kills in {self.jobs} jobs ({moments}): {self.made} made, {self.unsure} told to be unsure, "
            f"{len(self.lost)} lost, {len(self.paid_twice)} paid twice"
        )


def trial(kills: int, seed: int, folder: Path, marks: bool) -> Account:
    """Run it; `folder` gets the client's notes. With `marks` the server is like our own, else like fal.ai."""
    chance, account = random.Random(seed), Account()
    ours, theirs = PROCESSES.Pipe()
    server = PROCESSES.Process(target=_serve, args=(theirs, seed, marks), daemon=True)
    server.start()
    url = ours.recv()
    try:
        longest = _seconds_of(_client(url, folder, 0))
        while account.kills < kills:
            account.jobs += 1
            _one_job(url, folder, account, chance, min(KILLS_A_JOB, kills - account.kills), longest)
    finally:
        ours.send("end")
        server.join()
    return account


def _one_job(url: str, folder: Path, account: Account, chance: random.Random, kills: int, longest: float) -> None:
    number = account.jobs
    for _ in range(kills):
        client = _client(url, folder, number)
        client.join(chance.uniform(0, longest))
        client.kill()
        client.join()
        account.kills += 1
        kept = Notebook(folder).find(_order(number).fingerprint(url))
        account.moments[kept.state if kept else "before"] += 1
    _client(url, folder, number).join()
    accepted, model = _accepted(url, number), folder / f"{number}.glb"
    if (folder / f"{number}.unsure").exists():
        account.unsure += 1
        if len(accepted) == 1:  # what the message tells the user to do
            _client(url, folder, number, accepted[0]).join()
        account.lost += [number] if accepted and not model.exists() else []
    else:
        account.made += model.exists() and model.read_bytes() == MODEL
        account.lost += [] if model.exists() else [number]
    account.paid_twice += [number] if len(accepted) > 1 else []


def _order(number: int) -> Order:
    return order(APP, GenerationSettings(seed=number), [Image.new("RGBA", (64, 64), (number % 256, 30, 30, 255))])


def _client(url: str, folder: Path, number: int, request_id: str = "") -> Any:
    client = PROCESSES.Process(target=_work, args=(url, folder, number, request_id))
    client.start()
    return client


def _work(url: str, folder: Path, number: int, request_id: str) -> None:
    """One client: leaves a model, or a word that it is not sure."""
    client = FalClient("key", url, Pace(poll=0.002))
    try:
        made = asyncio.run(generate(client, Notebook(folder), _order(number), request_id=request_id))
    except Unsure as error:
        (folder / f"{number}.unsure").write_text(str(error))
        return
    draft = folder / f"{number}.draft"
    draft.write_bytes(made.glb)
    draft.replace(folder / f"{number}.glb")


def _seconds_of(client: Any) -> float:
    begun = time.monotonic()
    client.join()
    return time.monotonic() - begun


def _accepted(url: str, number: int) -> list[str]:
    with urllib.request.urlopen(f"{url}/trial", timeout=60) as reply:
        return [name for seed, name in json.load(reply) if seed == number]


def _serve(pipe: Connection, seed: int, marks: bool) -> None:
    chance, plan = random.Random(seed), Faulty(model=MODEL, knows_marks=marks)

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/trial":
            return web.json_response([(body["seed"], name) for body, name in zip(plan.bodies, plan.accepted, strict=True)])
        await asyncio.sleep(chance.uniform(0, LATEST))
        plan.faults["file"] = [Fault(cut=chance.randrange(len(MODEL)))] if chance.random() < 0.5 else []
        answer = await plan.handle(request)
        await asyncio.sleep(chance.uniform(0, LATEST))
        return answer

    with served(handle) as url:
        plan.url = url
        pipe.send(url)
        pipe.recv()


def report(kills: int, seed: int = 0) -> bool:
    """Try it with both kinds of servers and print what came of it; whether all is as it should be."""
    well = True
    for marks, name in ((False, "like fal.ai"), (True, "like our own service")):
        with tempfile.TemporaryDirectory() as folder:
            account = trial(kills // 2, seed, Path(folder), marks)
        print(f"The client and a server {name}: {account.text()}", flush=True)
        well &= not (account.lost or account.paid_twice or (marks and account.unsure))
    return well


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    raise SystemExit(not report(options.kills, options.seed))


if __name__ == "__main__":
    main()
