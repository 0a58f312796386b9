"""The table of contents of a weights file, judged before a tensor is read: safetensors (docs/method/networks.md) and GGUF."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
from pydantic import Field

from ..errors import WeightsError
from ..outside import MAX_BYTES, checked, parse_object
from . import gguf

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Stored numbers that are weights as they are, as safetensors spells them."""

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Every dtype of the safetensors format."""

Offset = Annotated[int, Field(ge=0, lt=1 << 62)]


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its dtype as safetensors spells it, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class _Entry:
    """One tensor in a safetensors header."""

    dtype: Annotated[str, Field(max_length=32)]
    shape: Annotated[tuple[Offset, ...], Field(max_length=8)]
    data_offsets: tuple[Offset, Offset]


_Table = dict[Annotated[str, Field(min_length=1, max_length=512)], _Entry]
_Notes = dict[str, str]


def read_header(file: Path) -> dict[str, Stored]:
    """Name -> tensor of a safetensors or GGUF file, in the order in which they lie there.

    Raises:
        WeightsError: missing, a pickle, damaged, cut short, or its table of contents contradicts itself or the file's size.
    """
    try:
        stat = file.stat()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be opened: {getattr(error, 'strerror', error)}.") from None
    return _read_header(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_header(file: Path, size: int, _changed: int) -> dict[str, Stored]:
    refuse_pickle(file)
    if file.suffix == ".gguf":
        return {key: Stored(entry.kind.name, entry.shape, entry.size) for key, entry in gguf.read_table(file).items()}
    try:
        with file.open("rb") as stream:
            return _safetensors_table(stream, file, size)
    except OSError as error:
        raise WeightsError(f"{file} cannot be opened: {error.strerror}.") from None


def _safetensors_table(stream: BinaryIO, file: Path, size: int) -> dict[str, Stored]:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise WeightsError(f"{file} is cut short or not a safetensors file: {size} bytes hold no whole header.")
    where = f"{file} is not a safetensors file, or its header is damaged: it"
    table = parse_object(stream.read(min(length, MAX_BYTES + 1)), where, raising=WeightsError)
    checked(_Notes, table.pop("__metadata__", {}), f"{where} has notes that are no texts", raising=WeightsError)
    entries = checked(_Table, table, where, raising=WeightsError)
    tensors, reached = {}, 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        tensors[key] = Stored(entry.dtype, entry.shape, end - start)
        if 8 + length + end > size:
            raise WeightsError(
                f'{file} is cut short: tensor "{key}" ends at byte {8 + length + end}, the file has {size}. Download or copy '
                "it again."
            )
        if start != reached:
            raise WeightsError(f'{file} is damaged: tensor "{key}" begins at byte {start}, the one before ends at {reached}.')
        if prod(entry.shape) * BITS.get(entry.dtype, 0) != 8 * (end - start):
            raise WeightsError(
                f'{file}: tensor "{key}" of shape {list(entry.shape)} cannot take {end - start} bytes as {entry.dtype}.'
            )
        reached = end
    if 8 + length + reached != size:
        raise WeightsError(f"{file} is damaged: {size} bytes, of which its header explains {8 + length + reached}.")
    return tensors


def refuse_pickle(path: Path) -> None:
    """Raise for files that are Python pickles, by name or by content: opening one can run code."""
    pickled = path.suffix.lower() in PICKLES
    if not pickled and os.path.isfile(path):
        try:
            with path.open("rb") as file:
                begin = file.read(9)
            # A safetensors file begins with the length of its table, which may look like a pickle; then comes the table.
            pickled = begin.startswith(PICKLE_STARTS) and begin[8:] != b"{"
        except OSError as error:
            raise WeightsError(f"{path} cannot be opened: {error.strerror}.") from None
    if pickled:
        raise WeightsError(
            f"{path} is a Python pickle, which can run code when opened. Convert it to safetensors, or get the "
            "safetensors version of these weights."
        )
