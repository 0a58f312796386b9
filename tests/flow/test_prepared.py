"""Prepared flow networks: every exact shortcut gives the numbers of the plain network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.flow.test_flow import SIZES, VARIANTS, sparse_batch
from trellis_core.flow.context import Both, Kept, Nothing
from trellis_core.flow.prepared import kept_bytes, prepare_slat, prepare_structure
from trellis_core.flow.sampler import SamplerParams, flow_schedule, sample
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.flow.structure import SparseStructureFlowModel, SparseStructureFlowParams

PARAMS = SamplerParams(6, 4.0, 0.7, (0.5, 0.95), 3.0)
TIMES = flow_schedule(PARAMS.steps, PARAMS.rescale_t)


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, and small enough that rounding is not blown up on the way through."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_prepared_structure_flow_is_the_plain_one(variant: dict) -> None:
    model = randomised(SparseStructureFlowModel(SparseStructureFlowParams.from_args(SIZES | variant)))
    x, cond, t = torch.randn(2, 4, 3, 3, 3), torch.randn(2, 5, 12), torch.full((2,), 1000 * TIMES[2])
    ready = prepare_structure(model, cond, TIMES)
    _check(ready, x, t, model(x, t, cond), model(x, t, torch.zeros_like(cond)))


@pytest.mark.parametrize("counts", [[5], [4, 4, 4], [3, 1, 6]])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_prepared_latent_flow_is_the_plain_one(variant: dict, counts: list[int]) -> None:
    model = randomised(SLatFlowModel(SLatFlowParams.from_args(SIZES | variant | {"in_channels": 6})))
    feats, coords = sparse_batch(counts)
    known = torch.randn(len(coords), 2)
    cond, t = torch.randn(len(counts), 5, 12), torch.full((len(counts),), 1000 * TIMES[1])
    ready = prepare_slat(model, coords, cond, TIMES, known)
    _check(ready, feats, t, model(feats, coords, t, cond, known), model(feats, coords, t, torch.zeros_like(cond), known))


def _check(ready, x, t, positive, negative) -> None:
    assert isinstance(ready.cond, Kept) and isinstance(ready.neg, Nothing) and isinstance(ready.pair[1], Both)
    scale = positive.abs().max()
    assert (positive - negative).abs().max() > 0.01 * scale, "the context must matter for this test to mean anything"
    for found, expected in zip(
        (ready(x, t, ready.cond), ready(x, t, ready.neg), *ready.both(x, t)), (positive, negative) * 2, strict=True
    ):
        assert (found - expected).abs().max() <= 1e-5 * scale


@torch.no_grad()
def test_sampling_with_shortcuts_ends_where_plain_sampling_does() -> None:
    model = randomised(SLatFlowModel(SLatFlowParams.from_args(SIZES | VARIANTS[0])))
    feats, coords = sparse_batch([3, 6])
    cond, rows = torch.randn(2, 5, 12), coords[:, 0].long()
    plain = sample(
        lambda x, t, c: model(x, coords, t, c), feats, PARAMS, cond=cond, neg=torch.zeros_like(cond), sample_rows=rows
    )
    ready = prepare_slat(model, coords, cond, TIMES)
    for both in (None, ready.both):
        found = sample(ready, feats, PARAMS, cond=ready.cond, neg=ready.neg, sample_rows=rows, both=both)
        assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()


@torch.no_grad()
def test_a_large_context_is_projected_anew_rather_than_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(SparseStructureFlowModel(SparseStructureFlowParams.from_args(SIZES | VARIANTS[0])))
    x, cond, t = torch.randn(1, 4, 3, 3, 3), torch.randn(1, 5, 12), torch.tensor([1000 * TIMES[0]])
    monkeypatch.setattr("trellis_core.flow.prepared.KEPT_BYTES", kept_bytes(model, 5) - 1)
    ready = prepare_structure(model, cond, TIMES)
    assert not isinstance(ready.cond, Kept)
    assert torch.allclose(ready(x, t, ready.cond), model(x, t, cond), rtol=0, atol=1e-5)
