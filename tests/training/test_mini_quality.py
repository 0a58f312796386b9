"""The bundled mini family, picture to asset, on objects that no choice was ever made on: quality, not mere existence."""

from __future__ import annotations

import pytest

pytest.importorskip("numba", reason="the held-out objects are made by compiled kernels")

from trellis_core.family import load_family  # noqa: E402
from trellis_core.settings import GenerationSettings  # noqa: E402
from trellis_core.training.evaluate import Measures, evaluate_batch, mean_of  # noqa: E402
from trellis_core.training.mini.data.toys import make_object  # noqa: E402

SEED = 3_000_000
OBJECTS = 8


@pytest.fixture(scope="module")
def mini() -> Measures:
    """Means over toys, which is what the bundled weights were trained on; see the README for the whole evaluation."""
    settings = GenerationSettings(resolution=512, seed=0)
    return mean_of(evaluate_batch(load_family("mini"), SEED, OBJECTS, settings, make=make_object))


def test_the_structure_follows_the_picture(mini: Measures) -> None:
    assert mini["matched"]["structure_iou"] > 0.8
    assert mini["matched"]["structure_iou"] > mini["mismatched"]["structure_iou"] + 0.3


def test_the_surface_lies_where_the_object_is(mini: Measures) -> None:
    assert mini["matched"]["chamfer"] < 0.028 and mini["matched"]["f_05"] > 0.88
    assert mini["matched"]["chamfer"] < 0.5 * mini["mismatched"]["chamfer"]


def test_colours_beat_painting_with_the_mean_of_the_picture(mini: Measures) -> None:
    assert mini["matched"]["rgb"] < 0.6 * mini["mean_colour"]["rgb"]
    assert mini["matched"]["rgb"] < 0.4 * mini["mismatched"]["rgb"]


def test_finished_models_are_closed(mini: Measures) -> None:
    assert mini["finished"]["boundary_edges"] <= 0.01 and mini["finished"]["watertight"] >= 0.8
    assert mini["finished"]["f_05"] > mini["matched"]["f_05"] - 0.04
