"""Attention libraries: called as they want to be called, with the numbers of PyTorch's; refused in words if not there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from trellis_core.errors import InputError
from trellis_core.flow.attention import Batch, attend, use_attention


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the packages, that note how they are called."""
    made: list[str] = []

    def flash(q, k, v):
        made.append("flash")
        return sdpa(q, k, v)

    def varlen(q, k, v, ends_q, ends_k, most_q, most_k):
        made.append("varlen")
        assert ends_q.dtype == ends_k.dtype == torch.int32
        lengths = [ends.diff().tolist() for ends in (ends_q, ends_k)]
        assert (most_q, most_k) == tuple(map(max, lengths))
        parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
        return torch.cat([sdpa(*(x[None] for x in part))[0] for part in parts])

    def sage(q, k, v, tensor_layout):
        made.append("sage")
        assert tensor_layout == "NHD"
        return sdpa(q, k, v)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash, flash_attn_varlen_func=varlen))
    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sage))
    return made


@pytest.mark.parametrize(("name", "even", "ragged"), [("flash", ["flash"], ["varlen"]), ("sage", ["sage"], ["sage"] * 3)])
@pytest.mark.parametrize("counts", [(4, 4, 4), (2, 5, 1)])
@pytest.mark.parametrize("contexts", [(3, 3, 3), (3, 1, 2)])
def test_a_library_gives_the_same_numbers(name, even, ragged, counts, contexts, calls) -> None:
    queries, context = Batch(counts), Batch(contexts)
    q, k, v = torch.randn(sum(counts), 2, 8), torch.randn(sum(contexts), 2, 8), torch.randn(sum(contexts), 2, 8)
    folded = queries.fold(q), context.fold(k), context.fold(v), queries, context
    expected = attend(*folded)
    with use_attention(name):
        found = attend(*folded)
    assert torch.allclose(found, expected, atol=1e-6) and found.shape == expected.shape
    assert calls == (even if queries.is_even and context.is_even else ragged)
    attend(*folded)
    assert len(calls) <= 3, "the choice must end with its block"


def test_a_host_may_bring_its_own_kernel() -> None:
    q = torch.randn(1, 3, 2, 8)
    with use_attention(lambda q, k, v: torch.zeros_like(q)):
        assert not attend(q, q, q, Batch((3,)), Batch((3,))).any()


def test_missing_broken_and_unknown_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sageattention", None)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())
    for name, said in (("sage", "needs the package sageattention"), ("flash", "flash_attn_func"), ("fast", "no attention")):
        with pytest.raises(InputError, match=said), use_attention(name):
            pass
