"""The memory plan: budgets are kept, refusals advise, and a full device is survived. What it counts: test_footprint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.tiny_family import make_family
from tests.vae.test_vae import randomised, voxels
from trellis_core import stages
from trellis_core.context import QUIET, RunContext
from trellis_core.errors import InputError, OutOfBudgetError
from trellis_core.family import Family, load_family
from trellis_core.flow.prepared import prepare_slat
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.flow.transformer import FlowTransformer
from trellis_core.image.dino import DinoV3Encoder
from trellis_core.memory.meter import PeakMeter
from trellis_core.memory.plan import plan_run, recovering, with_budget
from trellis_core.settings import GenerationSettings
from trellis_core.vae.sparse_unet import SparseUnetVaeDecoder
from trellis_core.values import Condition, Shape, Structure, Texture
from trellis_core.weights import official as published
from trellis_core.weights.network_file import IMAGE_ENCODER, NetworkFile

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


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(make_family(tmp_path_factory.mktemp("weights")))


def test_a_tight_budget_makes_the_run_frugal_and_a_tighter_one_is_refused(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trellis_core.memory.plan.activation_bytes", lambda params, rows, dtype, frugal, kernels, **more: GB // (1 + frugal)
    )
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


@pytest.mark.parametrize(
    "text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "HIP out of memory"]
)
def test_libraries_that_run_out_in_their_own_words_are_understood(text: str) -> None:
    seen = []

    def work(ctx: RunContext) -> str:
        seen.append(ctx.frugal)
        if not ctx.frugal:
            raise RuntimeError(text)
        return "done"

    assert recovering(QUIET, work) == "done" and seen == [False, True]
    with pytest.raises(RuntimeError, match="shapes"):
        recovering(QUIET, lambda ctx: (_ for _ in ()).throw(RuntimeError("shapes do not match")))


@pytest.mark.parametrize("stage", ["structure", "shape"])
def test_memory_that_another_program_takes_mid_run_is_done_without(
    stage: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third evaluation finds the device full; the stage begins anew, frugal, with the same noise and the same result."""
    settings = GenerationSettings(resolution=512, seed=3, ss_sampling_steps=3, shape_slat_sampling_steps=3)
    seen = Condition({512: torch.randn(1, 5, 16)}, ())

    def run(structure: Structure | None) -> torch.Tensor:
        if stage == "structure":
            return stages.sample_structure(family, seen, settings).coords
        return stages.sample_shape(family, seen, structure, settings).feats

    coords = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(3)] * 3), (1, 0)).int()
    given = Structure(coords, 4, 1, torch.Generator().manual_seed(1).get_state())
    expected, original, calls = run(given), FlowTransformer.velocity, []

    def velocity(model, x, layout, mod, context, ctx=QUIET):
        calls.append(ctx.frugal)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, x, layout, mod, context, ctx)

    monkeypatch.setattr(FlowTransformer, "velocity", velocity)
    assert torch.allclose(run(given).float(), expected.float(), atol=1e-5)
    assert calls[:3] == [False] * 3 and len(calls) > 5 and all(calls[3:])


@pytest.mark.parametrize("network", ["SparseUnetVaeDecoder", "FlexiDualGridVaeDecoder", "DinoV3Encoder"])
def test_other_networks_do_without_it_too(network: str, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network finds the device full once; what comes of it is the same. When it stays full, that is said."""
    settings, fails, calls = GenerationSettings(resolution=512), [1], []
    coords = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(4)] * 3), (1, 0)).int()
    generator = torch.Generator().manual_seed(0)
    shape = Shape(coords, torch.randn(64, 4, generator=generator), 16, 1, generator.get_state())
    texture = Texture(torch.randn(64, 4, generator=generator))

    def run() -> list[torch.Tensor]:
        if network == "DinoV3Encoder":
            return [stages.condition(family, Image.new("RGB", (32, 32), "red"), settings, cropped=True).tokens[512]]
        ((mesh, paint),) = stages.decode(family, shape, texture)
        return [mesh.vertices, mesh.faces, paint.attrs]

    def full_at(where: type, method: str, ours: Callable[[object], bool]) -> None:
        original = getattr(where, method)

        def work(self, *args, **more):
            if ours(self):
                calls.append(more.get("ctx"))
                if len(calls) <= fails[0]:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, *args, **more)

        monkeypatch.setattr(where, method, work)

    expected = run()
    if network == "DinoV3Encoder":
        full_at(DinoV3Encoder, "forward", lambda _: True)
    else:
        full_at(SparseUnetVaeDecoder, "_leave", lambda decoder: type(decoder).__name__ == network)
    for found, wanted in zip(run(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert len(calls) == (2 if network == "DinoV3Encoder" else 5), "once in vain, then in one go or in slabs"
    calls.clear(), fails.append(fails.pop() + 1)
    with pytest.raises(OutOfBudgetError, match="lower"):
        run()
    assert len(calls) == 2


def test_without_a_budget_a_gpu_s_free_memory_is_it(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no host looks after the memory; CPUs have no such limit."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 8 * GB))
    gpu = RunContext(torch.device("cuda", 0))
    assert with_budget(gpu, family).memory_budget == 5 * GB
    assert with_budget(replace(gpu, memory_budget=GB), family).memory_budget == GB
    assert with_budget(gpu, replace(family, hold=lambda *_: None)).memory_budget is None
    assert with_budget(QUIET, family).memory_budget is None


@pytest.mark.parametrize("free", [8 * GB, GB])
def test_a_run_is_planned_by_what_is_free_but_its_mesh_is_not(
    free: int, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis_core.preflight.with_budget", lambda ctx, family: replace(ctx, memory_budget=free))
    taken = {False: 3 * GB, True: GB // 2}
    monkeypatch.setattr(
        "trellis_core.memory.plan.activation_bytes", lambda params, rows, dtype, frugal, *_, **more: taken[frugal]
    )
    seen = []
    monkeypatch.setattr(stages, "condition", lambda *_, ctx, **more: seen.append(ctx))
    monkeypatch.setattr(stages, "sample_structure", lambda *_, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stages.generate(family, Image.new("RGB", (32, 32)), GenerationSettings(resolution=512), cropped=True)
    assert seen[0].memory_budget is None and seen[0].frugal == (free == GB)


@pytest.mark.parametrize(
    ("option", "said"), [({"attention": "flash3"}, "flash_attn_interface"), ({"convolution": "spconv"}, "spconv")]
)
def test_a_package_that_is_not_there_is_told_before_anything_is_read(
    option: dict[str, str], said: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("flash_attn_interface", "spconv", "spconv.pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    untouched = replace(family, hold=lambda *_: pytest.fail("a network was read"))
    with pytest.raises(InputError, match=f"needs the package {said}"):
        picture, settings = Image.new("RGB", (32, 32), "red"), GenerationSettings(resolution=512)
        stages.generate(untouched, picture, settings, cropped=True, ctx=RunContext(**option))


def test_weights_that_do_not_fit_are_said_so(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trellis_core.weights.network_file.NetworkFile.load", load)
    with pytest.raises(OutOfBudgetError, match="SLatFlowModel do not fit"), family.network("shape_slat_flow_model_512"):
        pass


@pytest.fixture(scope="module")
def official() -> Family:
    """The published family's sizes, without its weights."""
    flow = {**vars(OFFICIAL_FLOW), "dtype": "bfloat16"}
    sparse = {
        "model_channels": [1024, 512, 256, 128, 64],
        "latent_channels": 32,
        "num_blocks": [4, 16, 8, 4, 0],
        "use_fp16": True,
    }
    dense = {
        "out_channels": 1,
        "latent_channels": 8,
        "num_res_blocks": 2,
        "num_res_blocks_middle": 2,
        "channels": [512, 128, 32],
    }
    parts = {
        "image_cond_model": (IMAGE_ENCODER, {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "patch_size": 16,
        }),
        "sparse_structure_flow_model": (
            "SparseStructureFlowModel", {**flow, "resolution": 16, "in_channels": 8, "out_channels": 8},
        ),
        "sparse_structure_decoder": ("SparseStructureDecoder", {**dense, "use_fp16": True}),
        "shape_slat_decoder": ("FlexiDualGridVaeDecoder", {**sparse, "out_channels": 7}),
        "tex_slat_decoder": ("SparseUnetVaeDecoder", {**sparse, "out_channels": 6, "pred_subdiv": False}),
        **{f"shape_slat_flow_model_{key}": ("SLatFlowModel", flow) for key in (512, 1024)},
        **{f"tex_slat_flow_model_{key}": ("SLatFlowModel", {**flow, "in_channels": 64}) for key in (512, 1024)},
    }  # fmt: skip
    networks = {role: NetworkFile(name, args, Path("none")) for role, (name, args) in parts.items()}
    scales = {int(key): scale for key, scale in published.SCALES.items()}
    return replace(load_family("mini"), name="official", networks=networks, scales=scales, upscale=16, structure_side=64)


@pytest.mark.parametrize(("resolution", "gib"), [(512, 4), (1024, 6), (1536, 8)])
@pytest.mark.parametrize("kernels", [False, True])
def test_the_published_networks_are_planned_within_common_cards(
    resolution: int, gib: int, kernels: bool, official: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        pytest.importorskip("triton")
    monkeypatch.setattr("trellis_core.memory.plan.works_on", lambda device: kernels)
    gpu = RunContext(torch.device("meta"))
    assert plan_run(official, GenerationSettings(resolution=resolution), gpu).peak <= gib * 2**30


@pytest.mark.parametrize("budget", [4, 6, 8, 16, 80])
def test_every_budget_gets_a_plan_below_it(budget: int, official: Family) -> None:
    gpu = RunContext(torch.device("meta"), memory_budget=budget * GB)
    for resolution in (512, 1024, 1536):
        try:
            plan = plan_run(official, GenerationSettings(resolution=resolution), gpu)
            assert plan.peak <= budget * GB
        except OutOfBudgetError as refusal:
            assert budget == 4 and "512 would fit" in str(refusal)


def test_a_budget_of_a_gigabyte_is_refused_with_advice(official: Family) -> None:
    gpu = RunContext(torch.device("meta"), memory_budget=GB)
    with pytest.raises(OutOfBudgetError, match=r"takes 3\.\d+ GB when saving memory, the budget is 1.00 GB.*smaller weights"):
        plan_run(official, GenerationSettings(resolution=512), gpu)


def test_a_gpu_without_bfloat16_computes_in_float32(official: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), torch.float32), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        gpu = RunContext(torch.device("cuda", 0))
        assert official.networks["shape_slat_flow_model_512"].build(gpu).dtype == expected
        assert official.networks["shape_slat_decoder"].build(gpu).dtype == torch.float16


@torch.no_grad()
def test_a_frugal_preparation_keeps_nothing_and_says_the_same() -> None:
    params = replace(
        OFFICIAL_FLOW, model_channels=32, cond_channels=12, num_blocks=2, num_heads=2, in_channels=4, out_channels=4
    )
    model, coords = randomised(SLatFlowModel(params, dtype=torch.float32)), voxels(samples=1)
    x, cond, t = torch.randn(len(coords), 4), torch.randn(1, 5, 12), torch.tensor([1000.0])
    fast, frugal = (prepare_slat(model, coords, cond, [1.0], ctx=RunContext(frugal=f)) for f in (False, True))
    assert fast.both is not None and frugal.both is None
    assert torch.allclose(fast(x, t, fast.cond), frugal(x, t, frugal.cond), atol=1e-5)
