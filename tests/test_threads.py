"""Small work is not spread over threads that would wait for each other, and the caller's number of threads comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.helpers.tiny_family import picture
from trellis_core import sampling, stages
from trellis_core.asset import asset as finishing
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled
from trellis_core.family import load_family
from trellis_core.roles import STRUCTURE_FLOW
from trellis_core.settings import GenerationSettings
from trellis_core.threads import PARAMETERS_A_THREAD, threads, threads_for

QUICK = {"ss_sampling_steps": 1, "shape_slat_sampling_steps": 1, "tex_slat_sampling_steps": 1, "texture_size": 1024}


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_no_more_than_asked_for_and_put_back() -> None:
    with threads(2):
        assert torch.get_num_threads() == 2
        with threads(8):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_large_networks_take_more() -> None:
    assert threads_for(torch.nn.Linear(10, 10)) == 1
    wide = torch.nn.Linear(PARAMETERS_A_THREAD // 1000, 3001, bias=False, device="meta")
    assert threads_for(wide) == 4


def test_mini_and_the_work_on_its_mesh_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    sample, decimate = sampling.sample, finishing.decimate

    def counted(name: str, work: object) -> object:
        return lambda *args, **kwargs: (seen.__setitem__(name, torch.get_num_threads()), work(*args, **kwargs))[1]

    monkeypatch.setattr(sampling, "sample", counted("sample", sample))
    monkeypatch.setattr(finishing, "decimate", counted("decimate", decimate))
    stages.generate_all(load_family("mini"), picture(), GenerationSettings(resolution=512, **QUICK), seed=1)
    assert seen == {"sample": 1, "decimate": 1} and torch.get_num_threads() == 3


def test_put_back_when_a_run_is_stopped() -> None:
    family = load_family("mini")
    with pytest.raises(Cancelled), family.network(STRUCTURE_FLOW):
        assert torch.get_num_threads() == 1
        RunContext(is_cancelled=lambda: True).check()
    assert torch.get_num_threads() == 3
