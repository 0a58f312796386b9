"""Memory of the mesh steps: told before they start."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.solid_objects import decoded, torus
from trellis_core.asset.asset import make_asset
from trellis_core.context import RunContext
from trellis_core.errors import OutOfBudgetError
from trellis_core.family import load_family
from trellis_core.memory.mesh_budget import check_room, step_bytes
from trellis_core.mesh.clean import clean
from trellis_core.settings import GenerationSettings
from trellis_core.stages import generate


def test_a_step_that_will_not_fit_is_refused_before_it_starts() -> None:
    seen: list[str] = []
    ctx = RunContext(memory_budget=100_000_000, on_progress=lambda _, name: seen.append(name))
    mesh, voxels = decoded(*torus(steps=32), 24)
    with pytest.raises(OutOfBudgetError, match="'unwrap'.*texture_size"):
        make_asset(mesh, voxels, GenerationSettings(texture_size=4096, remesh=False), ctx)
    assert seen[-1] == "decimate"
    assert make_asset(mesh, voxels, GenerationSettings(texture_size=1024, remesh=False), ctx).report.faces > 0


def test_textures_that_cannot_fit_are_refused_before_the_networks_run() -> None:
    seen: list[float] = []
    ctx = RunContext(memory_budget=500_000_000, on_progress=lambda fraction, _: seen.append(fraction))
    with pytest.raises(OutOfBudgetError, match="texture_size"):
        generate(load_family("mini"), Image.new("RGB", (64, 64)), GenerationSettings(texture_size=4096), ctx=ctx)
    assert not seen


def test_maps_of_the_detail_are_counted() -> None:
    mesh, voxels = decoded(*torus(steps=32), 24)
    ctx = RunContext(memory_budget=step_bytes("bake", 2 * len(mesh.faces), 1024 * 1024))
    plain = {"texture_size": 1024, "remesh": False}
    make_asset(mesh, voxels, GenerationSettings(**plain), ctx)
    with pytest.raises(OutOfBudgetError, match="'detail'"):
        make_asset(mesh, voxels, GenerationSettings(**plain, normal_map=True), ctx)


def test_clean_takes_what_was_said() -> None:
    vertices, faces = torus(steps=300)
    tracemalloc.start()
    try:
        clean(vertices.astype(np.float32), faces.astype(np.int32), 1 / 256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = step_bytes("clean", len(faces))
    assert peak < said < 3 * peak


def test_a_gpu_budget_does_not_limit_work_on_the_cpu() -> None:
    check_room("clean", 1000, 0, RunContext(torch.device("meta"), memory_budget=1))
    with pytest.raises(OutOfBudgetError, match="lower resolution"):
        check_room("clean", 1000, 0, RunContext(memory_budget=1))
