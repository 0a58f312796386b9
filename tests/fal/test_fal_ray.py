"""The queue in front of two replicas of Ray Serve, one of which is killed under load: no request is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # busy machines are slow; read when ray is imported
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray")
pytest.importorskip("starlette", reason="needs ray[serve]")

from tests.helpers.fal_service import PIXELS, held_maker  # noqa: E402
from trellis_core.fal.deploy_ray import RayRunner, deploy  # noqa: E402
from trellis_core.fal.service.app import Service  # noqa: E402
from trellis_core.fal.service.config import ServiceConfig  # noqa: E402
from trellis_core.fal.service.http.spool import Spooled  # noqa: E402
from trellis_core.fal.service.jobs import Job  # noqa: E402

APP = "fal-ai/trellis-2"
JOBS = 8
ROOT = Path(__file__).parents[2]


def _lost(job: Job) -> bool:
    return any("lost" in log["message"] for log in job.logs)


def test_a_replica_dies_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    picture = base64.b64encode((ROOT / "examples" / "icon_tree.png").read_bytes()).decode()
    steps = {f"{stage}_sampling_steps": 1 for stage in ("ss", "shape_slat", "tex_slat")}
    body = {"image_url": f"data:image/png;base64,{picture}", "resolution": 512, "texture_size": 1024, "decimation_target": 5000,
            "remesh": False, **steps}  # fmt: skip
    seen = tmp_path / "seen"
    seen.mkdir()
    session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # ray puts sockets there, whose paths must be short
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=session,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    try:
        handle = deploy(partial(held_maker, str(seen)), 2, 2)

        async def life() -> list[Job]:
            service = Service(ServiceConfig(tmp_path / "data"))
            await service.open(RayRunner(handle, service.reader, service.store, service.pools, 2))

            async def send(values: dict[str, Any]) -> Job:
                text = json.dumps(values).encode()
                return await service.queue.submit(APP, "me", "http://x/fal", Spooled(len(text), "", text))

            jobs = [await send(body | {"seed": n}) for n in range(JOBS)]
            bad = await send({"image_url": PIXELS, "resolution": 3})
            while len(processes := list(seen.iterdir())) < 2:
                await asyncio.sleep(0.05)
            os.kill(int(processes[0].name), signal.SIGKILL)  # both work on a job, the others wait
            while not any(_lost(job) for job in jobs):
                await asyncio.sleep(0.05)
            (seen / "go").touch()
            for job in (*jobs, bad):
                await service.queue.ended(job)
            await service.close()
            return [*jobs, bad]

        *jobs, bad = asyncio.run(asyncio.wait_for(life(), 500))
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)
    assert [job.status_code for job in jobs] == [200] * JOBS, [job.answer for job in jobs]
    assert bad.status_code == 422
