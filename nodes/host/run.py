"""One execution of a node: device, progress, pictures, text on the node, the Stop button."""

from __future__ import annotations

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

PREVIEW_SIDE = 512


def context() -> RunContext:
    """The host's device, and the attention that it was started with."""
    device = mm.get_torch_device()
    return RunContext(device, attention="torch" if device.type == "cpu" else _attend)  # the host's choices are made for GPUs


class Run:
    """One execution of a node: its context for the core, and its progress bar with pictures."""

    def __init__(self, node: type) -> None:
        self._bar = comfy.utils.ProgressBar(BAR, node_id=node.hidden.unique_id)
        self._last = -1
        self.ctx = replace(context(), on_progress=self._progress, is_cancelled=_stop_if_asked)

    def _progress(self, fraction: float, _name: str) -> None:
        done = round(fraction * BAR)
        if done != self._last:
            self._last = done
            self._bar.update_absolute(done, BAR)

    def show(self, picture: Image.Image) -> None:
        """Put a picture on the node."""
        self._bar.update_absolute(max(self._last, 0), BAR, ("JPEG", picture, PREVIEW_SIDE))

    def watch(self, family: Family) -> Callable[[Any], None]:
        """For samplers: puts pictures of what comes about on the node."""
        from ...trellis_core.latent_preview import glimpse

        quiet = RunContext(device=self.ctx.device, is_cancelled=_stop_if_asked)

        def look(estimate: Any) -> None:
            picture = glimpse(family, estimate, quiet)
            if picture is not None:
                self.show(picture)

        return look


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
