"""Streams of noise: objects of a batch can be made again alone, and seeds mean what they say."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny_family import picture
from trellis_core import stages
from trellis_core.errors import InputError
from trellis_core.family import load_family
from trellis_core.noise import generator, item_seed, state_of, streams, streams_at
from trellis_core.settings import SEED_LIMIT, GenerationSettings

QUICK = {"ss_sampling_steps": 2, "shape_slat_sampling_steps": 2, "tex_slat_sampling_steps": 1}


def _drawn(stream: torch.Generator) -> torch.Tensor:
    return torch.randn(5, generator=stream)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_are_pytorchs(seed: int) -> None:
    assert torch.equal(_drawn(generator(seed)), _drawn(torch.Generator().manual_seed(seed)))


def test_seeds_that_differ_in_the_upper_half_alone_share_no_stream() -> None:
    for low in (0, 7, 2**32 - 1):
        drawn = {tuple(_drawn(generator(low + high * 2**32)).tolist()) for high in (0, 1, 2, 3, 2**16, 2**31, 2**32 - 1)}
        assert len(drawn) == 7


def test_an_object_of_a_batch_draws_as_its_own_seed_does() -> None:
    for seed, samples in ((5, 3), (2**32 - 2, 4), (SEED_LIMIT - 1, 2)):
        for index, stream in enumerate(streams(seed, samples)):
            assert torch.equal(_drawn(stream), _drawn(generator(item_seed(seed, index))))
    assert item_seed(SEED_LIMIT - 1, 1) == 0


def test_streams_go_on_where_they_stood() -> None:
    begun = streams(3, 2)
    list(map(_drawn, begun))
    state = state_of(begun)
    for stream, again in zip(begun, streams_at(state, 2), strict=True):
        assert torch.equal(_drawn(stream), _drawn(again))
    with pytest.raises(InputError, match="3 objects and noise for 2"):
        streams_at(state, 3)
    with pytest.raises(InputError, match="damaged"):
        streams_at(state[:, :100], 2)


def test_the_one_state_that_older_files_hold_goes_on_as_it_did() -> None:
    old = torch.Generator().manual_seed(9)
    (stream,) = streams_at(old.get_state(), 1)
    assert torch.equal(_drawn(stream), _drawn(old))


@pytest.mark.parametrize("resolution", [512, 1024])
def test_a_model_of_a_batch_is_made_again_alone(resolution: int) -> None:
    family = load_family("mini")
    small = GenerationSettings(resolution=resolution, texture_size=1024, decimation_target=5000, remesh=False, **QUICK)
    first, second = picture(), picture().rotate(90).resize((60, 60))
    _, together = stages.generate_all(family, [first, second], small, seed=41)
    seed = together.report.made_with["seed"]
    assert seed == 42 and "seed 42" in together.report.to_text()
    (alone,) = stages.generate_all(family, second, small, seed=seed)
    assert alone.glb == together.glb


def test_several_models_of_one_picture_too() -> None:
    family = load_family("mini")
    small = GenerationSettings(resolution=512, texture_size=1024, decimation_target=5000, remesh=False, **QUICK)
    together = stages.generate_all(family, picture(), small, seed=7, samples=2)
    assert together[0].glb != together[1].glb
    for asset in together:
        (alone,) = stages.generate_all(family, picture(), small, seed=asset.report.made_with["seed"])
        assert alone.glb == asset.glb
