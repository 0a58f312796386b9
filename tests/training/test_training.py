"""Training code: optimiser, losses, resumable loop, export into the published layout, held-out measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trellis_core.flow.rope import additive_embedding
from trellis_core.training import losses
from trellis_core.training.loop import Recipe, load_averaged, train_stage
from trellis_core.training.mini import aim, encoder, metrics, vaes
from trellis_core.training.mini.cache import Tokens, moments
from trellis_core.training.mini.data.dataset import DualGridTargets
from trellis_core.training.mini.networks import CONFIGS, TOKEN_WIDTH, make_image_encoder, make_network
from trellis_core.training.mini.run import flow_network
from trellis_core.training.mini.structure_code import fold_cells, structure_autoencoder
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


def test_the_structure_code_is_the_structure_and_both_networks_speak_it() -> None:
    enc, dec = structure_autoencoder()
    generator = torch.Generator().manual_seed(0)
    occupancy = (torch.rand(3, 1, 16, 16, 16, generator=generator) < torch.tensor([0.05, 0.3, 0.6]).view(3, 1, 1, 1, 1)).float()
    occupancy[0, :, 4:8, 4:8, 4:8] = 0
    code = fold_cells(occupancy)
    assert code.shape == (3, 64, 4, 4, 4) and set(code.unique().tolist()) == {-1.0, 1.0}
    with torch.no_grad():
        mean, logvar = enc(occupancy)
        assert torch.equal(dec(code) > 0, occupancy > 0) and torch.equal(dec(mean) > 0, occupancy > 0)
        noisy = code + 0.3 * torch.randn(code.shape, generator=generator)
        assert ((dec(noisy) > 0) == (occupancy > 0)).float().mean() > 0.99
    assert (mean - code).abs().mean() < 0.4 and logvar.max() < -5


def test_fresh_flows_look_at_the_patch_over_each_cell() -> None:
    codes = torch.cat([torch.zeros(2, 9, encoder.PLACE), encoder.place_code(16).expand(2, -1, -1)], 1)
    tokens = Tokens(torch.nn.functional.pad(codes, (0, TOKEN_WIDTH - encoder.PLACE)).half())
    model = flow_network("shape_flow")
    aim.aim_latent(model, tokens)
    attention = model.blocks[0].cross_attn
    places = torch.tensor([[0, 3, 15], [5, 0, 2], [15, 9, 0], [8, 8, 8]])
    with torch.no_grad():
        width = model.params.model_channels
        x = torch.nn.functional.layer_norm(additive_embedding(places, width), (width,))
        q = attention.q_rms_norm(attention.to_q(x).unflatten(-1, (attention.heads, -1)))[:, 0]
        k, _ = attention.keys_values(tokens.gather(torch.tensor([0])))
        seen = (q @ k[0, 9:, 0].T / q.shape[-1] ** 0.5).argmax(1)
    rows, columns = 15 - places[:, 2], places[:, 0]
    assert (seen // 16 - rows).abs().max() <= 1 and (seen % 16 - columns).abs().max() <= 1


def test_a_fresh_image_encoder_knows_where_a_patch_is() -> None:
    vit = make_image_encoder()
    encoder.set_out(vit)
    pictures = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = vit.encode(pictures)[:, -256:]
    weight, bias = aim._fit(tokens[:4].flatten(0, 1), encoder.place_code(16).repeat(4, 1))
    error = (tokens[4:] @ weight.T + bias - encoder.place_code(16)).square().mean()
    assert error < 0.15 * encoder.place_code(16).square().mean()


def test_column_targets_say_what_a_picture_shows() -> None:
    coords = np.array([[5, 20, 40], [5, 50, 40], [6, 10, 40]], np.uint8)
    attrs = np.array([[1, 0, 0, 0, 0.5, 1], [0, 1, 0, 0, 0.5, 1], [0, 0, 1, 1, 0.5, 1]], np.float32)
    one = DualGridTargets(64, coords, np.full((3, 3), 0.5, np.float32), np.zeros((3, 3), bool), attrs)
    cells, maps, material = encoder.column_targets([one])
    patch = (15 - 40 // 4) * 16 + 5 // 4
    sub = (63 - 40) % 4 * 4 + 5 % 4
    assert cells.nonzero().tolist() == [[0, patch, depth] for depth in (2, 5, 12)]
    seen = maps[0, patch, :, sub]
    assert seen.tolist() == pytest.approx([1, 20.5 / 64, 50.5 / 64, 1, 0, 0, 0, 1, 0])
    assert maps[0, :, 0].sum() == 2 and material[0, patch, 0] == pytest.approx(0.5)


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
    assert 2 * total < 39.5e6, "40 MB with headers, configs and folders"
