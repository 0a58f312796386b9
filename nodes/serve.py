"""This ComfyUI as a server of the hosted endpoints' API. Off unless the variable TRELLIS_SERVE is 1.

Jobs go through ComfyUI's own line of prompts, as prompts of one node: they are seen, cancelled and stopped there like any
other. The service hands the node a request id; pictures and settings never become part of a prompt.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trellis_core.errors import Cancelled, InputError
from . import host
from .host import fal as host_fal
from .sockets import File3D, glb_file, schema

if TYPE_CHECKING:
    from ..trellis_core.fal.service.app import Service
    from ..trellis_core.fal.service.work import Watch, Work

SWITCH, WEIGHTS = "TRELLIS_SERVE", "TRELLIS_SERVE_WEIGHTS"
PREFIX = "/fal"

_waiting: dict[str, tuple[Work, Watch, dict[str, Path], asyncio.Future[dict[str, Any]]]] = {}
_service: Any = None


class FalJob(io.ComfyNode):
    """One request of the API."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FalJob",
            "TRELLIS.2 fal request",
            "Works off one request to this ComfyUI's fal API, which puts it into the queue itself. Of no use in graphs.",
            is_output_node=True,
            is_dev_only=True,
            not_idempotent=True,
            inputs=[
                io.String.Input("request_id", default="", tooltip="Given by the API."),
                io.String.Input("weights", default="mini", tooltip="Given by the API."),
            ],
            outputs=[File3D.Output("glb", display_name="glb", tooltip="The model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, request_id: str, weights: str) -> io.NodeOutput:
        from ..trellis_core.fal.service.local import maker, produce
        from ..trellis_core.image.matting import key_plain_background

        entry = _waiting.get(request_id)
        if entry is None or _service is None:
            raise InputError("There is no such request: this node is for the fal API, which puts it into the queue itself.")
        work, watch, fetched, future = entry
        run, loop = host.Run(cls), future.get_loop()
        watch.started()

        def progress(fraction: float, step: str) -> None:
            run.ctx.report(fraction)
            watch.progress(fraction, step)

        taken_back = watch.ctx.is_cancelled or bool

        def stopped() -> bool:
            return taken_back() or bool(run.ctx.is_cancelled and run.ctx.is_cancelled())

        watch.ctx = replace(run.ctx, on_progress=progress, is_cancelled=stopped)
        make = maker(host.open_family(weights), key_plain_background, str(run.ctx.device))
        made: list[bytes] = []

        def keep(*given: Any) -> Any:
            result = make(*given)
            made.append(result.glb)
            return result

        try:
            answer = produce(keep, _service.reader, _service.store, work, watch, fetched)
        except BaseException as error:
            known = error if isinstance(error, Exception) else Cancelled("The request was stopped on the server.")
            loop.call_soon_threadsafe(_settle, future, known)
            if isinstance(error, Cancelled):
                host_fal.stop()  # its client took it back: shown like a press of the Stop button, not as a fault
            raise
        loop.call_soon_threadsafe(_settle, future, answer)
        return io.NodeOutput(glb_file(made[0]), ui={"text": [f"request {request_id}"]})


class PromptRunner:
    """Puts each job into the host's line as a prompt of its own."""

    slots = None

    def __init__(self, weights: str, service: Service) -> None:
        self._weights, self._service = weights, service

    async def run(self, work: Work, watch: Watch) -> dict[str, Any]:
        reader = self._service.reader
        fetched = await self._service.pools.downloads.run(work.owner, reader.fetch, work, watch.ctx)
        try:
            return await self._as_prompt(work, watch, fetched)
        finally:
            reader.discard(fetched)

    async def _as_prompt(self, work: Work, watch: Watch, fetched: dict[str, Path]) -> dict[str, Any]:
        prompt_id = str(uuid.uuid4())
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        _waiting[work.request_id] = work, watch, fetched, future
        inputs = {"request_id": work.request_id, "weights": self._weights}
        prompt = {"1": {"class_type": "TrellisCoreFalJob", "inputs": inputs, "_meta": {"title": f"fal {work.app}"}}}
        try:
            await host_fal.queue_prompt(prompt_id, prompt)
            while not (await asyncio.wait([future], timeout=1.0))[0]:
                if not host_fal.is_known(prompt_id):
                    await asyncio.sleep(0)  # what its node has told this loop by now is heard first
                    if not future.done():
                        raise Cancelled("The request was taken out of the server's queue.")
            return future.result()
        except asyncio.CancelledError:
            host_fal.unqueue_prompt(prompt_id)
            raise
        finally:
            del _waiting[work.request_id]


def start_if_asked() -> None:
    """Open the routes, if the variable says so.

    Raises:
        InputError: others can reach this ComfyUI, and no key is set.
    """
    if os.environ.get(SWITCH) != "1":
        return
    from ..trellis_core.fal.service.app import Service
    from ..trellis_core.fal.service.serve import config_for

    global _service
    _service = Service(config_for(host_fal.listens_to(), host_fal.private_folder() / "serve", PREFIX))
    host_fal.mount(_service, PromptRunner(os.environ.get(WEIGHTS, "mini"), _service))


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        settle: Callable[[Any], None] = future.set_exception if isinstance(outcome, Exception) else future.set_result
        settle(outcome)


NODES = [FalJob]
