"""Triton kernels against their torch twins: compiled where a GPU is, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton")

from tests.sparse.test_sparse import random_coords, random_layer  # noqa: E402
from tests.vae.test_vae import DECODER, TEXTURE, randomised, voxels  # noqa: E402
from trellis_core import kernels  # noqa: E402
from trellis_core.context import RunContext  # noqa: E402
from trellis_core.flow import elementwise  # noqa: E402
from trellis_core.flow.attention import Batch  # noqa: E402
from trellis_core.flow.prepared import prepare_slat  # noqa: E402
from trellis_core.flow.rope import rotary_phases  # noqa: E402
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams  # noqa: E402
from trellis_core.kernels import tuning  # noqa: E402
from trellis_core.kernels.conv import convolve  # noqa: E402
from trellis_core.kernels.probe import probe  # noqa: E402
from trellis_core.kernels.tiles import Tiles, Tiling  # noqa: E402
from trellis_core.sparse import conv  # noqa: E402
from trellis_core.sparse.conv import NeighborMap, submanifold_conv3d_reference  # noqa: E402
from trellis_core.vae.sparse_unet import FlexiDualGridVaeDecoder, SparseUnetVaeDecoder  # noqa: E402

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference beside the largest number."""


@pytest.fixture(autouse=True)
def _same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed random numbers, and bfloat16 rounded to nearest as GPUs do it: the interpreter cuts it off."""
    torch.manual_seed(0)
    if ON_GPU:
        return
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (interpreter.tl.float32, interpreter.tl.bfloat16):
            return cut(data, source, target, rounding)
        return torch.from_numpy(data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def test_the_smallest_kernel_runs() -> None:
    assert probe(DEVICE)


@pytest.mark.parametrize("height", [16, 64])
@pytest.mark.parametrize("rows", [slice(0, 173), slice(64, 173), slice(10, 11)])
def test_tiles_hold_every_row_once_and_every_tap_that_it_needs(rows: slice, height: int) -> None:
    table = NeighborMap.build(random_coords(0)[:173]).table
    tiles = Tiles.of(table, rows, height)
    order = tiles.order.view(-1, height)
    assert sorted(order[order >= 0].tolist()) == list(range(rows.start, rows.stop))
    assert (tiles.order[: rows.stop - rows.start] >= 0).all(), "only the end is filled up"
    shares = tiles.starts.diff().tolist()
    for members, taps, sources in zip(order, tiles.taps.split(shares), tiles.sources.split(shares), strict=True):
        alive = members >= 0
        neighbours = table[:, members[alive].long()]
        needed = (neighbours >= 0).any(1)
        assert taps.tolist() == needed.nonzero().flatten().tolist()
        assert torch.equal(sources[:, alive], neighbours[needed]) and (sources[:, ~alive] == -1).all()


def test_tiles_of_a_surface_skip_taps() -> None:
    """A sphere's shell: a quarter fewer than tiles of the voxels in the order that they come in."""
    axis = torch.arange(64) - 31.5
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    coords = torch.nn.functional.pad(((distance - 28).abs() < 0.8).nonzero(), (1, 0)).int()
    table = NeighborMap.build(coords).table
    tiles = Tiles.of(table, slice(0, len(coords)), 64)
    plain = torch.stack([(part >= 0).any(1).sum() for part in table.split(64, dim=1)])
    assert tiles.starts.diff().float().mean() < 0.8 * plain.float().mean()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 24), (20, 16)])
def test_convolution(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    coords = random_coords(1, grid=4)
    nmap = NeighborMap.build(coords.to(DEVICE))
    feats, weight, bias = (t.to(DEVICE) for t in random_layer(2, nmap.rows, inputs, outputs, dtype))
    expected = submanifold_conv3d_reference(feats, weight, bias, nmap)
    config = Tiling(32, 32, 16, 4, 2)
    for rows in (slice(0, nmap.rows), slice(32, nmap.rows)):
        out = torch.full((rows.stop - rows.start, outputs), torch.nan, dtype=dtype, device=DEVICE)
        convolve(out, feats, conv._taps(weight, dtype), bias, nmap.tiles(rows, 32), rows.start, config)
        assert (out.float() - expected[rows].float()).abs().max() <= ROUNDING[dtype] * expected.float().abs().max()


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_convolution_of_few_voxels_and_of_none(share: float) -> None:
    nmap = NeighborMap.build(random_coords(3, share=share).to(DEVICE))
    feats, weight, bias = (t.to(DEVICE) for t in random_layer(4, nmap.rows, 16, 16))
    out = torch.empty(nmap.rows, 16, device=DEVICE)
    rows = slice(0, nmap.rows)
    convolve(out, feats, conv._taps(weight, feats.dtype), bias, nmap.tiles(rows, 64), 0, Tiling(64, 16, 16, 4, 2))
    assert torch.allclose(out, submanifold_conv3d_reference(feats, weight, bias, nmap), atol=1e-4)


@pytest.fixture
def kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of GPUs, whatever the device; `kernels.kernels(False)` goes back to the twins."""
    monkeypatch.setattr(conv, "_by_pairs", lambda x: False)
    monkeypatch.setattr(kernels, "works_on", lambda device: True)
    monkeypatch.setattr(kernels, "GPUS", ("cuda", DEVICE.type))


@torch.no_grad()
def test_decoders_give_the_same_with_kernels_in_chunks(kernels_on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = voxels(samples=1, grid=3).to(DEVICE)
    z = torch.randn(len(coords), 4).to(DEVICE)
    shape, paint = randomised(FlexiDualGridVaeDecoder(DECODER)).to(DEVICE), randomised(SparseUnetVaeDecoder(TEXTURE)).to(DEVICE)
    with kernels.kernels(False):
        expected = shape(z, coords)
        painted, _ = paint(z, coords, expected.subdivisions)
    monkeypatch.setattr("trellis_core.vae.blocks.CHUNK_BYTES", {False: 1 << 22, True: 1 << 20})
    for frugal in (False, True):  # in slabs, too
        ctx = RunContext(frugal=frugal)
        found = shape(z, coords, ctx=ctx)
        repainted, _ = paint(z, coords, expected.subdivisions, ctx=ctx)
        assert torch.equal(found.coords, expected.coords)
        assert torch.allclose(found.raw, expected.raw, atol=1e-4) and torch.allclose(repainted, painted, atol=1e-4)


def both_ways(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What kernels give, and what their twins give."""
    with torch.no_grad():
        found = work()
        with kernels.kernels(False):
            return found, work()


def near(found: Tensor, expected: Tensor) -> bool:
    """Equal up to a rounding of the largest numbers; of one dtype, shape and, where the twin is, contiguous."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return bool((found.float() - expected.float()).abs().max() <= ROUNDING[found.dtype] * expected.float().abs().max())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("lengths", [(3, 3), (2, 4)], ids=["even", "ragged"])
def test_norms_modulation_and_gates(kernels_on: None, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    batch, channels = Batch(lengths), 40
    rows = [torch.randn(6, channels).to(DEVICE, dtype) for _ in range(2)]
    h, branch = (batch.fold(t) for t in rows)
    parts = torch.randn(2, 6 * channels).to(DEVICE, dtype).chunk(6, dim=1)
    shift, scale, gate = (batch.spread(m) for m in parts[:3])
    plain = torch.nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
    learnt = torch.nn.LayerNorm(channels, eps=1e-6).to(DEVICE)
    torch.nn.init.normal_(learnt.weight), torch.nn.init.normal_(learnt.bias)
    for work in (
        lambda: elementwise.normed(learnt, h),
        lambda: elementwise.normed(plain, h),
        lambda: elementwise.modulated(plain, h, scale, shift),
        lambda: elementwise.gated(h, branch, gate),
    ):
        assert near(*both_ways(work))
    for added in (branch, rows[0][0]):
        for found, expected in zip(
            *both_ways(partial(elementwise.added_and_modulated, plain, h, added, scale, shift)), strict=True
        ):
            assert near(found, expected)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("turned", "scaled"), [(True, True), (True, False), (False, True)])
def test_heads_are_scaled_and_turned(kernels_on: None, dtype: torch.dtype, turned: bool, scaled: bool) -> None:
    samples, length, count, width = 2, 5, 3, 20
    q = torch.randn(samples, length, 3, count, width).to(DEVICE, dtype).unbind(2)[1]  # as attention hands it over
    gain = torch.randn(count, width).to(DEVICE) if scaled else None
    for places in (torch.randint(9, (length, 3)), torch.randint(9, (samples, length, 3))):
        phases = rotary_phases(places.to(DEVICE), width) if turned else None
        assert near(*both_ways(lambda: elementwise.heads(q, gain, phases)))  # noqa: B023
    rows = q.flatten(0, 1)
    phases = rotary_phases(torch.randint(9, (samples * length, 3)).to(DEVICE), width) if turned else None
    assert near(*both_ways(lambda: elementwise.heads(rows, gain, phases)))


@pytest.mark.parametrize("lengths", [(3, 3), (2, 4)], ids=["even", "ragged"])
def test_a_flow_transformer_gives_the_same_with_kernels(kernels_on: None, lengths: tuple[int, ...]) -> None:
    params = SLatFlowParams(
        resolution=8, in_channels=4, out_channels=4, model_channels=24, cond_channels=12, num_blocks=2, num_heads=2,
        pe_mode="rope", share_mod=True, qk_rms_norm=True, qk_rms_norm_cross=True,
    )  # fmt: skip
    model = randomised(SLatFlowModel(params)).to(DEVICE)
    sample = torch.arange(2).repeat_interleave(torch.tensor(lengths))
    coords = torch.cat([sample[:, None], torch.randint(8, (6, 3))], dim=1).int().to(DEVICE)
    x, cond, t = torch.randn(6, 4).to(DEVICE), torch.randn(2, 5, 12).to(DEVICE), torch.tensor([500.0, 500.0])

    def work() -> tuple[Tensor, ...]:
        ready = prepare_slat(model, coords, cond, [0.5])
        return *ready.both(x, t), ready(x, t, ready.cond), ready(x, t, ready.neg)

    for found, expected in zip(*both_ways(work), strict=True):
        assert near(found, expected)


def test_gradients_go_through_the_twin(kernels_on: None) -> None:
    nmap = NeighborMap.build(random_coords(5, grid=3).to(DEVICE))
    layer = [t.to(DEVICE).requires_grad_() for t in random_layer(6, nmap.rows, 8, 8)]
    conv.submanifold_conv3d(*layer, nmap).square().sum().backward()
    found = [t.grad.clone() for t in layer]
    for t in layer:
        t.grad = None
    submanifold_conv3d_reference(*layer, nmap).square().sum().backward()
    for mine, t in zip(found, layer, strict=True):
        assert torch.allclose(mine, t.grad, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("limit", [228 << 10, 100 << 10, 64 << 10, 48 << 10])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 4096), (64, 64), (8, 6), (300, 7)])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_cut_fits_the_gpu(limit: int, inputs: int, outputs: int, itemsize: int) -> None:
    config = tuning._choose(itemsize, inputs, outputs, limit)
    assert config.shared_bytes(itemsize) <= limit and min(config.rows, config.columns, config.depth) >= 16


def test_tuning_takes_the_fastest_that_compiles() -> None:
    def measure(config: Tiling) -> float:
        if config.rows == 64:
            raise RuntimeError("will not compile")
        return config.columns + 1 / config.stages

    best, time = tuning.fastest(measure, 2, 228 << 10)
    assert (best.rows, best.columns, best.stages) == (128, 64, 7) and time == 64 + 1 / 7


def test_without_a_gpu_or_with_a_broken_triton_twins_compute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler")

    assert not kernels.works_on(torch.device("cpu")) and not kernels.usable(torch.zeros(1))
    monkeypatch.setattr("trellis_core.kernels.probe.probe", broken)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    kernels._works.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not kernels.works_on(torch.device("cuda", 0)) and not kernels.works_on(torch.device("cuda", 0))
    kernels._works.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "Triton does not work here, plain PyTorch is used instead: Failed to find C compiler"
    ]


def test_a_gpu_that_is_too_old_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr("trellis_core.kernels.probe.probe", lambda device: pytest.fail("tried"))
    kernels._works.cache_clear()
    assert not kernels.works_on(torch.device("cuda", 0))
    kernels._works.cache_clear()
