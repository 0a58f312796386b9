"""ComfyUI's face of `trellis_core`: schemas in, one core call, typed values out."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

MODULES = ("generate", "load", "condition", "sample", "lora", "mesh", "save", "settings", "fal", "serve", "version_0_1")


def extension() -> Any:
    """The pack as the host wants it: prepares the host's folders, and hands out every node that can be imported."""
    from comfy_api.latest import ComfyExtension

    from . import host

    _look_at_folder(Path(__file__).parents[1].name)
    host.add_weights_folder()  # not in on_load: hosts of 2025 never call it
    host.offer_examples()
    _open_routes()

    class Pack(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return _nodes()

    return Pack()


def _look_at_folder(name: str) -> None:
    """Say that the editor will not find what belongs to this pack: the host quotes the folder's name in its routes."""
    if quote(name) != name:
        logging.warning(
            'TRELLIS.2 Core: in a folder called "%s" the viewer and the help pages are not found by the editor. Rename the '
            'folder, for example to "trellis2-core": letters, digits, "-", "_" and "." are safe.',
            name,
        )


def _open_routes() -> None:
    """For the settings panel, and where it was asked for, the service. The nodes do without either."""
    try:
        from . import serve
        from .host import fal as host_fal

        host_fal.add_key_route()
        serve.start_if_asked()
    except Exception as error:
        logging.error("TRELLIS.2 Core: no fal routes (%s: %s)", type(error).__name__, error)


def _nodes() -> list[type]:
    """A module that cannot be imported costs its own nodes and one line of log, not the pack."""
    nodes: list[type] = []
    broken = []
    for name in MODULES:
        try:
            nodes += importlib.import_module(f".{name}", __package__).NODES
        except Exception as error:
            broken.append(f"{name} ({type(error).__name__}: {error})")
    failed = f"; without {', '.join(broken)}" if broken else ""
    logging.log(logging.ERROR if broken else logging.INFO, "TRELLIS.2 Core: %d nodes%s", len(nodes), failed)
    return nodes
