"""What the fal node and routes need of ComfyUI beyond the rest of this room: a private folder, the Stop button, routes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management as mm
import folder_paths

from ...trellis_core.errors import InputError
from ...trellis_core.fal.open_requests import Notebook
from ...trellis_core.outside import parse_object

T = TypeVar("T")
MAX_KEY_BODY = 1 << 16
LISTEN = 0.25
"""Seconds between looks at the Stop button."""


def private_folder() -> Path:
    """A folder of ours that the host never serves."""
    return Path(folder_paths.get_system_user_directory("trellis2"))


def notebook() -> Notebook:
    """Keys and what was sent lately."""
    return Notebook(private_folder())


async def until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; the Stop button cancels it, and lets it clean up before the run ends."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=LISTEN))[0]:
            mm.throw_exception_if_processing_interrupted()
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    return task.result()


def stop() -> None:
    """End the running prompt as the Stop button does."""
    raise mm.InterruptProcessingException


def add_key_route() -> None:
    """The settings panel's way to the keys: they can be set and never read, and by no page but the host's own."""
    from aiohttp import web
    from comfy.cli_args import args
    from server import PromptServer

    from ...trellis_core.fal.errors import FalError
    from ...trellis_core.fal.service.http import gate

    allowed = (str(getattr(args, "enable_cors_header", None)).lower(),)
    routes = PromptServer.instance.routes

    @routes.get("/trellis2/fal_keys")
    async def known(_: web.Request) -> web.Response:
        return web.json_response({"keyed": notebook().keyed()})

    @routes.post("/trellis2/fal_keys")
    async def keep(request: Any) -> web.Response:
        try:
            gate.check_encoding(request)
            gate.check_page(request, gate.own_host(request), allowed)
            gate.check_type(request)
            body = parse_object(await request.read(), "The body", raising=KeyError, max_bytes=MAX_KEY_BODY)
            server, key = body.get("server", ""), body["key"]
            if not isinstance(server, str) or not isinstance(key, str):
                raise TypeError
            notebook().set_key(server, key.strip())
        except FalError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except (KeyError, TypeError, AttributeError):
            return web.json_response({"error": 'The body must be {"server": "", "key": "..."}.'}, status=400)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"keyed": notebook().keyed()})


# The service


def listens_to() -> str:
    """The first address that others can reach this host at, else a loopback one."""
    from comfy.cli_args import args

    addresses = [part.strip() for part in (args.listen or "127.0.0.1").split(",")]
    return next((a for a in addresses if a not in ("127.0.0.1", "::1", "localhost")), addresses[0])


def mount(service: Any, runner: Any) -> None:
    """Answer the service's requests from the host's own server, and begin with its jobs when that starts."""
    from server import PromptServer

    server = PromptServer.instance
    server.routes.route("*", service.config.prefix + "/{tail:.*}")(service.handle)

    async def begin() -> None:
        await service.open(runner)

    server.loop.create_task(begin())


async def queue_prompt(prompt_id: str, prompt: dict[str, Any]) -> None:
    """Put a prompt at the end of the line.

    Raises:
        InputError: the host refuses it.
    """
    import time

    import execution
    from server import PromptServer

    server = PromptServer.instance
    valid, error, outputs, _ = await execution.validate_prompt(prompt_id, prompt, None)
    if not valid:
        raise InputError(f"The host refuses the job: {error}")
    number, server.number = server.number, server.number + 1
    extra = {"create_time": int(time.time() * 1000)}
    server.prompt_queue.put((number, prompt_id, prompt, extra, outputs, {}))


def is_known(prompt_id: str) -> bool:
    """Whether a prompt waits or runs."""
    from server import PromptServer

    running, waiting = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return any(item[1] == prompt_id for item in (*running, *waiting))


def unqueue_prompt(prompt_id: str) -> None:
    """Take a waiting prompt out of the line."""
    from server import PromptServer

    PromptServer.instance.prompt_queue.delete_queue_item(lambda item: item[1] == prompt_id)
