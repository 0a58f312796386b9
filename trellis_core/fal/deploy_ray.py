"""The service with its models made by replicas on Ray Serve: one queue in front, as many GPUs behind as there are.

    python -m trellis_core.fal.deploy_ray --host 0.0.0.0 --port 8000 --weights weights/TRELLIS.2-4B --replicas 1:8 --gpus 1

The queue, files and webhooks are those of `serve`. A replica works on one job at a time and tells its progress as it goes;
a job whose replica dies is given to another one. Needs ray[serve].
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..context import RunContext
from ..errors import Cancelled, TrellisError
from ..family import load_family
from ..image.matting import key_plain_background
from .service.inputs import Inputs, Reader
from .service.local import Made, Make, answer_for, maker, room_kept
from .service.pools import Pools
from .service.serve import add_arguments, config, serve
from .service.state.files import FileStore
from .service.work import Watch, Work

TRIES = 5
"""Replicas that may die under one job before it is given up."""


def replica_maker(weights: str, device: str) -> Make:
    """What a replica works with."""
    return maker(load_family(weights), key_plain_background, device)


class Replica:
    """Makes models, one at a time, in a process of its own. `build` gives it its maker when it starts."""

    def __init__(self, build: Callable[[], Make]) -> None:
        self._make = build()

    def __call__(self, inputs: Inputs, loras: dict[str, bytes]) -> Iterator[Any]:
        """Progress as (fraction, step) pairs, at the end the model or the error. Closing the iterator stops the work."""
        told: queue.Queue[Any] = queue.Queue()
        stop = threading.Event()
        ctx = RunContext(on_progress=lambda fraction, step: told.put((fraction, step)), is_cancelled=stop.is_set)
        worker = threading.Thread(target=self._work, args=(inputs, loras, ctx, told), daemon=True)
        worker.start()
        try:
            while isinstance(news := told.get(), tuple):
                yield news
            yield news
        finally:
            stop.set()
            worker.join()

    def _work(self, inputs: Inputs, loras: dict[str, bytes], ctx: RunContext, told: queue.Queue[Any]) -> None:
        from .service.local import with_loras

        try:
            with with_loras(inputs, loras) as complete:
                told.put(self._make(complete, ctx))
        except Exception as error:
            told.put(error if isinstance(error, TrellisError) else TrellisError(f"{type(error).__name__} on a replica."))


class RayRunner:
    """Hands jobs to a Ray Serve application of `Replica`s; `slots` at a time are on their way."""

    def __init__(self, handle: Any, reader: Reader, store: FileStore, pools: Pools, slots: int) -> None:
        self._handle, self._reader, self._store, self._pools = handle.options(stream=True), reader, store, pools
        self.slots = slots

    async def run(self, work: Work, watch: Watch) -> dict[str, Any]:
        async with watch.aside():
            fetched = await self._pools.downloads.run(work.owner, self._reader.fetch, work, watch.ctx)
        try:
            inputs, loras = await self._pools.work.run("", self._read, work, watch, fetched)
        finally:
            self._reader.discard(fetched)
        with room_kept(work, inputs, self._store):
            made = await self._with_patience(inputs, loras, watch)
            return await self._pools.storage.run(work.owner, answer_for, work, inputs, made, self._store)

    def _read(self, work: Work, watch: Watch, fetched: dict[str, Path]) -> tuple[Inputs, dict[str, bytes]]:
        inputs = self._reader.read(work, watch, fetched)
        try:
            return inputs, {field: path.read_bytes() for field, path in inputs.loras.items()}
        finally:
            self._reader.discard(inputs.loras)

    async def _with_patience(self, inputs: Inputs, loras: dict[str, bytes], watch: Watch) -> Made:
        for attempt in range(1, TRIES + 1):
            try:
                return await self._made(inputs, loras, watch)
            except _died():
                if attempt == TRIES:
                    raise
                watch.log(f"The worker was lost; the job begins again on another one ({attempt}).", "WARN")
        raise AssertionError

    async def _made(self, inputs: Inputs, loras: dict[str, bytes], watch: Watch) -> Made:
        answers = self._handle.remote(inputs, loras)
        try:
            async for news in answers:
                if isinstance(news, Exception):
                    raise news
                if isinstance(news, Made):
                    return news
                watch.progress(*news)
                if watch.ctx.is_cancelled():
                    raise Cancelled("The run was cancelled.")
            raise TrellisError("The worker gave no model.")
        finally:
            with contextlib.suppress(Exception):
                answers.cancel()


def _died() -> tuple[type[Exception], ...]:
    from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError
    from ray.serve.exceptions import BackPressureError

    return ActorDiedError, ActorUnavailableError, RayActorError, WorkerCrashedError, BackPressureError


def deploy(build: Callable[[], Make], low: int, high: int, gpus: float = 0.0, cpus: float = 1.0) -> Any:
    """Start between `low` and `high` replicas, as the queue asks for; the handle to them."""
    from ray import serve as ray_serve

    scaling: dict[str, Any] = {"num_replicas": low}
    if high > low:
        scaling = {"autoscaling_config": {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": 1}}
    deployment = ray_serve.deployment(
        Replica, name="trellis", max_ongoing_requests=1, ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        health_check_period_s=2, **scaling,
    )  # fmt: skip
    ray_serve.start(proxy_location="Disabled")  # requests come through our own queue, not through Ray's server on port 8000
    return ray_serve.run(deployment.bind(build), name="trellis", route_prefix=None)


def main() -> None:
    """The command line above."""
    import ray

    from .service.app import Service

    parser = argparse.ArgumentParser(prog="python -m trellis_core.fal.deploy_ray")
    add_arguments(parser)
    parser.add_argument("--replicas", default="1", metavar="N|MIN:MAX", help="workers, or between which numbers (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker (default: 0)")
    options = parser.parse_args()
    low, _, high = options.replicas.partition(":")
    service = Service(config(options))
    ray.init()  # the cluster that RAY_ADDRESS names, else one of this machine alone
    handle = deploy(partial(replica_maker, options.weights, options.device), int(low), int(high or low), options.gpus)
    runner = RayRunner(handle, service.reader, service.store, service.pools, int(high or low))
    asyncio.run(serve(service, runner, options.host, options.port))


if __name__ == "__main__":
    main()
