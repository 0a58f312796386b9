"""The queue in front of two replicas of Ray Serve, one of which is killed under load: no request is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # busy machines are slow; read when ray is imported
ray = pytest.importorskip("ray")
pytest.importorskip("starlette", reason="needs ray[serve]")

from tests.fal_service import PIXELS  # noqa: E402
from trellis_core.fal.deploy_ray import RayRunner, deploy, replica_maker  # noqa: E402
from trellis_core.fal.jobs import Job  # noqa: E402
from trellis_core.fal.service import Service, ServiceConfig  # noqa: E402

APP = "fal-ai/trellis-2"
JOBS = 8
ROOT = Path(__file__).parents[1]


def _build(folder: str) -> Any:
    """A maker that first writes down its process and waits a moment, then makes a model with mini."""
    make = replica_maker("mini", "cpu")

    def slowly(inputs: Any, ctx: Any) -> Any:
        (Path(folder) / str(os.getpid())).touch()
        ctx.report(0.0, "condition")
        return make(inputs, ctx)

    return slowly


def test_a_replica_dies_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    from functools import partial

    picture = base64.b64encode((ROOT / "examples" / "icon_tree.png").read_bytes()).decode()
    steps = {f"{stage}_sampling_steps": 1 for stage in ("ss", "shape_slat", "tex_slat")}
    body = {"image_url": f"data:image/png;base64,{picture}", "resolution": 512, "texture_size": 1024, **steps}
    seen = tmp_path / "seen"
    seen.mkdir()
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=f"/tmp/ray{os.getpid()}",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    try:
        handle = deploy(partial(_build, str(seen)), 2, 2)

        async def life() -> list[Job]:
            service = Service(ServiceConfig(tmp_path / "data"))
            await service.open(RayRunner(handle, service.reader, service.store, 2))
            send = service.queue.submit
            jobs = [send(APP, "me", "http://x/fal", json.dumps(body | {"seed": n}).encode()) for n in range(JOBS)]
            bad = send(APP, "me", "http://x/fal", json.dumps({"image_url": PIXELS, "resolution": 3}).encode())
            while len(processes := list(seen.iterdir())) < 2:
                await asyncio.sleep(0.05)
            os.kill(int(processes[0].name), signal.SIGKILL)
            for job in (*jobs, bad):
                await service.queue.ended(job)
            await service.close()
            return [*jobs, bad]

        *jobs, bad = asyncio.run(life())
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()
    assert [job.status_code for job in jobs] == [200] * JOBS, [job.answer for job in jobs]
    assert any("lost" in log["message"] for job in jobs for log in job.logs)
    assert bad.status_code == 422
