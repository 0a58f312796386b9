"""Loads the pack as the host does, in a process without a server, and prints what that cost and what came of it as JSON.

Run by test_pack.py with the host's folder on the path: inside.py PACK BASE
"""

from __future__ import annotations

import asyncio
import compileall
import gc
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PACK, BASE = map(Path, sys.argv[1:3])
STARTED = ("utils.extra_config", "comfy.weight_adapter", "comfy_api.latest", "nodes", "server")
"""What a host has imported before it loads packs, in its order."""


def main() -> None:
    sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
    os.environ.pop("TRELLIS_SERVE", None)  # the service is loaded where it was asked for
    import comfy.options
    from aiohttp import web

    comfy.options.enable_args_parsing()
    for name in STARTED:
        importlib.import_module(name)
    sys.modules["server"].PromptServer.instance = SimpleNamespace(routes=web.RouteTableDef())
    known = set(sys.modules)
    for folder in ("nodes", "trellis_core"):
        compileall.compile_dir(PACK / folder, quiet=1)
    gc.freeze()  # the host's own objects, which a collection at this moment would walk through
    started = time.process_time()
    pack = _load()
    extension = asyncio.run(pack.comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    for node in found:
        node.GET_SCHEMA()
    seconds = time.process_time() - started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "nodes": [node.GET_SCHEMA().node_id for node in found],
                "packages": sorted({name.split(".")[0] for name in set(sys.modules) - known}),
                "with metadata": sorted(_extras(False)),
                "without metadata": sorted(_extras(True)),
            }
        )
    )


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("the_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["the_pack"] = module
    spec.loader.exec_module(module)
    return module


def _extras(disable_metadata: bool) -> dict[str, str]:
    from comfy.cli_args import args

    args.disable_metadata = disable_metadata
    hidden = SimpleNamespace(prompt={"1": {"class_type": "X", "inputs": {}}}, extra_pnginfo={"workflow": {}})
    return sys.modules["the_pack.nodes.host"].workflow_extras(SimpleNamespace(hidden=hidden))


if __name__ == "__main__":
    main()
