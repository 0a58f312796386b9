"""Reading GGUF files: the header, and the tensors of the quantisations that flow networks are published in.

A tensor's rows are cut into blocks of 32 or, for the K types, 256 numbers; a block is a few bytes of scales and then codes.
The format is that of the ggml project (GGUF versions 2 and 3, little-endian); dimensions are listed fastest first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_ENTRIES, MAX_HEADER, MAX_TEXT, MAX_LIST = 1 << 16, 64 << 20, 1 << 20, 64
"""Bounds of a table of contents: tensors or facts, bytes of all, bytes of a text, entries of a list that is kept."""


@dataclass(frozen=True)
class Kind:
    """A type of stored numbers: how many a block holds, its bytes, and how blocks uint8 [N, bytes] become
    float32 [N, numbers]."""

    name: str
    numbers: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its kind, shape as PyTorch counts, and where its bytes begin."""

    kind: Kind
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return prod(self.shape) // self.kind.numbers * self.kind.bytes


def read_table(file: Path) -> dict[str, Entry]:
    """Name -> tensor of a GGUF file; see `read_file`."""
    return read_file(file)[1]


def read_file(file: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """What a GGUF file says of itself, by key, and its tensors by name; of long lists only how long they are.

    Raises:
        WeightsError: it is damaged, of another version, or holds a kind of quantisation that is not read here.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream, file.stat().st_size)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise WeightsError(f"{file} is not a GGUF file that can be read, or is damaged: {error}.") from error
    except OSError as error:
        raise WeightsError(f"{file} cannot be opened: {error.strerror}.") from error


def read_tensor(file: Path, entry: Entry) -> Tensor:
    """Float32, in the tensor's shape; NaN or infinite where the file's scales are."""
    raw = np.fromfile(file, np.uint8, entry.size, offset=entry.start)
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(entry.kind.decode(raw.reshape(-1, entry.kind.bytes)).reshape(entry.shape))


def _read(stream: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Entry]]:
    magic, version, tensors, facts = struct.unpack("<4sIQQ", stream.read(24))
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"it starts with {magic!r}, version {version}")
    if max(tensors, facts) > MAX_ENTRIES:
        raise ValueError(f"it tells of {tensors} tensors and {facts} facts, more than {MAX_ENTRIES}")
    known: dict[str, Any] = {}
    for _ in range(facts):
        name = _string(stream)
        known[name] = _value(stream, _number(stream, "I"))
    found = []
    for _ in range(tensors):
        name, rank = _string(stream), _number(stream, "I")
        if rank > 8:
            raise ValueError(f'tensor "{name}" has {rank} axes')
        stored = tuple(_number(stream, "Q") for _ in range(rank))[::-1]
        code, offset = _number(stream, "I"), _number(stream, "Q")
        if code not in KINDS:
            raise ValueError(f'tensor "{name}" is of type {code}; only {", ".join(k.name for k in KINDS.values())} can be read')
        shape = _real_shape(known, name, stored)
        if prod(shape) % KINDS[code].numbers:
            raise ValueError(f'tensor "{name}" of shape {list(shape)} does not fill its blocks')
        found.append((name, KINDS[code], shape, offset))
    step = known.get("general.alignment", 32)
    if not isinstance(step, int) or not 1 <= step <= 1 << 16:
        raise ValueError(f"its alignment is {step!r}")
    base = -(-stream.tell() // step) * step
    table = {name: Entry(kind, shape, base + offset) for name, kind, shape, offset in found}
    if len(table) != len(found):
        raise ValueError("it holds two tensors of one name")
    for name, entry in table.items():
        if entry.start + entry.size > size:
            raise ValueError(f'it is cut short: tensor "{name}" ends at byte {entry.start + entry.size}, the file has {size}')
    return known, table


def _real_shape(known: Mapping[str, Any], name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Shapes that the format cannot hold, of too many axes, are told beside it."""
    shape = known.get(f"comfy.gguf.orig_shape.{name}", stored)
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n >= 0 for n in shape) or prod(shape) != prod(stored):
        raise ValueError(f'tensor "{name}" of {prod(stored)} numbers cannot have the shape {shape!r:.100}')
    return tuple(shape)


def _number(stream: BinaryIO, code: str) -> Any:
    if stream.tell() > MAX_HEADER:
        raise ValueError(f"its table of contents is longer than {MAX_HEADER >> 20} MB")
    return struct.unpack("<" + code, stream.read(struct.calcsize("<" + code)))[0]


def _string(stream: BinaryIO) -> str:
    length = _number(stream, "Q")
    if length > MAX_TEXT:
        raise ValueError(f"it holds a text of {length} bytes, more than {MAX_TEXT}")
    text = stream.read(length)
    if len(text) != length:
        raise ValueError("it is cut short inside a text")
    return text.decode()


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _number(stream, _scalar(kind))
    inner, count = _number(stream, "I"), _number(stream, "Q")
    if inner == _ARRAY:
        raise ValueError("it holds lists of lists")
    if inner != _STRING and count > MAX_LIST:
        stream.seek(count * struct.calcsize("<" + _scalar(inner)), 1)
        return f"{count} numbers"
    values = (_value(stream, inner) for _ in range(count))
    return list(values) if count <= MAX_LIST else f"{sum(1 for _ in values)} texts"


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return _SCALARS[kind]


def _half(bytes_: np.ndarray) -> np.ndarray:
    """[N, 2 K] bytes -> float32 [N, K]."""
    return np.ascontiguousarray(bytes_).view(np.float16).astype(np.float32)


def _nibbles(codes: np.ndarray, run: int) -> np.ndarray:
    """[N, B] bytes -> [N, 2 B] codes of 4 bits: of every `run` bytes first all low halves, then all high ones."""
    parts = codes.reshape(len(codes), -1, 1, run)
    return np.concatenate((parts & 15, parts >> 4), axis=2).reshape(len(codes), -1)


def _bits(words: np.ndarray) -> np.ndarray:
    """[N, 4] bytes -> [N, 32] bits, lowest first, as 0 or 16: the fifth bit of a code."""
    return np.unpackbits(np.ascontiguousarray(words), axis=1, bitorder="little") << 4


def _q4_0(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * _nibbles(b[:, 4:], 16) + _half(b[:, 2:4])


def _q5_0(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * ((_nibbles(b[:, 6:], 16) | _bits(b[:, 2:6])).astype(np.float32) - 16)


def _q5_1(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * (_nibbles(b[:, 8:], 16) | _bits(b[:, 4:8])) + _half(b[:, 2:4])


def _q8_0(b: np.ndarray) -> np.ndarray:
    return _half(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8)


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, 12] bytes -> eight scales and eight minima of 6 bits."""
    d, m, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((d & 63, (rest & 15) | (d >> 2 & 48)), axis=1)
    return scales, np.concatenate((m & 63, (rest >> 4) | (m >> 2 & 48)), axis=1)


def _with_k_scales(b: np.ndarray, codes: np.ndarray) -> np.ndarray:
    scales, minima = _k_scales(b[:, 4:16])
    scale, low = _half(b[:, :2]) * scales, _half(b[:, 2:4]) * minima
    return (scale[..., None] * codes.reshape(len(b), 8, 32) - low[..., None]).reshape(len(b), 256)


def _q4_k(b: np.ndarray) -> np.ndarray:
    return _with_k_scales(b, _nibbles(b[:, 16:], 32))


def _q5_k(b: np.ndarray) -> np.ndarray:
    high = np.stack([b[:, 16:48] >> bit & 1 for bit in range(8)], axis=1) << 4
    return _with_k_scales(b, _nibbles(b[:, 48:], 32) | high.reshape(len(b), 256))


def _q6_k(b: np.ndarray) -> np.ndarray:
    low = _nibbles(b[:, :128], 64).reshape(len(b), 2, 4, 32)
    high = np.stack([b[:, 128:192].reshape(len(b), 2, 32) >> 2 * pair & 3 for pair in range(4)], axis=2) << 4
    codes = (low | high).astype(np.float32) - 32
    scales = _half(b[:, 208:]) * np.ascontiguousarray(b[:, 192:208]).view(np.int8)
    return (scales[..., None] * codes.reshape(len(b), 16, 16)).reshape(len(b), 256)


KINDS = {
    0: Kind("F32", 1, 4, lambda b: b.view(np.float32)),
    1: Kind("F16", 1, 2, lambda b: b.view(np.float16).astype(np.float32)),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    12: Kind("Q4_K", 256, 144, _q4_k),
    13: Kind("Q5_K", 256, 176, _q5_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, lambda b: (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)),
}
"""The format's number of a kind -> the kind."""
