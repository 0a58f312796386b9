"""Decoding in chunks of rows gives what decoding in one piece gives, in less memory, and can be stopped between chunks."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.gpu_cases import surface
from tests.vae.test_vae import DECODER, TEXTURE, randomised, voxels
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled
from trellis_core.sparse import conv
from trellis_core.sparse.conv import NeighborMap, SubmanifoldConv3d
from trellis_core.sparse.resample import split_plan
from trellis_core.vae.blocks import SparseResBlockC2S3d
from trellis_core.vae.sparse_unet import FlexiDualGridVaeDecoder, SparseUnetVaeDecoder

FRUGAL = RunContext(frugal=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 rows, so that a few hundred voxels make many."""
    for module in ("sparse.conv", "vae.blocks"):
        monkeypatch.setattr(f"trellis_core.{module}.ROW_BLOCK", 16)
    monkeypatch.setattr("trellis_core.vae.blocks.CHUNK_BYTES", {False: 1, True: 1})
    monkeypatch.setattr("trellis_core.vae.sparse_unet.OUTPUT_ROWS", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_chunks_decode_the_same_shape_and_texture(small_chunks: None, dtype: torch.dtype) -> None:
    coords = voxels()
    z = torch.randn(len(coords), 4)
    shape_decoder = randomised(FlexiDualGridVaeDecoder(DECODER, dtype=dtype))
    paint_decoder = randomised(SparseUnetVaeDecoder(TEXTURE, dtype=dtype))
    whole = shape_decoder(z, coords)  # with gradient: in one piece
    painted, _ = paint_decoder(z, coords, whole.subdivisions)
    with torch.no_grad():
        chunked = shape_decoder(z, coords)
        repainted, _ = paint_decoder(z, coords, whole.subdivisions)
        upsampled = shape_decoder.upsample(z, coords, 2)
    assert len(coords) > 32 and torch.equal(chunked.coords, whole.coords) and torch.equal(upsampled, whole.coords)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for found, expected in [
        (chunked.raw, whole.raw),
        (repainted, painted),
        *zip(chunked.subdivisions, whole.subdivisions, strict=True),
    ]:
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("by_pairs", [True, False], ids=["pairs", "patches"])
@pytest.mark.parametrize("slab", [48, 1 << 16])
@torch.no_grad()
def test_a_frugal_decoder_finishes_in_slabs(slab: int, by_pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, and without anything of the finest level's size beside it."""
    monkeypatch.setattr(conv, "_by_pairs", lambda x: by_pairs)
    monkeypatch.setattr("trellis_core.vae.sparse_unet.SLAB_ROWS", slab)
    coords = voxels(samples=2)
    z = torch.randn(len(coords), 4)
    shape_decoder, paint_decoder = randomised(FlexiDualGridVaeDecoder(DECODER)), randomised(SparseUnetVaeDecoder(TEXTURE))
    whole = shape_decoder(z, coords)
    original, finest = SparseResBlockC2S3d.climb, []

    def climb(block, entered, x, coarse, plan, ctx):
        if block is decoder.blocks[-2][-1]:
            finest.append(len(plan.coords))
        return original(block, entered, x, coarse, plan, ctx)

    monkeypatch.setattr(SparseResBlockC2S3d, "climb", climb)
    for decoder, guides in ((shape_decoder, ()), (paint_decoder, (whole.subdivisions,))):
        finest.clear()
        expected = decoder.decode(z, coords, *guides)
        found = decoder.decode(z, coords, *guides, ctx=FRUGAL)
        assert torch.equal(found.coords, expected.coords) and torch.allclose(found.raw, expected.raw, rtol=1e-5, atol=1e-5)
        assert all(map(torch.equal, found.subdivisions, expected.subdivisions))
        assert finest[0] == len(expected.coords) and (len(finest) == 5) == (slab > 1000)


@torch.no_grad()
def test_slabs_of_a_surface_take_little_beside_it() -> None:
    """Of a latent in key order, runs of parents lie together."""
    coords = split_plan(surface(64), torch.ones(len(surface(64)), 8, dtype=torch.bool)).coords
    nmap = NeighborMap.build(coords)
    shares = [len(nmap.around(own)) / (own.stop - own.start) for own in nmap.chunks(len(coords) // 8)]
    assert 1 < sum(shares) / len(shares) < 1.2


@pytest.mark.parametrize("by_pairs", [True, False], ids=["pairs", "patches"])
@torch.no_grad()
def test_rows_of_a_convolution_are_those_of_the_whole(
    small_chunks: None, by_pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "_by_pairs", lambda x: by_pairs)
    coords = voxels()
    layer = SubmanifoldConv3d(4, 5)
    x, nmap = torch.randn(len(coords), 4), NeighborMap.build(coords)
    expected = conv.submanifold_conv3d_reference(x, layer.weight, layer.bias, nmap)
    pieces = list(layer.chunks(x, nmap, 32))
    assert [rows.start for rows, _ in pieces] == list(range(0, len(coords), 32))
    assert torch.allclose(torch.cat([part for _, part in pieces]), expected, atol=1e-5)
    assert torch.allclose(layer(x, nmap), expected, atol=1e-5)


@torch.no_grad()
def test_a_decoder_can_be_stopped_within_a_layer(small_chunks: None) -> None:
    coords = voxels()
    z = torch.randn(len(coords), 4)
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return polls == 3

    with pytest.raises(Cancelled):
        randomised(FlexiDualGridVaeDecoder(DECODER))(z, coords, ctx=RunContext(is_cancelled=stop))
