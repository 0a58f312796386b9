"""Ways to damage bytes, JSON texts and tensors; each a function of the random numbers it is given alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

MARK = "@@mark@@"

RAW = (
    "-1", "0", "1", "2", "3", "7", "64", "255", "65536", "2147483647", "2147483648", "4294967296", "9223372036854775807",
    "18446744073709551616", "-2147483649", "1e308", "-1e308", "1e999", "1e-320", "0.5", "-0.0", "NaN", "Infinity", "-Infinity",
    "9" * 5000, "0." + "1" * 5000, "true", "false", "null", '""', '"3"', '"x"', '"\\ud800"', '"a\\u0000b"', '"../../../x"',
    '"' + "a" * 100_000 + '"', '"' + "[" * 500 + '"', "[]", "{}", "[[]]", "[1, 2, 3]", '["a"]', "[null]", '{"a": 1}',
    "[" * 70 + "]" * 70,
    "[" * 5000 + "]" * 5000, '{"a": ' * 2000 + "1" + "}" * 2000, "[" * 100_000, "[0" + ", 0" * 20_000 + "]",
)  # fmt: skip
"""What a value of a JSON text may become."""

NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, 1e-38, 1e-45, 1e4, 6e4, 1e20, 1e30, 3e38, -3e38)
"""What entries of a tensor may become."""


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """A few bytes changed, cut, doubled or moved."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at, length = random.randrange(len(data)), random.choice((1, 1, 2, 4, 8, 64, 1000))
        action = random.randrange(8)
        if action == 0:
            data[at] ^= 1 << random.randrange(8)
        elif action == 1:
            data[at : at + length] = random.randbytes(length)
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = data[at : at + length] * random.choice((1, 2, 50))
        elif action == 4:
            del data[at:]
        elif action == 5:
            data[at : at + length] = bytes([random.choice((0, 255))]) * length
        else:
            code = random.choice(("<I", "<Q", "<H", ">I", ">H", "<f"))
            values = (0.0, 1e30, float("nan"), -1.0) if code == "<f" else (0, 1, 2**15, 2**16 - 1)
            number = struct.pack(code, random.choice(values))
            data[at : at + len(number)] = number
    return bytes(data)


def damaged_json(value: Any, random: Random) -> bytes:
    """A JSON value as text, with some of its parts replaced, left out, renamed or doubled."""
    tree, raw = json.loads(json.dumps(value)), []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = _damaged_node(tree, random, raw)
    text = json.dumps(tree)
    for index, piece in enumerate(raw):
        text = text.replace(f'"{MARK}{index}"', piece, 1)
    if random.random() < 0.1:
        return damaged_bytes(text.encode(), random)
    return text.encode("utf-8", "surrogatepass")


def _damaged_node(tree: Any, random: Random, raw: list[str]) -> Any:
    places = list(_places(tree))
    if not places or random.random() < 0.02:
        raw.append(random.choice(RAW))
        return f"{MARK}{len(raw) - 1}"
    holder, key = random.choice(places)
    action = random.randrange(8)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[random.choice(("x", "", "args", "name", key + "_", "a" * 600, "blocks.99999.x", "\0"))] = holder.pop(key)
    elif action == 2:
        other, place = random.choice(places)
        holder[key] = json.loads(json.dumps(other[place])) if other is not holder else random.choice((0, 1, "x"))
    elif action == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = random.choice((-1, 2, 0.5, 1000, 10**9)) * holder[key]
    else:
        raw.append(random.choice(RAW))
        holder[key] = f"{MARK}{len(raw) - 1}"
    return tree


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def damaged_safetensors(tensors: dict[str, Tensor], notes: dict[str, str], random: Random) -> bytes:
    """A safetensors file of tensors of which some were damaged; or a whole one whose header or bytes were."""
    data = save(tensors, notes)
    action = random.random()
    if action < 0.15:
        return damaged_bytes(data, random)
    if action < 0.5:
        end = 8 + int.from_bytes(data[:8], "little")
        header = damaged_json(json.loads(data[8:end]), random)
        return struct.pack("<Q", len(header)) + header + data[end:]
    if notes and action < 0.7:
        key = random.choice(list(notes))
        try:
            text = damaged_json(json.loads(notes[key]), random).decode("utf-8", "replace")
        except ValueError:
            text = random.choice(RAW).strip('"')
        return save(tensors, notes | {key: text})
    changed = dict(tensors)
    for _ in range(random.choice((1, 1, 2, 8))):
        key = random.choice(list(changed))
        made = damaged_tensor(changed[key], random)
        if made is None or random.random() < 0.1:
            del changed[key]
        else:
            new = random.choice((key, key, key, key, _renamed(key, random)))
            changed[new] = made.clone()
        if not changed:
            break
    return save(changed, notes)


def _renamed(key: str, random: Random) -> str:
    parts = key.split(".")
    action = random.randrange(4)
    if action == 0:
        return key.replace("0", "9" * random.choice((1, 3, 30)))
    if action == 1:
        return ".".join(random.sample(parts, len(parts)))
    return key + random.choice(("x", ".weight", ".alpha", ".diff", ".dora_scale", ".lokr_w1", ".set_weight", ".hada_w1_a"))


def damaged_tensor(tensor: Tensor, random: Random) -> Tensor | None:
    """Other numbers, another dtype or another shape."""
    flat = tensor.flatten().clone()
    action = random.randrange(7)
    if action == 0 and len(flat) and flat.is_floating_point():
        flat[random.randrange(len(flat))] = random.choice(NUMBERS)
    elif action == 1 and flat.is_floating_point():
        return torch.full(tensor.shape, random.choice(NUMBERS)).to(tensor.dtype)
    elif action == 2:
        return tensor.to(random.choice((torch.float64, torch.int8, torch.uint8, torch.bool, torch.int64, torch.bfloat16)))
    elif action == 3:
        shape = [random.choice((0, 1, 2, 3, 24, 600)) for _ in range(random.randrange(5))]
        return torch.zeros(shape, dtype=tensor.dtype) if torch.Size(shape).numel() < 10**6 else None
    elif action == 4 and tensor.dim() == 2:
        return tensor.T.contiguous()
    elif action == 5 and tensor.dim() and len(tensor):
        return tensor[:-1].contiguous()
    elif action == 6:
        return tensor * random.choice((1e-30, 1e5, 1e30))
    return flat.reshape(tensor.shape)


Damage = Callable[[bytes, Random], bytes]
