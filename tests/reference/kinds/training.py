"""Training losses of the flow models: kinds train_loss_ss and train_loss_slat (docs/method/sampling.md)."""

from __future__ import annotations

import numpy as np
import torch

from tests.reference.golden_harness import Case, assert_close, kind
from trellis_core.training.losses import FlowLoss, TimeSchedule, flow_matching_loss
from trellis_core.weights.network_file import network_file

ATOL = 2e-5


def _schedule(meta: dict) -> TimeSchedule:
    entry = meta.get("t_schedule", {"name": "logitNormal", "args": {}})
    return TimeSchedule(entry["name"], **entry.get("args", {}))


def _check(case: Case, model: torch.nn.Module, loss: FlowLoss) -> None:
    expected = case.outputs
    loss.value.backward()
    parameters = dict(model.named_parameters())
    found = {"loss": loss.value.detach()[None], "noise": loss.noise, "t_times_1000": loss.t * 1000, "x_t": loss.x_t}
    found |= {"cond_used": loss.cond, "pred": loss.prediction.detach()}
    found |= {key: parameters[key[5:]].grad for key in expected if key.startswith("grad.")}
    norms = torch.stack([p.grad.norm() for p in parameters.values() if p.grad is not None])
    found["grad_norm"] = norms.norm()[None]
    for key, tensor in expected.items():
        atol = max(ATOL, 1e-6 * tensor.abs().max().item())
        assert_close(found[key], tensor, atol, key)


@kind(r"train_loss_(ss|slat).*")
def run_train_loss(case: Case) -> None:
    meta, inputs = case.json("meta"), case.inputs
    model = network_file(case.path / "model").load().requires_grad_(True)
    torch.manual_seed(meta["torch_seed"])
    np.random.seed(meta["numpy_seed"])
    velocity, rows = model, None
    if "coords" in inputs:
        coords = inputs["coords"]
        rows = coords[:, 0].long()
        velocity = lambda x, t, cond: model(x, coords, t, cond, inputs.get("concat_cond"))  # noqa: E731
    loss = flow_matching_loss(
        velocity, inputs["x_0"], inputs["cond_features"], _schedule(meta),
        rows=rows, p_uncond=meta["p_uncond"], sigma_min=meta["sigma_min"],
    )  # fmt: skip
    _check(case, model, loss)
