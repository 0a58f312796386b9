"""Decimation to a vertex target by quadric edge collapse (the `fast-simplification` library).

The library's aggressiveness is what decides its accuracy: 2 and 3 come close to exact quadrics and the default 7 is
several times worse, but low values may stop short of the target. So the ladder goes up only while the target is
missed, on what is left (docs/method/mesh.md). Its calls hold the interpreter lock and cannot be interrupted: large meshes go to
a child process that is dropped on cancel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import numpy as np

from ..context import QUIET, RunContext
from .topology import Array

AGGRESSIVENESS = (2, 3, 5, 7)
TOLERANCE = 0.02
"""Accepted distance from the target, as a share of it."""
_IN_PROCESS = 150_000
"""Faces up to which a call takes about a quarter of a second and is not worth a process."""
_CHILD = """
import sys
import numpy as np
from fast_simplification import simplify
source, result, target, aggressiveness = sys.argv[1:]
faces = np.load(source + ".faces.npy")
vertices, faces = simplify(np.load(source + ".vertices.npy"), faces, target_count=int(target), agg=float(aggressiveness))
np.save(result + ".vertices.npy", vertices.astype(np.float32))
np.save(result + ".faces.npy", faces.astype(np.int32))
"""
_library = threading.Lock()  # it keeps its mesh in globals


def decimate(vertices: Array, faces: Array, target: int, ctx: RunContext = QUIET) -> tuple[Array, Array]:
    """Reduce to `target` vertices, within 2 % where the topology allows it; never adds any.

    Args:
        vertices: float32 [V, 3].
        faces: int32 [F, 3], no unused vertices.
        target: vertices to keep, >= 4.
        ctx: told the progress; a cancel takes effect within about a tenth of a second.
    """
    if len(vertices) <= target * (1 + TOLERANCE):
        return vertices, faces
    source = vertices, faces
    excess = 0.0  # vertices beyond half the faces: Euler's relation keeps it while inner edges collapse
    best = source
    for attempt in range(3):
        vertices, faces = source
        for rung, aggressiveness in enumerate(AGGRESSIVENESS):
            ctx.report((attempt + rung / len(AGGRESSIVENESS)) / 3)
            excess = len(vertices) - len(faces) / 2 if attempt == 0 else excess
            goal = max(int(2 * (target - excess)), 4)
            if goal < len(faces):
                vertices, faces = _simplify(vertices, faces, goal, aggressiveness, ctx)
            if len(vertices) <= target * (1 + TOLERANCE):
                break
        if abs(len(vertices) - target) < abs(len(best[0]) - target):
            best = vertices, faces
        if len(vertices) >= target * (1 - TOLERANCE):
            break
        excess = len(vertices) - len(faces) / 2  # too few: borders collapsed too; aim by what they left
    return best


def library() -> Callable[..., tuple[Array, Array]]:
    """The function that decimates; `ImportError` where the package is missing."""
    from fast_simplification import simplify

    return simplify  # pyright: ignore[reportReturnType]


def _simplify(vertices: Array, faces: Array, goal: int, aggressiveness: float, ctx: RunContext) -> tuple[Array, Array]:
    """One call of the library: about `goal` faces, float32 vertices, int32 faces, no unused vertices."""
    if len(faces) <= _IN_PROCESS or not sys.executable:
        with _library:
            vertices, faces = library()(vertices, faces, target_count=goal, agg=aggressiveness)
    else:
        vertices, faces = _simplify_in_child(vertices, faces, goal, aggressiveness, ctx)
    return np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32)


def _simplify_in_child(vertices: Array, faces: Array, goal: int, aggressiveness: float, ctx: RunContext) -> tuple[Array, Array]:
    with tempfile.TemporaryDirectory(prefix="trellis_") as folder:
        source, result = (os.path.join(folder, name) for name in ("source", "result"))
        np.save(source + ".vertices.npy", vertices)
        np.save(source + ".faces.npy", faces)
        command = [sys.executable, "-c", _CHILD, source, result, str(goal), str(aggressiveness)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            while True:
                try:
                    errors = child.communicate(timeout=0.1)[1]
                    break
                except subprocess.TimeoutExpired:
                    ctx.check()
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            raise RuntimeError(f"The decimation process failed: {errors.decode(errors='replace').strip()[-500:]}")
        return np.load(result + ".vertices.npy"), np.load(result + ".faces.npy")
