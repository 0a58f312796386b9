"""Drives a running ComfyUI as its users' programs do: HTTP, and the websocket for what happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

PATIENCE = 600
"""Seconds that one prompt may take."""


TEXT = 3
"""The host's mark of messages with text, among those with pictures."""


@dataclass
class Outcome:
    """How a prompt ended: "success", "error", "interrupted", or "refused" before it began."""

    how: str
    prompt_id: str = ""
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    previews: int = 0
    texts: list[str] = field(default_factory=list)
    """What was put on nodes."""
    progress: dict[str, list[float]] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    stop: float = 0.0
    """Seconds from asking for the stop to the end: the clock's or the host's own work, whichever is less, as other
    programs on the machine may take their share."""

    def message(self) -> str:
        """What the user reads."""
        return json.dumps(self.error)

    def blamed(self) -> set[str]:
        """Ids of the nodes that the message is shown on."""
        return set(self.error) if self.how == "refused" else {self.error.get("node_id", "")}

    def files(self) -> list[dict[str, str]]:
        """Models that the history tells of."""
        return [entry for output in self.outputs.values() for entry in output.get("3d", [])]


class Client:
    """Blocking calls; `interrupt_at` stops a prompt as soon as that node has reported that share of its work, 0..1."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process

    def get(self, path: str, **params: str) -> Any:
        return asyncio.run(self._get(path, params))

    def download(self, entry: dict[str, str]) -> bytes:
        return asyncio.run(self._get("/view", {key: entry[key] for key in ("filename", "subfolder", "type")}))

    def run(self, prompt: dict[str, Any], interrupt_at: tuple[str, float] | None = None) -> Outcome:
        return asyncio.run(self._run(prompt, interrupt_at))

    def objections(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """What the host finds wrong with a prompt before it runs; {} for one that it takes, which is then called off."""
        return asyncio.run(self._objections(prompt))

    async def _objections(self, prompt: dict[str, Any]) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            async with session.post(self.url + "/prompt", json={"prompt": prompt}) as reply:
                body = await reply.json()
            if reply.status != 200:
                return body
            await session.post(self.url + "/queue", json={"delete": [body["prompt_id"]]})
            await session.post(self.url + "/interrupt", json={"prompt_id": body["prompt_id"]})
        return {}

    async def _get(self, path: str, params: dict[str, str]) -> Any:
        async with aiohttp.ClientSession() as session, session.get(self.url + path, params=params) as reply:
            reply.raise_for_status()
            return await reply.json() if reply.content_type == "application/json" else await reply.read()

    async def _run(self, prompt: dict[str, Any], interrupt_at: tuple[str, float] | None) -> Outcome:
        me = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{self.url}/ws?clientId={me}", max_msg_size=0) as socket:
                async with session.post(self.url + "/prompt", json={"prompt": prompt, "client_id": me}) as reply:
                    body = await reply.json()
                if reply.status != 200:
                    return Outcome("refused", error=body.get("node_errors") or {"": body.get("error")})
                outcome, pressed = Outcome("", body["prompt_id"]), []
                stop = self._stopper(session, outcome, interrupt_at, pressed)
                while not outcome.how:
                    message = await socket.receive(timeout=PATIENCE)
                    if message.type == aiohttp.WSMsgType.BINARY:
                        text = int.from_bytes(message.data[:4], "big") == TEXT
                        outcome.previews += not text
                        outcome.texts += [message.data[8:].decode()] if text else []  # its node's id first
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        await self._note(json.loads(message.data), outcome, stop)
                    else:
                        raise ConnectionError("the host closed the websocket")
            for clocks in pressed:
                outcome.stop = min(now - then for now, then in zip(_clocks(self.process), clocks, strict=True))
            for _ in range(100):  # the history is written just after the last message
                history = await self._get(f"/history/{outcome.prompt_id}", {})
                if history:
                    outcome.outputs = history[outcome.prompt_id]["outputs"]
                    break
                await asyncio.sleep(0.05)
            return outcome

    def _stopper(
        self, session: aiohttp.ClientSession, outcome: Outcome, at: tuple[str, float] | None, pressed: list[tuple[float, float]]
    ) -> Callable[[str, float], Any]:
        async def stop(node: str, share: float) -> None:
            if at and node == at[0] and share >= at[1] and not pressed:
                pressed.append(_clocks(self.process))
                await session.post(self.url + "/interrupt", json={"prompt_id": outcome.prompt_id})

        return stop

    async def _note(self, message: dict[str, Any], outcome: Outcome, stop: Callable[[str, float], Any]) -> None:
        kind, data = message["type"], message["data"]
        if data.get("prompt_id") not in (None, outcome.prompt_id):
            return
        if kind == "execution_cached":
            outcome.cached = data["nodes"]
        elif kind == "executing" and data.get("node"):
            outcome.executed.append(data["node"])
        elif kind == "progress":
            outcome.progress.setdefault(data["node"], []).append(data["value"] / data["max"])
            await stop(data["node"], outcome.progress[data["node"]][-1])
        elif kind == "execution_error":
            outcome.how, outcome.error = "error", data
        elif kind in ("execution_success", "execution_interrupted"):
            outcome.how = kind.removeprefix("execution_")


def _clocks(process: int) -> tuple[float, float]:
    """The time, and the processor time that a process has used; seconds."""
    spent = psutil.Process(process).cpu_times()
    return time.monotonic(), spent.user + spent.system
