"""`python -m trellis_core serve`: the service on its own, with models made on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...files import user_state
from .config import GB, Limits, ServiceConfig
from .http.gate import LOOPBACK

if TYPE_CHECKING:
    from .app import Service
    from .work import Runner

KEY_VARIABLE = "TRELLIS_SERVER_KEY"
SHORTEST_KEY = 16
LAST_WORDS = 1.0
"""Seconds that calls have to end by themselves when the service stops, before they are cut off."""
BACKLOG = 2048
"""Connections that may wait to be taken."""
AT_ONCE = 8
"""Connections that are taken before anything else has its turn; asyncio would take a whole backlog."""


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
    parser.add_argument(
        "--origin", action="append", default=[], metavar="URL",
        help="a web page, as https://host:port, that may use a service without a key; can be given again",
    )  # fmt: skip
    parser.add_argument(
        "--quota",
        type=float,
        default=ServiceConfig.quota / GB,
        metavar="GB",
        help="of all files together (default: %(default)g)",
    )
    parser.add_argument(
        "--key-quota", type=float, metavar="GB", help="of the files of one key (default: half of --quota if there are several)"
    )
    parser.add_argument(
        "--when-full", choices=("refuse", "oldest"), default="refuse",
        help="what happens to a job whose model would not fit: it is refused before the work, or its key's oldest results are "
        "thrown away (default: refuse)",
    )  # fmt: skip
    parser.add_argument(
        "--keep",
        type=float,
        default=ServiceConfig.keep / 3600,
        metavar="HOURS",
        help="how long files are kept (default: %(default)g)",
    )
    parser.add_argument(
        "--waiting", type=int, default=ServiceConfig.longest, metavar="N", help="jobs that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--key-waiting", type=int, metavar="N",
        help="jobs of one key that may wait (default: three quarters of --waiting if there are several keys)",
    )  # fmt: skip
    parser.add_argument(
        "--connections",
        type=int,
        default=Limits.connections,
        metavar="N",
        help="that may be open at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--address-connections", type=int, default=Limits.connections_per_address, metavar="N",
        help="of one address; a reverse proxy is one address, so give as many as --connections (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--weights", default="mini", metavar="NAME|PATH", help="as for generate (default: mini)")
    parser.add_argument("--device", default="cpu", help="where networks compute: cpu, cuda, mps (default: cpu)")
    parser.add_argument(
        "--slots", type=int, default=ServiceConfig.slots, help="models that are made at a time (default: %(default)s)"
    )
    parser.add_argument("--matting", action="store_true", help="cut subjects out with the rembg package, else by plain colour")


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        from .app import Service
    except ImportError as error:
        raise InputError(f"The service needs the package {error.name}: pip install aiohttp cryptography") from None
    from ...family import load_family
    from ...image.matting import key_plain_background, load_rembg
    from .http.logs import set_up
    from .local import LocalRunner, maker

    set_up()
    service = Service(config(options))
    matte = load_rembg() if options.matting else key_plain_background
    make = maker(load_family(options.weights), matte, options.device)
    run_service(service, LocalRunner(make, service.reader, service.store, service.pools), options.host, options.port)


def run_service(service: Service, runner: Runner, host: str, port: int) -> None:
    """Serve until a signal; ends within five seconds of it, whatever is still being done."""
    asyncio.run(serve(service, runner, host, port))
    if service.pools.busy:  # work that does not hear that it is to stop; what it would have made is not waited for
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def config(options: argparse.Namespace) -> ServiceConfig:
    """The service's set-up from the options.

    Raises:
        InputError: others would reach it, and there is no key, or a short one.
    """
    made = config_for(options.host, options.data, "/fal", options.key)
    limits = replace(
        made.limits,
        connections=options.connections,
        connections_per_address=min(options.connections, options.address_connections),
    )
    return replace(
        made, public_url=options.public_url, trusted=tuple(options.trust), origins=tuple(map(str.lower, options.origin)),
        quota=int(options.quota * GB), quota_per_key=None if options.key_quota is None else int(options.key_quota * GB),
        oldest_give_way=options.when_full == "oldest", keep=options.keep * 3600, slots=options.slots,
        longest=options.waiting, longest_per_key=options.key_waiting, limits=limits,
    )  # fmt: skip


def config_for(host: str, data: Path, prefix: str, keys: Sequence[str] = ()) -> ServiceConfig:
    """A set-up with these keys and those of the environment; the same errors."""
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
    """Listen and work until cancelled or told to stop by a signal; a second signal ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def told() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    async with running(service, runner, host, port) as address:
        print(f"Serving {address}. Stop with Ctrl-C.", flush=True)
        for number in numbers:
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; or not the main thread
                loop.add_signal_handler(number, told)
        await stop.wait()


@contextlib.asynccontextmanager
async def running(service: Service, runner: Runner, host: str, port: int) -> AsyncIterator[str]:
    """A server around `service`, listening inside the block; yields its address. Port 0 takes a free one."""
    from aiohttp import web

    from .http.connections import Connections

    try:
        sockets = _listen(host, port)
    except OSError as error:
        await service.close()
        raise InputError(f"Nothing can listen on {host}:{port}: {error.strerror or error}.") from error
    await service.open(runner)
    connections = Connections(service.handle, service.config.limits)
    server = web.ServerRunner(connections, shutdown_timeout=LAST_WORDS)
    await server.setup()
    for sock in sockets:
        await web.SockSite(server, sock, backlog=AT_ONCE).start()
        sock.listen(BACKLOG)
    try:
        port = sockets[0].getsockname()[1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}{service.config.prefix}"
    finally:
        for site in list(server.sites):
            await site.stop()
        await service.stop()
        await server.cleanup()
        connections.close()
        await service.close()


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses that a name stands for; bound before anything else is begun."""
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            place = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets
