"""Several LoRAs made one, strengths baked in, pressed to a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..errors import InputError
from .apply import Use, Weighted, collect
from .deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank, Replacement
from .detect import CERTAIN, origin_of
from .read import MAX_BYTES, MAX_RANK
from .stack import Lora, read_cached

Parts = Mapping[tuple[str | None, int | None], Mapping[str, Delta]]
"""(stage, resolution) -> changes by parameter."""


def parts_of(loras: Sequence[Lora], rank: int | None = None) -> Parts:
    """What a stack does together, by stage and resolution; None where the files leave these open.

    Raises:
        InputError: all strengths are 0, or see `scaled`.
    """
    uses: dict[tuple[str | None, int | None], list[Use]] = {}
    for lora in loras:
        file = read_cached(lora.path)
        for adapter in file.adapters if lora.strength else ():
            origin = origin_of(file, adapter)
            if lora.stage and origin.certainty == CERTAIN and origin.stage != lora.stage:
                continue
            part = lora.stage or origin.stage, lora.resolution or origin.resolution
            uses.setdefault(part, []).append(Use(adapter, lora.strength))
    if not uses:
        raise InputError("Nothing is left to write: all strengths are 0, or no file is for the stage that was chosen.")
    return {part: scaled(stack, rank) for part, stack in uses.items()}


def scaled(uses: Sequence[Use], rank: int | None = None) -> dict[str, Delta]:
    """One adapter that does what a stack does together.

    Args:
        rank: press every sum of products to this rank (truncated SVD, the best there is); None keeps it exact.

    Raises:
        InputError: a form cannot be scaled or summed without the weights it is for (DoRA, replaced parameters), or the
            exact rank is too large.
    """
    changes = collect(uses)
    whole = sum(4 * prod(w[0][0].shape) for w in changes.values() if len(w) > 1 and not _stays_small(w))
    if rank is None and whole > MAX_BYTES:
        raise InputError(f"Together these take {whole / 1e9:,.1f} GB, more than a LoRA may: give a rank to press them to.")
    return {name: _sum(name, weighted, rank) for name, weighted in changes.items()}


def _stays_small(weighted: Weighted) -> bool:
    """Whether a sum stays in factors."""
    return all(isinstance(delta, (LowRank, Hadamard)) for delta, _ in weighted)


def _sum(name: str, weighted: Weighted, rank: int | None) -> Delta:
    for delta, strength in weighted:
        if isinstance(delta, (Replacement, Decomposed)):
            if len(weighted) == 1 and strength == 1:
                return delta
            raise InputError(f"{name}: a DoRA or a replaced parameter has no strength of its own; only 1 can be written.")
    shape = weighted[0][0].shape
    if other := next((delta.shape for delta, _ in weighted if delta.shape != shape), None):
        raise InputError(f"{name}: one LoRA changes {list(shape)} numbers, another {list(other)}: they are for other networks.")
    if _stays_small(weighted):
        inner = sum(_inner_rank(delta) for delta, _ in weighted)
        if rank is None and inner > MAX_RANK:
            raise InputError(f"{name}: together these have rank {inner}, above {MAX_RANK}: give a rank to press them to.")
        if rank is None or inner < min(shape):
            return _pressed(name, _joined(weighted), rank)
    delta, strength = weighted[0]
    if len(weighted) == 1 and rank is None and isinstance(delta, Kronecker):
        return Kronecker(strength * delta.scale * delta.first.float(), delta.second, 1.0)
    total = strength * delta.matrix(torch.empty(0))
    for delta, strength in weighted[1:]:
        total += strength * delta.matrix(torch.empty(0))
    return Difference(total) if rank is None or total.ndim != 2 else _pressed_matrix(name, total, rank)


def _inner_rank(delta: Delta) -> int:
    """Inner width of a product, or of the product that stands for an entry-by-entry one."""
    rank = delta.rank or 0
    return rank**2 if isinstance(delta, Hadamard) else rank


def _joined(weighted: Weighted) -> LowRank:
    low = ((d.as_low_rank() if isinstance(d, Hadamard) else d, s) for d, s in weighted)
    plain = [(d, s) for d, s in low if isinstance(d, LowRank)]
    down = torch.cat([d.down.float() for d, _ in plain])
    up = torch.cat([s * d.scale * d.up.float() for d, s in plain], dim=1)
    return LowRank(down, up, 1.0)


def _pressed(name: str, low: LowRank, rank: int | None) -> LowRank:
    """The same at `rank` at most; by the factors alone, the product is never made."""
    if rank is None or low.rank <= rank:
        return low
    outer, left = torch.linalg.qr(low.up.double())
    inner, right = torch.linalg.qr(low.down.double().T)
    u, s, v = _svd(name, left @ right.T)
    root = s[:rank].sqrt()
    return LowRank((root[:, None] * v[:rank] @ inner.T).float(), (outer @ u[:, :rank] * root).float(), 1.0)


def _pressed_matrix(name: str, matrix: Tensor, rank: int) -> LowRank:
    u, s, v = _svd(name, matrix)
    root = s[:rank].sqrt()
    return LowRank(root[:, None] * v[:rank], u[:, :rank] * root, 1.0)


def _svd(name: str, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of a matrix, in its dtype; by the slower and surer of two methods where the quick one finds no end."""
    if not matrix.isfinite().all():
        raise InputError(f"{name}: the numbers of these LoRAs are too large to be added up.")
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        pass
    try:
        parts = scipy.linalg.svd(matrix.double().numpy(), full_matrices=False, lapack_driver="gesvd")
    except np.linalg.LinAlgError:
        raise InputError(f"{name}: the numbers of these LoRAs differ too much in size to be pressed to a rank.") from None
    u, s, v = (torch.from_numpy(part).to(matrix.dtype) for part in parts)
    return u, s, v
