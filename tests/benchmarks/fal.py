"""The queue under load: many jobs at once, with work that takes no time.

    python -m tests.benchmarks.fal [--jobs 200] [--beside FOLDER]

Prints whether all ended in their order, how the memory grew, and how long a question about a job took meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.helpers.fal_service import KEY, PIXELS, Gate, serving
from trellis_core.context import RunContext
from trellis_core.fal.service.inputs import Inputs
from trellis_core.fal.service.local import Made

APP = "fal-ai/trellis-2-lora"
SECONDS, MODEL = 0.02, 1 << 20


class Work(Gate):
    """A megabyte after a moment."""

    def __call__(self, inputs: Inputs, ctx: RunContext) -> Made:
        self.seen.append(inputs.settings.seed)  # type: ignore[arg-type]
        time.sleep(SECONDS)
        ctx.report(1.0, "asset")
        return Made(b"glTF" + bytes(MODEL), inputs.settings.seed or 0)


async def load(url: str, jobs: int) -> dict[str, Any]:
    """Submit `jobs` at once, ask about random ones until all have ended."""
    headers = {"Authorization": f"Key {KEY}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=50)) as session:

        async def submit(seed: int) -> str:
            async with session.post(f"{url}/queue/{APP}", json={"image_url": PIXELS, "seed": seed}) as reply:
                return (await reply.json())["request_id"]

        began = time.perf_counter()
        ids = await asyncio.gather(*(submit(seed) for seed in range(jobs)))
        submitted = time.perf_counter() - began
        left, waits = list(ids), []
        while left:
            for request_id in list(left):
                asked = time.perf_counter()
                async with session.get(f"{url}/queue/{APP}/requests/{request_id}/status?logs=1") as reply:
                    state = await reply.json()
                waits.append(1000 * (time.perf_counter() - asked))
                if state["status"] == "COMPLETED":
                    left.remove(request_id)
                elif state["status"] == "IN_QUEUE":
                    break
            await asyncio.sleep(0.01)
        total = time.perf_counter() - began
        results = []
        for request_id in ids:
            async with session.get(f"{url}/queue/{APP}/requests/{request_id}") as reply:
                results.append((await reply.json())["seed"])
    return {"submitted_s": submitted, "total_s": total, "results": results, "waits": waits}


def serve(jobs: int, folder: str) -> None:
    """The server's process: prints its address, then, when told, what it saw."""
    work = Work()
    with serving(Path(folder), work, longest=10 * jobs) as (url, _):
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(url, flush=True)
        sys.stdin.readline()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"grown_mb": grown, "order": work.seen}), flush=True)


def measured(jobs: int, code: Path) -> None:
    """Run the load against the server of a checkout, and print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.fal", "--jobs", str(jobs), "--serve", folder]
        environment = os.environ | {"PYTHONPATH": str(code)}
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=code, env=environment
        )  # fmt: skip
        assert server.stdin and server.stdout
        found = asyncio.run(load(server.stdout.readline().strip(), jobs))
        server.stdin.write("\n")
        server.stdin.flush()
        seen = json.loads(server.stdout.readline())
        server.wait()
    waits, arrived = sorted(found["waits"]), seen["order"]
    whole = sorted(range(jobs)) == sorted(arrived) and found["results"] == list(range(jobs))
    kept = sum(a < b for a, b in zip(arrived, arrived[1:], strict=False)) / max(len(arrived) - 1, 1)
    print(f"server    {code}")
    print(f"jobs      {jobs}, all ended with their own result: {whole}")
    print(f"order     {kept:.1%} of neighbours in the order of sending (connections race; the line itself serves in order)")
    print(f"submit    {found['submitted_s']:.2f} s for all, {found['total_s']:.2f} s until the last one ended")
    print(
        f"status    median {statistics.median(waits):.1f} ms, 95 % {waits[int(0.95 * len(waits))]:.1f} ms, "
        f"at most {waits[-1]:.1f} ms, {len(waits)} asked"
    )
    print(f"memory    grew {seen['grown_mb']:.1f} MB ({jobs * MODEL >> 20} MB of models were made)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, whose server is measured in turn")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.jobs, options.serve)
        return
    for _ in range(options.rounds):
        for code in (Path(__file__).parents[2], options.beside):
            if code is not None:
                measured(options.jobs, code.resolve())


if __name__ == "__main__":
    main()
