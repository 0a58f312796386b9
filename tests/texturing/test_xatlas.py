"""Charts by xatlas, as a choice beside ours."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.helpers.solid_objects import ball, decoded, rainbow
from trellis_core.asset.asset import make_asset
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, InputError
from trellis_core.preflight import check_packages
from trellis_core.settings import GenerationSettings
from trellis_core.texturing import xatlas_unwrap
from trellis_core.texturing.bake import bake
from trellis_core.texturing.charts import basis
from trellis_core.texturing.raster import Interpolator
from trellis_core.texturing.surface import Surface
from trellis_core.texturing.unwrap import texel_corners
from trellis_core.texturing.xatlas_unwrap import unwrap_with_xatlas

SIZE = 256


def test_it_is_an_unwrap_like_ours() -> None:
    pytest.importorskip("xatlas")
    vertices, faces = ball(0.4, 3)
    surface = Surface.of(vertices, faces)
    flat = unwrap_with_xatlas(surface, SIZE)
    np.testing.assert_array_equal(flat.source[flat.faces], faces)
    assert flat.uvs.min() >= 0 and flat.uvs.max() <= 1 and flat.overlap <= 1e-3 * len(flat.texels.number)
    owner = np.empty(len(flat.source), int)
    owner[flat.faces] = flat.chart[:, None]
    assert (np.diff(owner) >= 0).all(), "vertices are grouped by chart"
    right, down = (side[flat.chart] for side in basis(flat.axis))
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    u, v = flat.uvs[flat.faces][:, 1:].transpose(2, 1, 0) - flat.uvs[flat.faces][:, :1].transpose(2, 1, 0)
    seen = [((p - a) * side).sum(1) for p in (b, c) for side in (right, down)]
    same = np.sign(seen[0] * seen[3] - seen[1] * seen[2]) == np.sign(u[0] * v[1] - u[1] * v[0])
    assert same.mean() > 0.98, "no chart is mirrored"
    corners, points = texel_corners(flat.uvs, flat.faces, SIZE), torch.from_numpy(vertices[faces])
    place = Interpolator(corners, points)(flat.texels, SIZE)
    assert (place.norm(dim=1) - 0.4).abs().max() < 0.01, "texels lie where their faces are"
    painted = bake(corners, points, flat.texels, decoded(vertices, faces, 32, rainbow)[1], SIZE).base_color.view(-1, 4)
    assert (painted[flat.texels.number, :3] / 255 - (place + 0.5)).abs().max() < 1.2 / 32


def test_a_model_is_painted_on_its_charts() -> None:
    pytest.importorskip("xatlas")
    settings = GenerationSettings(remesh=False, texture_size=1024, unwrap="xatlas")
    asset = make_asset(*decoded(*ball(0.4, 3), 32, rainbow), settings)
    ours = make_asset(*decoded(*ball(0.4, 3), 32, rainbow), settings.model_copy(update={"unwrap": "ours"}))
    assert asset.report.charts != ours.report.charts and asset.report.overlap < 1e-3
    assert asset.report.see_through == 0 and asset.report.texels_per_face > 0


def test_it_can_be_stopped() -> None:
    pytest.importorskip("xatlas")
    vertices, faces = ball(0.4, 5)
    asked = []

    def stop(fraction: float, name: str) -> None:
        asked.append(name)
        if len(asked) > 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        unwrap_with_xatlas(Surface.of(vertices, faces), SIZE, ctx=RunContext(torch.device("cpu"), on_progress=stop))


def test_what_it_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = ball(0.4, 1)
    settings = GenerationSettings(unwrap="xatlas")
    with monkeypatch.context() as patched:
        patched.setattr(xatlas_unwrap, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="pip install xatlas"):
            check_packages(settings, RunContext(torch.device("cpu")))
    monkeypatch.setattr(xatlas_unwrap, "find_spec", lambda name: True)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match='set unwrap to "ours"'):
        unwrap_with_xatlas(Surface.of(vertices, faces), SIZE)
