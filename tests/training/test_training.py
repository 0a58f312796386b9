"""Training code: optimiser, losses, resumable loop, export into the published layout, held-out measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trellis_core.training import export, losses
from trellis_core.training.loop import Recipe, load_averaged, train_stage
from trellis_core.training.mini import metrics, vaes
from trellis_core.training.mini.cache import moments
from trellis_core.training.mini.networks import CONFIGS, make_image_encoder, make_network
from trellis_core.training.optim import Optimizers, orthogonalize, rate_factor


@pytest.mark.parametrize("shape", [(8, 8), (12, 40), (40, 12)])
def test_orthogonalize_evens_out_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(0.1, 5, shape[1]))
    values = torch.linalg.svdvals(orthogonalize(matrix, iterations=10))
    assert values.min() > 0.6 and values.max() < 1.3


def test_optimizers_fit_a_small_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
    x = torch.randn(256, 16)
    y = x.roll(1, dims=1).tanh()
    optimizers = Optimizers([net], lr=3e-2)
    assert len(optimizers.members) == 2, "matrices go to Muon, biases to AdamW"
    first = nn.functional.mse_loss(net(x), y).item()
    for step in range(120):
        nn.functional.mse_loss(net(x), y).backward()
        optimizers.step(rate_factor(step / 120))
    assert nn.functional.mse_loss(net(x), y).item() < 0.1 * first


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    net = nn.Linear(8, 8)
    before = net.weight.detach().clone()
    optimizers = Optimizers([net], lr=1.0)
    (net(torch.ones(1, 8)).sum() * float("nan")).backward()
    optimizers.step(1.0)
    assert torch.equal(net.weight, before) and net.weight.grad is None


def _toy_stage(folder: Path, seconds: float) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Linear(8, 8)

    def loss(generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(32, 8, generator=generator)
        return {"loss": (net(x) - x).square().mean()}

    train_stage(
        "toy",
        {"net": net},
        loss,
        lambda: {"bias": net.bias.abs().mean().item()},
        folder,
        Recipe(seconds, lr=0.02, eval_every=0.1),
    )
    return net


def test_a_stage_logs_resumes_and_is_not_trained_twice(tmp_path: Path) -> None:
    _toy_stage(tmp_path, 0.3)
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] > lines[0]["step"] and lines[-1]["loss"] < lines[0]["loss"] and "held_out_bias" in lines[-1]
    finished = (tmp_path / "toy.jsonl").read_text()
    again = _toy_stage(tmp_path, 0.3)
    assert (tmp_path / "toy.jsonl").read_text() == finished, "a finished stage is only loaded"
    loaded = nn.Linear(8, 8)
    load_averaged("toy", {"net": loaded}, tmp_path)
    assert torch.equal(loaded.weight, again.weight)
    _toy_stage(tmp_path, 0.5)
    last = json.loads((tmp_path / "toy.jsonl").read_text().splitlines()[-1])
    assert last["step"] > lines[-1]["step"], "a larger budget goes on where the smaller one ended"


def test_the_learning_rate_falls_to_zero_at_every_restart() -> None:
    recipe = Recipe(300, restarts=(100,))
    assert [recipe.progress(spent) for spent in (0, 50, 99.9, 150, 300)] == pytest.approx([0, 0.5, 0.999, 0.5, 1])
    assert [recipe.scaled(0.1).progress(spent) for spent in (5, 15)] == pytest.approx([0.5, 0.5])


def test_latents_that_say_nothing_stay_small_when_normalised() -> None:
    means = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.01])
    mean, std = moments(means, torch.tensor([0.01, 1.0]))
    spread = ((means - mean) / std).std(0)
    assert spread[0].item() == pytest.approx(1, abs=0.02) and spread[1] < 0.02


def test_roughening_is_relative_to_the_latent_and_differs_between_samples() -> None:
    z = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 10.0])
    coords = torch.zeros(4000, 4, dtype=torch.int32)
    coords[2000:, 0] = 1
    change = vaes.roughen(z, coords, torch.Generator().manual_seed(1), strength=0.5) - z
    shares = torch.stack([half.std(0) / z.std(0) for half in change.split(2000)])
    assert (shares < 0.55).all() and (shares.std(1) < 0.1 * shares.mean(1)).all()
    assert (shares[0] - shares[1]).abs().min() > 0.02


def test_condition_dropout_zeroes_whole_sequences() -> None:
    cond = torch.ones(4, 3, 2)
    kept = losses.drop_condition(cond, 0.5, np.array([0.1, 0.6, 0.49, 0.5]))
    assert kept.sum((1, 2)).tolist() == [0, 6, 0, 6]


def test_a_perfect_velocity_has_no_flow_loss() -> None:
    x0 = torch.randn(5, 3)
    rows = torch.tensor([0, 0, 1, 1, 1])
    seen = {}

    def model(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        s = losses.SIGMA_MIN
        tau = t[rows][:, None] / 1000
        noise = (x - (1 - tau) * x0) / (s + (1 - s) * tau)
        seen["t"] = t
        return (1 - s) * noise - x0

    schedule = losses.TimeSchedule("logitNormal", 1.0, 0.5)
    loss = losses.flow_matching_loss(model, x0, torch.zeros(2, 4, 3), schedule, rows=rows, p_uncond=0.0)
    assert loss.value < 1e-6 and seen["t"].shape == (2,)


def test_split_weights_learn_the_flatter_diagonal() -> None:
    # A long, low roof over a rhombus: cut along its short diagonal 1-3, the two halves bend least.
    vertices = torch.tensor([[0.0, 0, 0], [1.5, -0.5, 0.5], [3, 0, 0], [1.5, 0.5, 0.5]])
    along_02, along_13 = torch.tensor([3.0, -3, 3, -3]), torch.tensor([-3.0, 3, -3, 3])
    for start in range(4):
        quad = torch.arange(4).roll(start)[None]
        assert losses.split_loss(along_13, vertices, quad) < losses.split_loss(along_02, vertices, quad)


def test_folding_the_structure_scale_keeps_the_round_trip() -> None:
    enc, dec = make_network("ss_enc"), make_network("ss_dec")
    for p in dec.parameters():
        nn.init.normal_(p, std=0.1)
    occupancy = (torch.rand(2, 1, 8, 8, 8) > 0.7).float()
    with torch.no_grad():
        mean, logvar = enc(occupancy)
        logits = dec(mean)
        scale = torch.rand(8) + 0.5
        export.fold_structure_scale(enc, dec, scale)
        folded, folded_logvar = enc(occupancy)
    wide = scale.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(folded * wide, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(folded_logvar + 2 * wide.log(), logvar, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dec(folded), logits, atol=1e-4, rtol=1e-4)


def test_channel_weights_balance_by_variance() -> None:
    attrs = torch.rand(1000, 6, generator=torch.Generator().manual_seed(0))
    attrs[:, 4] *= 0.5
    attrs[:, 5] = 1
    weights = vaes.channel_weights(attrs)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[4] / weights[3] == pytest.approx(4, rel=0.2) and weights[0] / weights[3] == pytest.approx(2, rel=0.2)


def test_metrics_on_known_sets() -> None:
    a = np.array([[0, 0, 0], [1, 2, 3]])
    assert metrics.grid_iou(a, a) == 1 and metrics.grid_iou(a, a[:1]) == 0.5
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    points = metrics.surface_points(square, faces)
    assert points[:, 2].max() == 0 and abs(points.mean(0)[:2] - 0.5).max() < 0.02
    distance, scores = metrics.chamfer_and_f(points, points + (0, 0, 0.04))
    assert distance == pytest.approx(0.04, abs=0.02) and scores[0] > 0.5 > scores[1]
    assert metrics.boundary_share(faces) == pytest.approx(0.8)
    error = metrics.two_way_attribute_error(square, np.zeros((4, 3)), square + 0.01, np.full((4, 3), 0.25))
    assert error.tolist() == [0.25] * 3


def test_configs_make_networks_that_fit_the_size_limit() -> None:
    total = sum(p.numel() for key in CONFIGS for p in make_network(key).parameters())
    total += sum(p.numel() for p in make_image_encoder().parameters())
    assert 2 * total < 15.95e6, "16 MB with headers, configs and folders"
