from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, EmptyResultError, InputError
from trellis_core.sparse.resample import merge_plan
from trellis_core.vae import sparse_unet, structure
from trellis_core.vae.sparse_unet import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeDecoderParams,
    FlexiDualGridVaeEncoder,
    FlexiDualGridVaeEncoderParams,
    SparseUnetVaeDecoder,
    SparseUnetVaeDecoderParams,
    dual_grid_features,
    dual_grid_heads,
)

ENCODER = FlexiDualGridVaeEncoderParams((8, 16, 16), 4, (0, 1, 1))
DECODER = FlexiDualGridVaeDecoderParams((16, 16, 8), 4, (1, 1, 0))
TEXTURE = SparseUnetVaeDecoderParams((16, 16, 8), 4, (1, 0, 0), pred_subdiv=False)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every parameter random, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
    return net.eval()


def voxels(seed: int = 0, samples: int = 2, grid: int = 8) -> Tensor:
    """Shuffled active voxels int32 [N, 4], rows of a sample contiguous."""
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(samples, grid, grid, grid, generator=generator) < 0.15).nonzero().int()
    coords = coords[torch.randperm(len(coords), generator=generator)]
    return coords[coords[:, 0].argsort(stable=True)]


def latent(seed: int = 0) -> tuple[Tensor, Tensor]:
    coords = voxels(seed, grid=4)
    return torch.randn(len(coords), 4, generator=torch.Generator().manual_seed(seed)), coords


def test_decoding_an_encoders_plans_returns_its_voxels_row_for_row():
    coords = voxels()
    encoded = randomised(FlexiDualGridVaeEncoder(ENCODER))(torch.randn(len(coords), 6), coords)
    assert torch.equal(encoded.coords, merge_plan(merge_plan(coords)[1])[1])
    decoded = randomised(FlexiDualGridVaeDecoder(DECODER))(encoded.mean, encoded.coords, plans=encoded.plans)
    assert torch.equal(decoded.coords, coords) and decoded.raw.shape == (len(coords), 7)
    parents = [len(encoded.coords), len(encoded.plans[0].coords)]
    assert [s.shape for s in decoded.subdivisions] == [(n, 8) for n in parents]


def test_every_parameter_learns_from_reconstruction_and_subdivision():
    coords = voxels()
    encoder, decoder = randomised(FlexiDualGridVaeEncoder(ENCODER)), randomised(FlexiDualGridVaeDecoder(DECODER))
    encoded = encoder(torch.randn(len(coords), 6), coords)
    decoded = decoder(encoded.mean + encoded.logvar, encoded.coords, encoded.plans)
    (decoded.raw.square().mean() + sum(s.square().mean() for s in decoded.subdivisions)).backward()
    for net in (encoder, decoder):
        assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    decoder = randomised(FlexiDualGridVaeDecoder(DECODER))
    z, coords = latent()
    both, second = decoder(z, coords), coords[:, 0] == 1
    alone = decoder(z[second], coords[second])
    rows = both.coords[:, 0] == 1
    assert torch.equal(both.coords[rows], alone.coords)
    torch.testing.assert_close(both.raw[rows], alone.raw, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texture_follows_the_shapes_subdivision():
    z, coords = latent()
    shape = randomised(FlexiDualGridVaeDecoder(DECODER))(z, coords)
    raw, voxels = randomised(SparseUnetVaeDecoder(TEXTURE))(z, coords, guides=shape.subdivisions)
    assert torch.equal(voxels, shape.coords) and raw.shape == (len(voxels), 6)


@torch.no_grad()
def test_upsample_finds_the_voxels_of_every_level():
    decoder = randomised(FlexiDualGridVaeDecoder(DECODER))
    z, coords = latent()
    decoded = decoder(z, coords)
    assert len(decoder.upsample(z, coords, 1)) == len(decoded.subdivisions[1])
    assert torch.equal(decoder.upsample(z, coords, 2), decoded.coords)
    with pytest.raises(InputError, match="1 to 2"):
        decoder.upsample(z, coords, 3)


def test_wrong_subdivision_sources_are_refused():
    z, coords = latent()
    with pytest.raises(InputError, match="guides"):
        SparseUnetVaeDecoder(TEXTURE)(z, coords)
    with pytest.raises(InputError, match="no guides"):
        FlexiDualGridVaeDecoder(DECODER).decode(z, coords, guides=[torch.ones(len(z), 8)])


def test_nothing_to_decode_is_told():
    decoder = FlexiDualGridVaeDecoder(DECODER)
    z, coords = latent()
    with pytest.raises(EmptyResultError, match="structure"):
        decoder(z[:0], coords[:0])
    with pytest.raises(EmptyResultError, match="mesh"):
        FlexiDualGridVaeEncoder(ENCODER)(torch.zeros(0, 6), coords[:0])
    nn.init.constant_(decoder.blocks[0][-1].to_subdiv.bias, -1e3)
    for decode in (decoder, lambda *a: decoder.upsample(*a, 1)):
        with pytest.raises(EmptyResultError, match="no active voxel"):
            decode(z, coords)


def test_progress_rises_to_one_and_cancel_stops():
    z, coords = latent()
    decoder, seen = randomised(FlexiDualGridVaeDecoder(DECODER)), []
    decoder(z, coords, ctx=RunContext(on_progress=lambda fraction, _: seen.append(fraction)))
    assert seen == sorted(seen) and seen[-1] == 1 and len(seen) == 4
    polls = iter([False, True])
    with pytest.raises(Cancelled):
        decoder(z, coords, ctx=RunContext(is_cancelled=lambda: next(polls)))


@torch.no_grad()
def test_half_precision_torso():
    params = dataclasses.replace(DECODER, use_fp16=True)
    half, full = FlexiDualGridVaeDecoder(params), FlexiDualGridVaeDecoder(params, dtype=torch.float32)
    dtypes = {key: p.dtype for key, p in half.named_parameters()}
    for key, dtype in dtypes.items():
        inside = key.startswith("blocks") and "norm" not in key
        assert dtype == (torch.float16 if inside else torch.float32), key
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    randomised(half), randomised(full)
    coords = voxels()
    plan, parents = merge_plan(coords)
    plans = [merge_plan(parents)[0], plan]
    top = merge_plan(parents)[1]
    z = torch.randn(len(top), 4)
    low, high = half(z, top, plans).raw, full(z, top, plans).raw
    assert low.dtype == torch.float32 and 0 < (low - high).abs().max() < 5e-2


@pytest.mark.parametrize(("up", "down"), [("SparseResBlockUpsample3d", "SparseResBlockDownsample3d")])
@torch.no_grad()
def test_nearest_variants_run_through(up, down):
    coords = voxels()
    encoder = FlexiDualGridVaeEncoder(dataclasses.replace(ENCODER, down_block_type=(down,) * 2))
    decoder = FlexiDualGridVaeDecoder(dataclasses.replace(DECODER, up_block_type=(up,) * 2))
    encoded = randomised(encoder)(torch.randn(len(coords), 6), coords)
    assert torch.equal(randomised(decoder)(encoded.mean, encoded.coords, encoded.plans).coords, coords)


def test_params_read_published_args():
    args = {"resolution": 256, "model_channels": [16, 8], "latent_channels": 4, "num_blocks": [1, 0], "block_args": [{}] * 2}
    params = FlexiDualGridVaeDecoderParams.from_args({**args, "up_block_type": ["SparseResBlockC2S3d"], "use_fp16": True})
    assert params.model_channels == (16, 8) and params.out_channels == 7 and params.pred_subdiv and params.voxel_margin == 0.5
    assert sparse_unet.SparseUnetVaeDecoderParams.from_args({**args, "pred_subdiv": False}).pred_subdiv is False
    args = {"channels": [16, 8], "latent_channels": 4, "num_res_blocks": 1, "num_res_blocks_middle": 1, "out_channels": 2}
    assert structure.SparseStructureDecoderParams.from_args(args).out_channels == 2


def test_dual_grid_input_and_heads():
    features = dual_grid_features(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[True, False, True]]))
    assert features.tolist() == [[-0.5, 0, 0.5, 0.5, -0.5, 0.5]]
    raw = torch.tensor([[-100.0, 0, 100, -1, 0, 1, 30], [0, 0, 0, 0, 0, 0, 0]])
    vertices, flags, weight = dual_grid_heads(raw, 0.25)
    torch.testing.assert_close(vertices[0], torch.tensor([-0.25, 0.5, 1.25]))
    assert flags.tolist() == [[False, False, True], [False] * 3]
    torch.testing.assert_close(weight.flatten(), torch.tensor([30.0, 2.0]).where(raw[:, 6] > 0, torch.tensor(2.0).log()))


def test_pixel_shuffle_puts_channels_on_their_voxel():
    x = torch.arange(2 * 8).view(1, 16, 1, 1, 1)
    fine = structure.pixel_shuffle_3d(x)
    assert fine.shape == (1, 2, 2, 2, 2)
    assert fine[0, 1, 1, 0, 1] == 8 + 4 + 1 and fine[0, 0, 0, 1, 0] == 2


def test_active_voxels_reduce_by_any():
    logits = -torch.ones(2, 1, 4, 4, 4)
    logits[0, 0, 3, 0, 1] = logits[1, 0, 0, 0, 0] = logits[1, 0, 1, 1, 1] = 1
    logits[0, 0, 0, 0, 0] = 0  # strictly above zero only
    assert structure.active_voxels(logits, 4).tolist() == [[0, 3, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert structure.active_voxels(logits, 2).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(InputError, match="divide"):
        structure.active_voxels(logits, 3)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_structure_autoencoder_learns_and_scales(norm):
    encoder = randomised(structure.SparseStructureEncoder(structure.SparseStructureEncoderParams(4, 1, (32, 32), 1, norm)))
    decoder = randomised(structure.SparseStructureDecoder(structure.SparseStructureDecoderParams(4, 1, (32, 32), 1, norm)))
    mean, logvar = encoder((torch.rand(2, 1, 4, 4, 4) > 0.5).float())
    assert mean.shape == logvar.shape == (2, 4, 2, 2, 2)
    logits = decoder(mean + logvar)
    assert logits.shape == (2, 1, 4, 4, 4)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for net in (encoder, decoder) for p in net.parameters())
