"""Flow transformers: samples never mix, positions matter, names are the published ones, initialisation is calm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trellis_core.flow.attention import Batch, attend
from trellis_core.flow.rope import rotary_phases, rotate
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.flow.structure import SparseStructureFlowModel, SparseStructureFlowParams
from trellis_core.flow.transformer import initialize

SIZES = {
    "resolution": 3, "in_channels": 4, "out_channels": 4, "model_channels": 32, "cond_channels": 12,
    "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.0, "use_checkpoint": False,
}  # fmt: skip
VARIANTS = [
    {"pe_mode": pe, "share_mod": share, "qk_rms_norm": norm, "qk_rms_norm_cross": norm}
    for pe in ("rope", "ape") for share in (True, False) for norm in (True, False)
]  # fmt: skip
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, so that none hides behind a zero."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def sparse_batch(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    coords = torch.cat([rows[:, None], torch.randint(0, 9, (len(rows), 3))], dim=1).int()
    return torch.randn(len(rows), 4), coords


@given(lengths, st.integers(0, 99), st.data())
@settings(max_examples=30, deadline=None)
def test_attention_of_a_batch_equals_attention_of_each_sample(counts: list[int], seed: int, data: st.DataObject) -> None:
    contexts = data.draw(st.lists(st.integers(1, 6), min_size=len(counts), max_size=len(counts)))
    torch.manual_seed(seed)
    queries, context = Batch(tuple(counts)), Batch(tuple(contexts))
    q = torch.randn(sum(counts), 2, 8)
    k, v = torch.randn(2, sum(contexts), 2, 8)
    out = attend(queries.fold(q), context.fold(k), context.fold(v), queries, context).flatten(0, -2)
    start = {"q": 0, "k": 0}
    for nq, nk in zip(counts, contexts, strict=True):
        a, b = slice(start["q"], start["q"] + nq), slice(start["k"], start["k"] + nk)
        weights = torch.einsum("qhd,khd->hqk", q[a], k[b]).div(8**0.5).softmax(-1)
        expected = torch.einsum("hqk,khd->qhd", weights, v[b]).flatten(1)
        assert torch.allclose(out[a], expected, atol=1e-5)
        start = {"q": a.stop, "k": b.stop}


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_of_a_sparse_batch_do_not_mix(variant: dict) -> None:
    model = randomised(SLatFlowModel(SLatFlowParams.from_args({**SIZES, **variant})))
    counts = [4, 7, 4]
    feats, coords = sparse_batch(counts)
    t = torch.tensor([900.0, 300.0, 20.0])
    cond = [torch.randn(n, 12) for n in (3, 5, 3)]
    together = model(feats, coords, t, cond)
    start = 0
    for i, count in enumerate(counts):
        rows = slice(start, start + count)
        own = coords[rows].clone()
        own[:, 0] = 0
        alone = model(feats[rows], own, t[i : i + 1], cond[i][None])
        assert torch.allclose(together[rows], alone, atol=2e-5)
        start += count


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dense_flow_is_the_sparse_flow_on_a_full_cube(variant: dict) -> None:
    dense = randomised(SparseStructureFlowModel(SparseStructureFlowParams.from_args({**SIZES, **variant})))
    sparse = SLatFlowModel(SLatFlowParams.from_args({**SIZES, **variant}))
    sparse.load_state_dict(dense.state_dict())
    x, t, cond = torch.randn(2, 4, 3, 3, 3), torch.tensor([800.0, 10.0]), torch.randn(2, 5, 12)
    coords = torch.cartesian_prod(torch.arange(2), *[torch.arange(3)] * 3).int()
    b, i, j, k = coords.long().unbind(1)
    expected = sparse(x[b, :, i, j, k], coords, t, cond)
    assert torch.allclose(dense(x, t, cond)[b, :, i, j, k], expected, atol=2e-5)


def test_known_latent_channels_come_after_the_noisy_ones() -> None:
    model = randomised(SLatFlowModel(SLatFlowParams.from_args({**SIZES, "in_channels": 6})))
    feats, coords = sparse_batch([5])
    known, t, cond = torch.randn(5, 2), torch.tensor([500.0]), torch.randn(1, 3, 12)
    expected = model(torch.cat([feats, known], 1), coords, t, cond)
    assert torch.equal(model(feats, coords, t, cond, known), expected)


def test_rotary_attention_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 12)
    here, there = torch.tensor([[3, 1, 4]]), torch.tensor([[5, 9, 2]])
    shift = torch.tensor([[7, 20, 1]])

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (rotate(q, rotary_phases(a, 12)) * rotate(k, rotary_phases(b, 12))).sum()

    assert torch.allclose(score(here, there), score(here + shift, there + shift), atol=1e-5)
    assert not torch.allclose(score(here, there), score(here, there + shift), atol=1e-2)


def test_parameter_names_are_the_published_ones() -> None:
    args = {**SIZES, "share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True, "num_blocks": 30}
    names = SLatFlowModel(SLatFlowParams.from_args(args)).state_dict()
    assert len(names) == 640
    assert names["blocks.7.modulation"].shape == (6 * 32,)
    assert names["blocks.7.self_attn.q_rms_norm.gamma"].shape == (2, 16)
    assert names["blocks.7.cross_attn.to_kv.weight"].shape == (64, 12)


def test_only_linear_maps_of_the_layers_take_the_torso_dtype() -> None:
    params = SparseStructureFlowParams.from_args({**SIZES, "dtype": "bfloat16", "share_mod": True})
    model = SparseStructureFlowModel(params)
    for name, parameter in model.named_parameters():
        in_torso = name.startswith("blocks.") and any(part in name for part in (".to_", ".mlp."))
        assert parameter.dtype == (torch.bfloat16 if in_torso else torch.float32), name
    assert model(torch.randn(1, 4, 3, 3, 3), torch.tensor([500.0]), torch.randn(1, 2, 12)).dtype == torch.float32
    widened = SparseStructureFlowModel(params, dtype=torch.float32)
    assert {p.dtype for p in widened.parameters()} == {torch.float32}


@pytest.mark.parametrize("share", [True, False])
def test_initialisation_predicts_nothing_and_still_learns(share: bool) -> None:
    torch.manual_seed(0)
    model = SLatFlowModel(SLatFlowParams.from_args({**SIZES, "share_mod": share, "qk_rms_norm": True}))
    initialize(model)
    feats, coords = sparse_batch([6, 4])
    v = model(feats, coords, torch.tensor([10.0, 990.0]), torch.randn(2, 3, 12))
    assert (v == 0).all()
    (v - 1).square().mean().backward()
    assert model.out_layer.weight.grad.abs().sum() > 0
    spread = model.blocks[0].self_attn.to_qkv.weight.std().item()
    assert spread == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.1)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
