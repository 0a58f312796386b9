"""Unwrapping by the xatlas package, for those who know its charts; the twin of `unwrap.unwrap`, and much slower."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..context import QUIET, RunContext
from ..errors import InputError
from ..mesh.topology import Array, stable_order
from .charts import basis
from .surface import Surface
from .unwrap import Unwrap, covered_texels

_ASKED = 0.1
"""Seconds between two looks at the process."""
_USUAL = 3e-4
"""Seconds that xatlas takes for a triangle, for the progress only."""


def check_xatlas() -> None:
    """
    Raises:
        InputError: the package is not installed.
    """
    if find_spec("xatlas") is None:
        raise InputError(
            f'xatlas is not installed: set unwrap to "ours", or install it: {sys.executable or "python"} -m pip install xatlas'
        )


def unwrap_with_xatlas(surface: Surface, size: int, padding: int = 2, ctx: RunContext = QUIET) -> Unwrap:
    """Cut, flatten and pack a surface by xatlas with its own options; see `unwrap.unwrap`.

    Raises:
        InputError: xatlas is missing, or cannot unwrap this mesh.
    """
    check_xatlas()
    origin, faces, uvs, chart = _by_process(surface, size, padding, ctx.part(0.0, 0.9, "unwrap"))
    chart = np.unique(chart, return_inverse=True)[1]
    order, owner = stable_order(chart.astype(np.int64))
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    faces, origin, uvs = rank[faces], origin[order].astype(np.int64), uvs[order]
    of_face = owner[faces[:, 0]].astype(np.int64)
    axis = _axes(surface, of_face, int(owner.max()) + 1)
    if _mirrored(surface, faces, uvs, of_face, axis):
        uvs[:, 1] = 1 - uvs[:, 1]
    texels, overlap = covered_texels(uvs, faces, size, ctx.part(0.9, 1.0, "unwrap"))
    return Unwrap(faces, origin, uvs, of_face, axis, texels, overlap)


def _by_process(surface: Surface, size: int, padding: int, ctx: RunContext) -> tuple[Array, Array, Array, Array]:
    child = Path(__file__).with_name("xatlas_child.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target, told = (Path(folder) / name for name in ("in.npz", "out.npz", "error.txt"))
        np.savez(source, vertices=surface.vertices.astype(np.float32), faces=surface.faces.astype(np.uint32))
        command = [sys.executable, str(child), str(source), str(target), str(size), str(padding)]
        began, expected = time.monotonic(), 1 + _USUAL * len(surface.faces)
        with told.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            try:
                while process.poll() is None:
                    spent = time.monotonic() - began
                    ctx.report(spent / (spent + expected), "unwrap by xatlas")
                    ctx.check()
                    time.sleep(_ASKED)
            finally:
                process.kill()
        if process.returncode or not target.is_file():
            last = told.read_text(errors="replace").strip().rpartition("\n")[2][:200]
            raise InputError(f'xatlas could not unwrap this mesh ({last or process.returncode}): set unwrap to "ours".')
        with np.load(target) as made:
            if int(made["atlases"]) > 1:
                raise InputError(f'xatlas needs more than one atlas of {size}: use a larger texture, or set unwrap to "ours".')
            return made["origin"], made["faces"], made["uvs"].astype(np.float32), made["chart"]


def _axes(surface: Surface, chart: Array, count: int) -> Array:
    """Mean direction float64 [C, 3] that each chart faces."""
    a, b, c = (surface.vertices[surface.faces[:, k]].astype(np.float64) for k in range(3))
    axis = np.zeros((count, 3))
    np.add.at(axis, chart, np.cross(b - a, c - a))
    length = np.linalg.norm(axis, axis=1, keepdims=True)
    return np.where(length > 0, axis / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])


def _mirrored(surface: Surface, faces: Array, uvs: Array, chart: Array, axis: Array) -> bool:
    """Whether most of the atlas is seen from behind, compared with a projection along the charts' axes."""
    points = surface.vertices[surface.faces].astype(np.float64)
    ours = np.stack([(points * side[chart][:, None]).sum(-1) for side in basis(axis)], -1)
    return float((np.sign(_turn(ours)) * _turn(uvs[faces].astype(np.float64))).sum()) < 0


def _turn(flat: Array) -> Array:
    """Twice the signed area [F] of triangles [F, 3, 2]."""
    (x1, y1), (x2, y2) = ((flat[:, k] - flat[:, 0]).T for k in (1, 2))
    return x1 * y2 - x2 * y1
