"""Convolution libraries: called as they want to be called, with the numbers of our own; refused in words if not there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.sparse.test_sparse import random_coords, random_layer
from trellis_core.errors import InputError
from trellis_core.sparse import conv, libraries
from trellis_core.sparse.conv import NeighborMap, SubmanifoldConv3d, submanifold_conv3d_reference
from trellis_core.sparse.libraries import use_convolution


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the packages on the CPU, that note how they are called."""
    made: list[str] = []

    def flex(feats, coords, shape, weight, bias, cache=None):
        assert shape == (2, feats.shape[1], *(coords[:, 1:].amax(0) + 1).tolist()) and coords.dtype == torch.int32
        made.append("again" if cache else "first")
        return submanifold_conv3d_reference(feats, weight, bias, NeighborMap.build(coords)), "cache"

    class Tensor:
        def __init__(self, features, indices, spatial_shape, batch_size, indice_dict):
            assert batch_size == 2 and len(spatial_shape) == 3
            self.features, self.indices, self.pairs = features, indices, indice_dict

    class Layer(torch.nn.Module):
        def __init__(self, inputs, outputs, kernel, indice_key):
            super().__init__()
            self.key = indice_key
            self.weight = torch.nn.Parameter(torch.zeros(outputs, kernel, kernel, kernel, inputs))
            self.bias = torch.nn.Parameter(torch.zeros(outputs))

        def forward(self, x):
            made.append("again" if self.key in x.pairs else "first")
            x.pairs[self.key] = "pairs"
            nmap = NeighborMap.build(x.indices)
            return SimpleNamespace(features=submanifold_conv3d_reference(x.features, self.weight, self.bias, nmap))

    monkeypatch.setitem(sys.modules, "flex_gemm.ops.spconv", SimpleNamespace(sparse_submanifold_conv3d=flex))
    monkeypatch.setitem(sys.modules, "spconv.pytorch", SimpleNamespace(SubMConv3d=Layer, SparseConvTensor=Tensor))
    monkeypatch.setattr(conv, "chosen", lambda x: libraries._chosen.get())
    return made


@pytest.mark.parametrize("name", ["flex_gemm", "spconv"])
@torch.no_grad()
def test_a_library_gives_the_same_numbers_and_finds_neighbours_once(name: str, calls: list[str]) -> None:
    nmap = NeighborMap.build(random_coords(0))
    feats, weight, bias = random_layer(1, nmap.rows, 4, 6)
    layer = SubmanifoldConv3d(4, 6)
    layer.weight.copy_(weight), layer.bias.copy_(bias)
    expected = layer(feats, nmap)
    with use_convolution(name):
        assert torch.allclose(layer(feats, nmap), expected, atol=1e-4)
        parts = list(layer.chunks(feats, nmap, 32))
    assert torch.allclose(torch.cat([part for _, part in parts]), expected, atol=1e-4)
    assert parts[-1][0].stop == nmap.rows and calls == ["first", "again"]
    layer(feats, nmap)
    assert len(calls) == 2, "the choice must end with its block"


def test_a_library_is_for_gpus_only() -> None:
    assert libraries.chosen(torch.zeros(1)) is None


def test_missing_broken_and_unknown_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    monkeypatch.setitem(sys.modules, "flex_gemm.ops.spconv", SimpleNamespace())
    for name, said in (("spconv", "needs the package spconv"), ("flex_gemm", "sparse_submanifold"), ("fast", "no convolution")):
        with pytest.raises(InputError, match=said), use_convolution(name):
            pass
