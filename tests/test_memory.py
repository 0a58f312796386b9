"""The memory plan: what it counts is what tensors take, budgets are kept, refusals advise, and a full device is survived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_vae import randomised, voxels
from tests.tiny_family import make_family
from trellis_core.errors import OutOfBudgetError
from trellis_core.family import Family, load_family
from trellis_core.flow.attention import Batch
from trellis_core.flow.context import Kept
from trellis_core.flow.prepared import prepare_slat
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.footprint import FusedAttention, activation_bytes, sparse_decoder_bytes
from trellis_core.kernels import planning
from trellis_core.memory import plan_run, recovering
from trellis_core.peak import PeakMeter
from trellis_core.run import QUIET, RunContext
from trellis_core.settings import GenerationSettings
from trellis_core.vae.sparse_unet import FlexiDualGridVaeDecoder, FlexiDualGridVaeDecoderParams

OFFICIAL_FLOW = SLatFlowParams.from_args({
    "resolution": 64, "in_channels": 32, "out_channels": 32, "model_channels": 1536, "cond_channels": 1024, "num_blocks": 30,
    "num_heads": 12, "mlp_ratio": 5.3334, "pe_mode": "rope", "share_mod": True, "qk_rms_norm": True, "qk_rms_norm_cross": True,
})  # fmt: skip
GB = 10**9


def test_a_meter_counts_storages_once_and_until_they_die() -> None:
    before = torch.zeros(500)
    with PeakMeter() as meter:
        a = before + 1
        b = a.view(5, 100)
        del a
        c = b * 2
        del b
        d = c[:10] + 1
    assert meter.peak == 4000 and meter.live == c.nbytes + d.nbytes


@pytest.mark.parametrize("kernels", [False, True])
@torch.no_grad()
def test_the_plan_of_a_full_size_flow_is_what_its_tensors_take(kernels: bool) -> None:
    """Run on the meta device: 1.3 G parameters that take no memory."""
    if kernels:
        pytest.importorskip("triton")
    rows, context = 9600, 4101
    model = SLatFlowModel(OFFICIAL_FLOW, device="meta", dtype=torch.bfloat16)
    with PeakMeter() as meter, FusedAttention(), planning(kernels):
        layout = model.layout(torch.zeros(1, rows, 3, dtype=torch.int32, device="meta"), Batch((rows,)))
        kept = Kept.of(model, model.tokens(torch.zeros(1, context, 1024, device="meta")))
        mod = model.modulation(torch.zeros(1, device="meta"))
        model.velocity(torch.zeros(1, rows, 32, device="meta"), layout, mod, kept)
    planned = activation_bytes(OFFICIAL_FLOW, rows, torch.bfloat16, kernels=kernels)
    assert meter.peak <= planned * 1.07 and planned <= 1.15 * meter.peak


@pytest.mark.parametrize("kernels", [False, True])
@torch.no_grad()
def test_the_plan_of_a_sparse_decoder_is_what_its_tensors_take(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of GPUs, run on the CPU, with chunks as small beside the object as they are in earnest."""
    monkeypatch.setattr("trellis_core.sparse.conv._by_pairs", lambda x: False)
    if kernels:  # a stand-in that makes what the kernel reads
        pytest.importorskip("triton")
        monkeypatch.setattr("trellis_core.sparse.conv.usable", lambda x: True)
        monkeypatch.setattr(
            "trellis_core.kernels.conv.convolve", lambda out, x, taps, bias, tiles, *more: out.copy_(x.mean()).add_(bias)
        )
    for module in ("vae.blocks", "footprint"):
        monkeypatch.setattr(f"trellis_core.{module}.CHUNK_BYTES", {False: 1 << 20, True: 1 << 18})
    for module in ("sparse.conv", "footprint"):
        monkeypatch.setattr(f"trellis_core.{module}.PATCH_BYTES", 1 << 20)
    params = FlexiDualGridVaeDecoderParams((64, 32, 32), 4, (1, 1, 1))
    decoder, coords = randomised(FlexiDualGridVaeDecoder(params)), voxels(samples=2, grid=24)
    for frugal in (False, True):
        with PeakMeter() as meter:
            decoding = decoder(torch.randn(len(coords), 4), coords, ctx=RunContext(frugal=frugal))
        rows = [len(coords), len(decoding.subdivisions[1]), len(decoding.coords)]
        planned = sparse_decoder_bytes(params, rows, torch.float32, frugal, kernels)
        assert meter.peak <= planned <= 1.2 * meter.peak


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(make_family(tmp_path_factory.mktemp("weights")))


def test_a_tight_budget_makes_the_run_frugal_and_a_tighter_one_is_refused(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis_core.memory.activation_bytes", lambda params, rows, dtype, frugal, kernels: GB // (1 + frugal))
    settings = GenerationSettings(resolution=512)
    free = plan_run(family, settings, QUIET)
    frugal = plan_run(family, settings, replace(QUIET, frugal=True))
    assert not free.ctx.frugal and frugal.peak < free.peak
    assert plan_run(family, settings, RunContext(memory_budget=free.peak)).ctx.frugal is False
    tight = plan_run(family, settings, RunContext(memory_budget=free.peak - 1))
    assert tight.ctx.frugal and tight.peak == frugal.peak
    with pytest.raises(OutOfBudgetError, match="Raise the budget"):
        plan_run(family, settings, RunContext(memory_budget=frugal.peak - 1))
    assert f"Peak {free.peak / 1e9:.2f} GB" in free.text() and "shape_slat_decoder" in free.text()


def test_running_out_of_memory_is_survived_once() -> None:
    seen = []

    def work(ctx: RunContext, failures: int = 1) -> str:
        seen.append(ctx.frugal)
        if len(seen) <= failures:
            raise torch.OutOfMemoryError("full")
        return "done"

    assert recovering(QUIET, work) == "done" and seen == [False, True]
    seen.clear()
    with pytest.raises(OutOfBudgetError, match="lower"):
        recovering(QUIET, lambda ctx: work(ctx, 2))
    assert seen == [False, True]


@torch.no_grad()
def test_a_frugal_preparation_keeps_nothing_and_says_the_same() -> None:
    params = replace(OFFICIAL_FLOW, model_channels=32, cond_channels=12, num_blocks=2, num_heads=2, in_channels=4, out_channels=4)
    model, coords = randomised(SLatFlowModel(params, dtype=torch.float32)), voxels(samples=1)
    x, cond, t = torch.randn(len(coords), 4), torch.randn(1, 5, 12), torch.tensor([1000.0])
    fast, frugal = (prepare_slat(model, coords, cond, [1.0], ctx=RunContext(frugal=f)) for f in (False, True))
    assert fast.both is not None and frugal.both is None
    assert torch.allclose(fast(x, t, fast.cond), frugal(x, t, frugal.cond), atol=1e-5)
