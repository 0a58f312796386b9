"""The flow Euler sampler: schedule, integration, guidance, cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.context import RunContext
from trellis_core.errors import Cancelled
from trellis_core.flow.sampler import SamplerParams, flow_schedule, sample

SIGMA = 1e-5
quick = settings(max_examples=25, deadline=None)


@given(st.integers(1, 60), st.floats(1, 20))
@quick
def test_the_schedule_runs_down_from_one_to_zero(steps: int, rescale: float) -> None:
    times = flow_schedule(steps, rescale)
    assert len(times) == steps + 1 and times[0] == 1.0 and times[-1] == 0.0
    assert all(a > b for a, b in zip(times, times[1:], strict=False))


def test_published_schedules_hit_the_ends_of_their_intervals_exactly() -> None:
    times = flow_schedule(12, 3.0)
    assert times[8] == 0.6 and times[3] == 0.9


def straight_to(target: torch.Tensor, noise: torch.Tensor):
    """The true velocity of the path from `noise` to `target`."""
    return lambda x, t, cond: (1 - SIGMA) * noise - target


@given(st.integers(1, 20), st.floats(0.5, 8), st.integers(0, 1000))
@quick
def test_a_straight_path_is_integrated_exactly(steps: int, rescale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise, target = torch.randn(2, 2, 3, 4, 4, 4, generator=generator)
    estimates = []
    params = SamplerParams(steps, 1.0, 0.0, (0.0, 1.0), rescale)
    result = sample(
        straight_to(target, noise), noise, params, cond=None, neg=None,
        on_step=lambda i, x, estimate: estimates.append(estimate),
    )  # fmt: skip
    # The walk ends at noise level sigma, not at 0.
    assert (result - (target + SIGMA * noise)).abs().max() < 2e-5
    assert all((estimate - target).abs().max() < 2e-5 for estimate in estimates)


def field(x: torch.Tensor, t: torch.Tensor, cond: float) -> torch.Tensor:
    """A bent velocity field that depends on everything."""
    return torch.sin(3 * x) * cond + x * (t / 1000).mean()


@given(
    st.integers(1, 15), st.floats(0.5, 6), st.sampled_from([0.0, 1.0, 3.0, 7.5]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)  # fmt: skip
@quick
def test_each_branch_is_evaluated_only_where_it_counts(
    steps: int, rescale: float, strength: float, interval: list[float]
) -> None:
    calls = []

    def model(x: torch.Tensor, t: torch.Tensor, cond: float) -> torch.Tensor:
        calls.append(cond)
        return field(x, t, cond)

    low, high = interval
    sample(model, torch.randn(1, 4), SamplerParams(steps, strength, 0.5, (low, high), rescale), cond=1.0, neg=0.25)
    inside = sum(low <= t <= high for t in flow_schedule(steps, rescale)[:-1])
    expected = {
        0.0: (steps - inside, inside),
        1.0: (steps, 0),
    }.get(strength, (steps, inside))
    assert (calls.count(1.0), calls.count(0.25)) == expected


@pytest.mark.parametrize("end", [0, 1])
def test_both_ends_of_the_interval_belong_to_it(end: int) -> None:
    times = flow_schedule(12, 3.0)
    interval = (times[8], 2.0) if end == 0 else (-1.0, times[8])
    negatives = []

    def model(x: torch.Tensor, t: torch.Tensor, cond: float) -> torch.Tensor:
        if cond == 0:
            negatives.append(t.item())
        return field(x, t, cond)

    sample(model, torch.randn(1, 4), SamplerParams(12, 4.0, 0.0, interval, 3.0), cond=1.0, neg=0.0)
    assert torch.tensor(1000 * times[8], dtype=torch.float32).item() in negatives
    assert len(negatives) == (9 if end == 0 else 4)


def test_full_rescale_keeps_the_spread_of_the_unguided_estimate() -> None:
    torch.manual_seed(0)
    noise = torch.randn(3, 5, 4)
    seen = {}

    def model(x: torch.Tensor, t: torch.Tensor, cond: float) -> torch.Tensor:
        return field(x, t, cond)

    params = SamplerParams(1, 6.0, 1.0, (0.0, 1.0), 1.0)
    sample(model, noise, params, cond=1.0, neg=0.1, on_step=lambda i, x, e: seen.update(guided=e))
    unguided = (1 - SIGMA) * noise - field(noise, torch.tensor([1000.0]), 1.0)
    assert torch.allclose(seen["guided"].flatten(1).std(1), unguided.flatten(1).std(1), rtol=1e-4)


def test_a_sparse_batch_equals_its_samples_alone() -> None:
    torch.manual_seed(1)
    sizes = [5, 9, 3]
    rows = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    noise = torch.randn(len(rows), 4)
    params = SamplerParams(6, 5.0, 0.7, (0.3, 1.0), 3.0)
    together = sample(field, noise, params, cond=1.0, neg=0.2, sample_rows=rows)
    alone = [
        sample(field, part, params, cond=1.0, neg=0.2, sample_rows=torch.zeros(len(part), dtype=torch.int64))
        for part in noise.split(sizes)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_progress_reaches_one_and_cancel_stops_within_a_step() -> None:
    told: list[float] = []
    ctx = RunContext(on_progress=lambda fraction, name: told.append(fraction), is_cancelled=lambda: len(told) >= 3)
    with pytest.raises(Cancelled):
        sample(field, torch.randn(1, 4), SamplerParams(10, 1.0), cond=1.0, neg=0.0, ctx=ctx)
    assert told == pytest.approx([0.1, 0.2, 0.3])
    told.clear()
    ctx = RunContext(on_progress=lambda fraction, name: told.append(fraction))
    sample(field, torch.randn(1, 4), SamplerParams(4, 1.0), cond=1.0, neg=0.0, ctx=ctx)
    assert told[-1] == 1.0


def walked(caching: int, steps: int = 12, interval: tuple[float, float] = (0.0, 0.0)) -> tuple[list[int], torch.Tensor]:
    """The steps that a velocity was computed at, and where the walk ended."""
    times, seen = flow_schedule(steps, 3.0), []

    def model(x: torch.Tensor, t: torch.Tensor, cond: float) -> torch.Tensor:
        seen.append(min(range(steps), key=lambda i: abs(times[i] - float(t[0]) / 1000)))
        return field(x, t, cond)

    x = torch.linspace(-1, 1, 8)[None]
    params = SamplerParams(steps, 4.0, 0.0, interval, 3.0, step_caching=caching)
    return seen, sample(model, x, params, cond=1.0, neg=0.25)


def test_step_caching_computes_the_first_two_steps_every_nth_and_the_last() -> None:
    assert walked(0)[0] == list(range(12))
    assert walked(1)[0] == [0, 1, 3, 5, 7, 9, 11]
    assert walked(3)[0] == [0, 1, 5, 9, 11]
    assert [i for i in walked(1, interval=(0.6, 1.0))[0]] == [0, 0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 10, 11]


def test_step_caching_stays_near_and_off_changes_nothing() -> None:
    exact, near, far = (walked(n)[1] for n in (0, 1, 3))
    coarse = sample(field, torch.linspace(-1, 1, 8)[None], SamplerParams(7, 4.0, 0.0, (0.0, 0.0), 3.0), cond=1.0, neg=0.25)
    assert (near - exact).abs().max() < 0.3 * (coarse - exact).abs().max()
    assert (near - exact).abs().max() < (far - exact).abs().max()


def test_velocities_on_a_line_are_cached_without_error() -> None:
    def line(x: torch.Tensor, t: torch.Tensor, cond: int) -> torch.Tensor:
        return t[0] / 500 * torch.ones_like(x)

    exact, cached = (sample(line, torch.zeros(1, 3), SamplerParams(12, 1.0, step_caching=n), cond=0, neg=0) for n in (0, 3))
    assert torch.allclose(exact, cached, atol=1e-6)
