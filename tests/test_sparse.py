from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.sparse import conv
from trellis_core.sparse.conv import NeighborMap, SubmanifoldConv3d, submanifold_conv3d, submanifold_conv3d_reference
from trellis_core.sparse.resample import (
    channel_to_space,
    downsample_mean,
    merge_plan,
    quantize_coords,
    space_to_channel,
    split_plan,
    upsample_nearest,
)
from trellis_core.sparse.tensor import SparseTensor, pack_keys, sample_lengths, unique_coords, unpack_keys


def random_coords(seed: int, grid: int = 6, samples: int = 2, share: float = 0.4, shuffle: bool = True) -> torch.Tensor:
    """Distinct coords int32 [N, 4]; rows of a sample contiguous, otherwise shuffled."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for sample in range(samples):
        xyz = (torch.rand(grid, grid, grid, generator=generator) < share).nonzero()
        if shuffle:
            xyz = xyz[torch.randperm(len(xyz), generator=generator)]
        parts.append(F.pad(xyz, (1, 0), value=sample))
    return torch.cat(parts).int()


@pytest.mark.parametrize("shuffle", [False, True])
def test_conv_gradients(monkeypatch, shuffle):
    monkeypatch.setattr(conv, "ROW_BLOCK", 16)
    nmap = NeighborMap.build(random_coords(0, grid=3, shuffle=shuffle))
    args = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((nmap.rows, 2), (3, 3, 3, 3, 2), (3,))]
    assert torch.autograd.gradcheck(lambda *a: submanifold_conv3d(*a, nmap), args)


def test_patch_path_agrees_with_pair_path(monkeypatch):
    """The path of other devices, run here on the CPU, forward and backward."""
    nmap = NeighborMap.build(random_coords(1))
    grads = []
    for path in (conv._sum_pairs, conv._multiply_patches):
        monkeypatch.setattr(conv, "_sum_pairs", path)
        torch.manual_seed(0)
        args = [torch.randn(*s, requires_grad=True) for s in ((nmap.rows, 5), (4, 3, 3, 3, 5), (4,))]
        out = submanifold_conv3d(*args, nmap)
        grads.append([out, *torch.autograd.grad((out * torch.arange(4)).sum(), args)])
    for pair, patch in zip(*grads, strict=True):
        torch.testing.assert_close(pair, patch, atol=2e-4, rtol=1e-5)
