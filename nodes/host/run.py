"""One execution of a node: device, progress, pictures, text on the node, the Stop button."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from PIL import Image

from ...trellis_core.context import RunContext
from ...trellis_core.family import Family

BAR = 1000
"""Length of a progress bar."""
_PAUSE = 0.5
"""Seconds between two texts on a node."""
_FIRST_GUESS = 2.0
"""Seconds of a run after which it is told how long the rest will take."""

DOING = {
    "condition": "Looking at the picture", "structure": "Finding the rough form", "shape": "Forming the surface",
    "texture": "Painting", "decode": "Decoding", "remesh": "Remeshing", "clean": "Cleaning the mesh",
    "decimate": "Reducing triangles", "unwrap": "Unwrapping", "bake": "Baking textures", "detail": "Baking detail",
    "write": "Writing the file",
}  # fmt: skip
"""Name of a step -> what a user reads."""

PREVIEW_SIDE = 512
PICTURE_SIDE = 320
"""Of pictures of finished models."""


def context() -> RunContext:
    """The host's device, and the attention that it was started with."""
    device = mm.get_torch_device()
    return RunContext(device, attention="torch" if device.type == "cpu" else _attend)  # the host's choices are made for GPUs


class Run:
    """One execution of a node: its context for the core, and its progress bar with words and pictures.

    `step` names what the node does, as `DOING` has it, as far as the core does not say it.
    """

    def __init__(self, node: type, step: str = "") -> None:
        self._node = node
        self._bar = comfy.utils.ProgressBar(BAR, node_id=node.hidden.unique_id)
        self._last, self._doing, self._text, self._told, self._began = -1, "", "", 0.0, time.monotonic()
        self.ctx = replace(context(), on_progress=self._progress, is_cancelled=_stop_if_asked)
        self.ctx = self.ctx.part(0.0, 1.0, step)

    def _progress(self, fraction: float, name: str) -> None:
        done = round(fraction * BAR)
        if done != self._last:
            self._last = done
            self._bar.update_absolute(done, BAR)
        self._doing = DOING.get(name, self._doing)
        self._tell(fraction, self._doing)

    def _tell(self, fraction: float, doing: str) -> None:
        """Stage and remaining time as text on the node, not too often."""
        now = time.monotonic()
        text = remaining(doing, fraction, now - self._began)
        changed = doing != self._text.partition(" ·")[0]
        if text and text != self._text and (changed or now - self._told >= _PAUSE):
            self._text, self._told = text, now
            tell(self._node, text)

    def show(self, picture: Image.Image) -> None:
        """Put a picture on the node."""
        self._bar.update_absolute(max(self._last, 0), BAR, ("JPEG", picture, PREVIEW_SIDE))

    def show_voxels(self, voxels: Any) -> None:
        """Put decoded voxels on the node, in their colours."""
        from ...trellis_core.latent_preview import painted_picture

        self.show(painted_picture(voxels))

    def show_asset(self, asset: Any) -> Image.Image:
        """Put the finished model on the node; returns its picture."""
        from ...trellis_core.preview.asset import draw_asset

        picture = Image.fromarray(draw_asset(asset, size=PICTURE_SIDE, ctx=replace(self.ctx, on_progress=None)))
        self.show(picture)
        return picture

    def watch(self, family: Family) -> Callable[[Any], None]:
        """For samplers: puts pictures of what comes about on the node."""
        from ...trellis_core.latent_preview import glimpse

        quiet = RunContext(device=self.ctx.device, is_cancelled=_stop_if_asked)

        def look(estimate: Any) -> None:
            picture = glimpse(family, estimate, quiet)
            if picture is not None:
                self.show(picture)

        return look


def remaining(doing: str, fraction: float, seconds: float) -> str:
    """What is done, and how long the rest takes if it goes on as in the `seconds` that this `fraction` took."""
    if not doing or fraction >= 1.0:
        return f"Done in {seconds:.1f} s" if fraction >= 1.0 else ""
    if seconds < _FIRST_GUESS or fraction < 0.02:
        return doing
    left = max(1.0, seconds * (1 - fraction) / fraction)
    return f"{doing} · {left:.0f} s left" if left < 100 else f"{doing} · {left / 60:.0f} min left"


def tell(node: type, text: str) -> None:
    """Put a line of text on a node while it runs, where the host can."""
    from server import PromptServer

    server = PromptServer.instance
    if hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node.hidden.unique_id, server.client_id)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The attention that the host was started with; q [B, Tq, H, d], k and v [B, Tk, H, d] -> [B, Tq, H, d]."""
    from comfy.ldm.modules.attention import optimized_attention

    heads = (x.transpose(1, 2) for x in (q, k, v))
    return optimized_attention(*heads, q.shape[2], skip_reshape=True, skip_output_reshape=True).transpose(1, 2)


def _stop_if_asked() -> bool:
    mm.throw_exception_if_processing_interrupted()  # not an Exception: goes through everything of ours up to the host
    return False


def shown(node: type, text: str) -> dict[str, tuple[str]]:
    """What puts text into the history; it also is put on the node of the user who runs it."""
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, node.hidden.unique_id, PromptServer.instance.client_id)
    return {"text": (text,)}
