"""A client and a server that misbehave on purpose, on sockets of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stranger:
    """Says to a service whatever it likes, byte by byte.

    Args:
        url: of the service.
        source: the address of this machine that it comes from.
    """

    def __init__(self, url: str, source: str = "127.0.0.1") -> None:
        place, self.prefix = url.removeprefix("http://").split("/", 1)
        self.host, port = place.split(":")
        self.place, self.prefix = place, f"/{self.prefix}"
        self.socket = socket.create_connection((self.host, int(port)), timeout=60, source_address=(source, 0))

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()

    def head(self, method: str, path: str, *headers: str, host: str | None = None) -> bytes:
        """The beginning of a request, headers as they are to be sent, with no end of any body."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {self.place if host is None else host}", *headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # it was cut off; what it was told is still to be read
            self.socket.sendall(data)

    def hear(self) -> bytes:
        """All that comes until the other side has nothing more to say; b"" if it just hung up."""
        said = b""
        with suppress(ConnectionError):
            while piece := self.socket.recv(1 << 16):
                said += piece
        return said

    def status(self, request: bytes) -> int:
        """Send a request, and the status of the answer; 0 for none."""
        self.send(request)
        said = b""
        with suppress(ConnectionError):
            while b"\r\n" not in said and (piece := self.socket.recv(1 << 16)):
                said += piece
        return int(said.split()[1]) if said.startswith(b"HTTP/1.") else 0

    def drip(self, request: bytes, seconds: float, pause: float = 0.05) -> bool:
        """Send byte by byte for at most so long; whether it was cut off."""
        end = time.monotonic() + seconds
        for position in range(len(request)):
            if time.monotonic() > end:
                return False
            try:
                self.socket.sendall(request[position : position + 1])
                self.socket.settimeout(pause)
                if self.socket.recv(1) == b"":
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
        return False


@contextmanager
def tiresome_host(head: bytes = b"", drips: bool = False) -> Iterator[tuple[str, threading.Semaphore]]:
    """A web server that takes every request, says `head`, and then drips or says nothing more; its address, and a semaphore
    that is released with every request it has heard."""
    over, heard = threading.Event(), threading.Semaphore(0)
    threads = []

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(1 << 16)
            heard.release()
            client.sendall(head)
            while not over.wait(0.02):
                if drips:
                    client.sendall(b"\0")

    def listen(listening: socket.socket) -> None:
        while not over.is_set():
            with suppress(OSError):
                client, _ = listening.accept()
                threads.append(threading.Thread(target=serve, args=(client,), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        listening.settimeout(0.1)
        threads.append(threading.Thread(target=listen, args=(listening,), daemon=True))
        threads[-1].start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", heard
        finally:
            over.set()
            threads[0].join()
