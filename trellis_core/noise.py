"""Noise: one stream of random numbers for each object, so that an object of a batch can be made again alone.

Object `index` of a batch draws from the stream of `item_seed(seed, index)`, and nobody else draws from it. A stream is
PyTorch's generator on the CPU, whose state travels with the stage values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from .errors import InputError
from .settings import SEED_LIMIT

_WORD = 2**32


def item_seed(seed: int, index: int) -> int:
    """The seed that makes object `index` of a batch alone: the first has the batch's own, the next ones count on."""
    return (seed + index) % SEED_LIMIT


def generator(seed: int) -> Generator:
    """A stream of `seed`, 0 to 2^64 - 1.

    PyTorch's generator takes 32 bits and ignores the rest. The upper half is therefore stirred into the lower one: seeds below
    2^32 stay what they are, and two seeds that differ in their upper half alone never share a stream.
    """
    return Generator().manual_seed((seed % _WORD) ^ _stirred(seed // _WORD))


def _stirred(word: int) -> int:
    """A 32-bit number mapped one to one onto another; 0 stays 0 (the last steps of MurmurHash3, public domain)."""
    word = (word ^ word >> 16) * 0x85EBCA6B % _WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 % _WORD
    return word ^ word >> 16


def streams(seed: int, samples: int) -> list[Generator]:
    """One stream for each object of a batch."""
    return [generator(item_seed(seed, index)) for index in range(samples)]


def state_of(generators: Sequence[Generator]) -> Tensor:
    """Where streams stand: uint8 [B, S]."""
    return torch.stack([stream.get_state() for stream in generators])


def streams_at(state: Tensor, samples: int) -> list[Generator]:
    """Streams that go on from a state.

    Args:
        state: uint8 [B, S] of `state_of`, or [S] as version 0.1 saved it, where all objects go on from the same one.

    Raises:
        InputError: there are states for another number of objects, or they are damaged.
    """
    rows = state.expand(samples, -1) if state.ndim == 1 else state
    if len(rows) != samples:
        raise InputError(f"There are {samples} objects and noise for {len(rows)}: sample the stage before this one again.")
    made = [Generator() for _ in range(samples)]
    try:
        for stream, row in zip(made, rows, strict=True):
            stream.set_state(row.clone())
    except RuntimeError as error:
        raise InputError(f"The state of the noise is damaged: sample the stage before this one again ({error}).") from error
    return made
