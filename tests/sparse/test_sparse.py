from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
from trellis_core.sparse.tensor import pack_keys, unique_coords, unpack_keys


def random_coords(seed: int, grid: int = 6, samples: int = 2, share: float = 0.4, shuffle: bool = True) -> Tensor:
    """Distinct coords int32 [N, 4]; rows of a sample contiguous, otherwise shuffled."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for sample in range(samples):
        xyz = (torch.rand(grid, grid, grid, generator=generator) < share).nonzero()
        if shuffle:
            xyz = xyz[torch.randperm(len(xyz), generator=generator)]
        parts.append(F.pad(xyz, (1, 0), value=sample))
    return torch.cat(parts).int()


def random_layer(seed: int, rows: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Features [rows, inputs], weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, inputs), (outputs, 3, 3, 3, inputs), (outputs,)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def dense_conv(feats: Tensor, weight: Tensor, bias: Tensor, coords: Tensor) -> Tensor:
    """The same convolution over a dense grid with zero padding, read at the active voxels."""
    b, x, y, z = coords.long().unbind(1)
    size = [int(c.max()) + 1 for c in (b, x, y, z)]
    grid = torch.zeros(*size, feats.shape[1], dtype=feats.dtype)
    grid[b, x, y, z] = feats
    out = F.conv3d(grid.permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), bias, padding=1)
    return out.permute(0, 2, 3, 4, 1)[b, x, y, z]


coordinate_rows = st.lists(st.tuples(*[st.integers(0, 65533)] * 3, st.integers(0, 9)), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(coordinate_rows)
def test_keys_sort_like_rows_and_come_back(rows):
    coords = torch.tensor([(b, x, y, z) for x, y, z, b in rows], dtype=torch.int32)
    keys = pack_keys(coords)
    assert torch.equal(unpack_keys(keys), coords)
    assert unpack_keys(keys.sort().values).tolist() == sorted(coords.tolist())
    assert unique_coords(coords).tolist() == sorted(map(list, set(map(tuple, coords.tolist()))))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    grid=st.integers(1, 7),
    samples=st.integers(1, 3),
    share=st.sampled_from([0.1, 0.4, 1.0]),
    shuffle=st.booleans(),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
)
def test_conv_equals_dense_convolution_at_active_voxels(seed, grid, samples, share, shuffle, inputs, outputs):
    coords = random_coords(seed, grid, samples, share, shuffle)
    if not len(coords):
        return
    layer = random_layer(seed, len(coords), inputs, outputs)
    actual = submanifold_conv3d(*layer, NeighborMap.build(coords))
    torch.testing.assert_close(actual, dense_conv(*layer, coords), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_conv_equals_its_reference_across_blocks(monkeypatch, shuffle):
    monkeypatch.setattr(conv, "ROW_BLOCK", 16)
    monkeypatch.setattr(conv, "COLUMN_BLOCK", 3)
    nmap = NeighborMap.build(random_coords(2, shuffle=shuffle))
    layer = random_layer(2, nmap.rows, 6, 7)
    torch.testing.assert_close(
        submanifold_conv3d(*layer, nmap), submanifold_conv3d_reference(*layer, nmap), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_conv_gradients(monkeypatch, shuffle):
    monkeypatch.setattr(conv, "ROW_BLOCK", 16)
    monkeypatch.setattr(conv, "COLUMN_BLOCK", 2)
    nmap = NeighborMap.build(random_coords(0, grid=3, shuffle=shuffle))
    layer = [t.requires_grad_() for t in random_layer(0, nmap.rows, 2, 3, torch.float64)]
    assert nmap.rows > 16
    assert torch.autograd.gradcheck(lambda *a: submanifold_conv3d(*a, nmap), layer, fast_mode=True)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_conv_gradients_with_one_input_frozen(frozen):
    nmap = NeighborMap.build(random_coords(3, grid=3))
    layer = random_layer(3, nmap.rows, 2, 3)
    wanted = [t.requires_grad_() for n, t in enumerate(layer) if n != frozen]
    actual = torch.autograd.grad(submanifold_conv3d(*layer, nmap).square().sum(), wanted)
    expected = torch.autograd.grad(submanifold_conv3d_reference(*layer, nmap).square().sum(), wanted)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-3, rtol=1e-4)


def test_patch_path_agrees_with_pair_path(monkeypatch):
    """The path of other devices, run here on the CPU, forward and backward."""
    nmap, results = NeighborMap.build(random_coords(1)), []
    monkeypatch.setattr(conv, "PATCH_BYTES", 1)
    for by_pairs in (True, False):
        monkeypatch.setattr(conv, "_by_pairs", lambda x, answer=by_pairs: answer)
        layer = [t.requires_grad_() for t in random_layer(1, nmap.rows, 5, 4)]
        out = submanifold_conv3d(*layer, nmap)
        results.append([out, *torch.autograd.grad((out * torch.arange(4)).sum(), layer)])
    for pair, patch in zip(*results, strict=True):
        torch.testing.assert_close(pair, patch, atol=2e-4, rtol=1e-5)


def test_conv_rounds_half_precision_once():
    nmap = NeighborMap.build(random_coords(4))
    layer = [t.half() for t in random_layer(4, nmap.rows, 9, 8)]
    out = submanifold_conv3d(*layer, nmap)
    assert out.dtype == torch.float16
    assert torch.equal(out, submanifold_conv3d(*(t.float() for t in layer), nmap).half())


def test_conv_of_nothing():
    nmap = NeighborMap.build(torch.zeros(0, 4, dtype=torch.int32))
    layer = SubmanifoldConv3d(3, 5)
    out = layer(torch.zeros(0, 3, requires_grad=True), nmap)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert not layer.weight.grad.any() and nmap.patches.shape == (0, 27)


def test_neighbours_at_the_end_of_the_grid_stay_apart():
    """The last cell of a row, slab or sample is not a neighbour of the first cell of the next one."""
    last = 65533
    corners = [[0, 0, 0, last], [0, 0, 1, 0], [0, 5, last, last], [0, 6, 0, 0], [0, last, last, last], [1, 0, 0, 0]]
    table = NeighborMap.build(torch.tensor(corners, dtype=torch.int32)).table
    assert (table >= 0).sum() == len(corners)


def test_merge_orders_parents_and_numbers_children():
    coords = torch.tensor([[1, 0, 0, 0], [0, 3, 2, 5], [0, 2, 2, 4], [0, 0, 1, 0]], dtype=torch.int32)
    plan, parents = merge_plan(coords)
    assert parents.tolist() == [[0, 0, 0, 0], [0, 1, 1, 2], [1, 0, 0, 0]]
    assert plan.parent_row.tolist() == [2, 1, 1, 0]
    assert plan.child.tolist() == [0, 5, 0, 2]  # x + 2 y + 4 z of the odd axes
    assert plan.occupancy(3).nonzero().tolist() == [[0, 2], [1, 0], [1, 5], [2, 0]]


def test_split_keeps_parent_order_children_ascending():
    parents = torch.tensor([[0, 4, 0, 1], [0, 1, 2, 3]], dtype=torch.int32)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, [6, 1]] = mask[1, 4] = True
    plan = split_plan(parents, mask)
    assert plan.coords.tolist() == [[0, 9, 0, 2], [0, 8, 1, 3], [0, 2, 4, 7]]
    assert plan.coords.dtype == torch.int32 and torch.equal(plan.occupancy(2), mask)


def test_space_and_channel_are_inverse_and_zero_filled():
    coords = random_coords(5)
    plan, parents = merge_plan(coords)
    feats = torch.randn(len(coords), 3)
    coarse = space_to_channel(feats, plan, len(parents))
    assert torch.equal(channel_to_space(coarse, plan), feats)
    groups = coarse.view(len(parents), 8, 3)
    assert not groups[~plan.occupancy(len(parents))].any()
    assert torch.equal(groups[plan.parent_row[7], plan.child[7]], feats[7])


def test_nearest_and_mean_are_inverse_on_constants():
    plan, parents = merge_plan(random_coords(6))
    coarse = torch.randn(len(parents), 4)
    fine = upsample_nearest(coarse, plan)
    torch.testing.assert_close(downsample_mean(fine, plan, len(parents)), coarse)
    ramp = torch.arange(float(len(fine)))[:, None]
    mean = downsample_mean(ramp, plan, len(parents))
    torch.testing.assert_close(mean[3], ramp[plan.parent_row == 3].mean(0))


def test_plan_reuses_a_known_map():
    coords = random_coords(7)
    nmap = NeighborMap.build(coords)
    assert merge_plan(coords, nmap)[0].neighbors is nmap
    assert torch.equal(merge_plan(coords)[0].neighbors.table, nmap.table)


def test_quantize_merges_voxels_of_one_cell():
    coords = torch.tensor([[1, 0, 0, 0], [0, 63, 32, 31], [0, 63, 33, 31], [1, 1, 1, 1]], dtype=torch.int32)
    assert quantize_coords(coords, 64, 4).tolist() == [[0, 3, 2, 1], [1, 0, 0, 0]]
