"""The same endpoints as an app on fal's own machines: `fal deploy trellis_core/fal/deploy_fal.py::Trellis`.

Queue, authentication and webhooks are fal's; here is only what a worker does. Needs `pip install fal`. Annotations are
evaluated at once in this file, since fal reads the endpoints' types from them.
"""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fal
from fal.toolkit import File
from fastapi import HTTPException

from trellis_core.context import QUIET
from trellis_core.fal.endpoints import LORA_ENDPOINT, PLAIN_ENDPOINT, payload_model, result
from trellis_core.fal.errors import FalError
from trellis_core.fal.service.config import Limits
from trellis_core.fal.service.inputs import Reader
from trellis_core.fal.service.local import maker
from trellis_core.fal.service.work import Work
from trellis_core.family import load_family
from trellis_core.image.matting import load_rembg

WEIGHTS = os.environ.get("TRELLIS_WEIGHTS", "/data/TRELLIS.2-4B")
Plain, WithLoras = payload_model(PLAIN_ENDPOINT), payload_model(LORA_ENDPOINT)


class Trellis(fal.App, keep_alive=300, min_concurrency=0, max_concurrency=8):  # type: ignore[call-arg]
    """Both endpoints on one kind of worker."""

    machine_type = "GPU-H100"
    requirements = ["torch==2.13.0", "numpy", "scipy", "pillow", "safetensors", "pydantic", "tqdm", "fast-simplification"]
    requirements += ["platformdirs", "filelock", "trimesh>=5.2", "lxml", "xxhash"]
    requirements += ["rembg", "onnxruntime"]
    local_python_modules = ["trellis_core"]

    def setup(self) -> None:
        """Once for each worker."""
        scratch = Path(tempfile.mkdtemp())
        self._reader = Reader(None, scratch, Limits(), ())
        self._make = maker(load_family(WEIGHTS), load_rembg(), "cuda")

    @fal.endpoint("/")
    def plain(self, request: Plain) -> dict[str, Any]:  # type: ignore[valid-type]
        """One picture to a model."""
        return self._work(PLAIN_ENDPOINT, request)

    @fal.endpoint("/lora")
    def with_loras(self, request: WithLoras) -> dict[str, Any]:  # type: ignore[valid-type]
        """The same with LoRAs."""
        return self._work(LORA_ENDPOINT, request)

    def _work(self, app: str, request: Any) -> dict[str, Any]:
        body = request.model_dump_json(exclude_unset=True).encode()
        work = Work(os.urandom(8).hex(), app, lambda: body, "https://nowhere.invalid")
        watch = SimpleNamespace(ctx=QUIET, log=print)
        try:
            inputs = self._reader.read(work, watch, self._reader.fetch(work, QUIET))
        except FalError as error:
            raise HTTPException(error.status, error.detail) from None
        try:
            made = self._make(inputs, QUIET)
        finally:
            self._reader.discard(inputs.loras)
        file = File.from_bytes(made.glb, content_type="model/gltf-binary", file_name="model.glb")
        return result(app, inputs.settings, made.seed, file.model_dump())
