"""Runs of our client against a server of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.fal_faults import Faulty
from tests.helpers.fal_service import KEY
from trellis_core.fal.client import FalClient
from trellis_core.fal.open_requests import Notebook
from trellis_core.fal.order import order
from trellis_core.fal.remote import RemoteModel, generate
from trellis_core.fal.wire import Pace
from trellis_core.settings import GenerationSettings

QUICK = Pace(poll=0.001, patience=30.0, upload=30.0)
"""Fast where answers come, and with room for a busy machine."""
HURRIED = Pace(poll=0.001, patience=0.02, upload=0.02)
"""For runs that are to end without an answer."""


def work(server: Faulty, folder: Path, seed: int = 1, pace: Pace = QUICK, **more: Any) -> Coroutine[Any, Any, RemoteModel]:
    """One run that is to be awaited; `folder` is where its notes are, `more` are arguments of `generate`."""
    picture = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    wanted = order("fal-ai/trellis-2", GenerationSettings(seed=seed), [picture])
    return generate(FalClient(KEY, server.url, pace), Notebook(folder), wanted, **more)


def run(server: Faulty, folder: Path, **more: Any) -> RemoteModel:
    """One whole run."""
    return asyncio.run(work(server, folder, **more))
