"""`python -m trellis_core serve`: the service on its own, with models made on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...files import user_state

if TYPE_CHECKING:
    from .app import Service, ServiceConfig
    from .jobs import Runner

KEY_VARIABLE = "TRELLIS_SERVER_KEY"
SHORTEST_KEY = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--key", action="append", default=[], metavar="KEY",
        help=f"a key that clients may have; can be given again. Better in the variable {KEY_VARIABLE} (several with commas), "
        "which other users of the machine cannot read. Needed on any address that others reach",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=user_state("service"), metavar="FOLDER",
        help="where jobs, files and the service's secret are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--public-url", metavar="URL", help="address that clients see, with /fal, behind a proxy or TLS")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="HOST[:PORT]",
        help="a host in a private network that requests may name in addresses and webhooks; can be given again",
    )  # fmt: skip
    parser.add_argument("--quota", type=float, default=20.0, metavar="GB", help="of all files together (default: 20)")
    parser.add_argument("--keep", type=float, default=24.0, metavar="HOURS", help="how long files are kept (default: 24)")
    parser.add_argument("--weights", default="mini", metavar="NAME|PATH", help="as for generate (default: mini)")
    parser.add_argument("--device", default="cpu", help="where networks compute: cpu, cuda, mps (default: cpu)")
    parser.add_argument("--slots", type=int, default=1, help="models that are made at a time (default: 1)")
    parser.add_argument("--matting", action="store_true", help="cut subjects out with the rembg package, else by plain colour")


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        from .app import Service
    except ImportError as error:
        raise InputError(f"The service needs the package {error.name}: pip install aiohttp cryptography") from None
    from ...family import load_family
    from ...image.matting import key_plain_background, load_rembg
    from .local import LocalRunner, maker

    service = Service(config(options))
    matte = load_rembg() if options.matting else key_plain_background
    make = maker(load_family(options.weights), matte, options.device)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(serve(service, LocalRunner(make, service.reader, service.store, options.slots), options.host, options.port))


def config(options: argparse.Namespace) -> ServiceConfig:
    """The service's set-up from the options.

    Raises:
        InputError: others would reach it, and there is no key, or a short one.
    """
    made = config_for(options.host, options.data, "/fal", options.key)
    return replace(
        made, public_url=options.public_url, trusted=tuple(options.trust), quota=int(options.quota * 2**30),
        keep=options.keep * 3600,
    )  # fmt: skip


def config_for(host: str, data: Path, prefix: str, keys: Sequence[str] = ()) -> ServiceConfig:
    """A set-up with these keys and those of the environment; the same errors."""
    from .app import LOOPBACK, ServiceConfig

    keys = tuple(key.strip() for key in [*keys, *os.environ.get(KEY_VARIABLE, "").split(",")] if key.strip())
    if host not in LOOPBACK and not keys:
        raise InputError(
            f"Others can reach {host}: set {KEY_VARIABLE} to a key of at least {SHORTEST_KEY} characters, for example one "
            'that python -c "import secrets; print(secrets.token_urlsafe(24))" prints, or listen on 127.0.0.1.'
        )
    if host not in LOOPBACK and min(map(len, keys)) < SHORTEST_KEY:
        raise InputError(f"A key is shorter than {SHORTEST_KEY} characters: that can be guessed.")
    return ServiceConfig(data, keys, prefix=prefix)


async def serve(service: Service, runner: Runner, host: str, port: int) -> None:
    """Listen and work until cancelled or told to stop by a signal."""
    async with running(service, runner, host, port) as address:
        print(f"Serving {address}. Stop with Ctrl-C.", flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; or not the main thread
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()


@contextlib.asynccontextmanager
async def running(service: Service, runner: Runner, host: str, port: int) -> AsyncIterator[str]:
    """A server around `service`, listening inside the block; yields its address. Port 0 takes a free one."""
    from aiohttp import web

    from .app import mount

    app = web.Application(client_max_size=0)
    mount(service, app)
    server = web.AppRunner(app, access_log=None)
    await server.setup()
    site = web.TCPSite(server, host, port)
    try:
        await site.start()
    except OSError as error:
        await server.cleanup()
        raise InputError(f"Nothing can listen on {host}:{port}: {error.strerror or error}.") from error
    await service.open(runner)
    try:
        port = server.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}{service.config.prefix}"
    finally:
        await service.close()
        await server.cleanup()
