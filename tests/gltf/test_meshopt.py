"""The meshopt codecs: what they write is read back by a decoder that follows the extension's text, and by the npm package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from trellis_core.gltf.meshopt import encode_indices, encode_vertices

ROOT = Path(__file__).resolve().parents[2]


def decode_vertices(data: bytes, count: int, stride: int) -> np.ndarray:
    """A slow, literal decoder of mode ATTRIBUTES, version 0."""
    assert data[0] == 0xA0
    before, place = bytearray(data[-stride:]), 1
    block = min((8192 // stride) & ~15, 256)
    out = np.zeros((count, stride), np.uint8)
    for start in range(0, count, block):
        length = min(block, count - start)
        groups = (length + 15) // 16
        for channel in range(stride):
            header = data[place : place + (groups + 3) // 4]
            place += len(header)
            values: list[int] = []
            for group in range(groups):
                bits = (0, 2, 4, 8)[header[group // 4] >> (group % 4 * 2) & 3]
                packed = data[place : place + 2 * bits]
                place += 2 * bits
                for k in range(16):
                    shift = 8 - bits - (k * bits) % 8
                    value = packed[k * bits // 8] >> shift & ((1 << bits) - 1) if bits else 0
                    if bits in (2, 4) and value == (1 << bits) - 1:
                        value = data[place]
                        place += 1
                    values.append(value)
            for k, value in enumerate(values[:length]):
                before[channel] = (before[channel] + (value >> 1 ^ -(value & 1))) & 255
                out[start + k, channel] = before[channel]
    assert place == len(data) - max(stride, 32)
    return out


def decode_indices(data: bytes, count: int) -> np.ndarray:
    """A slow, literal decoder of mode INDICES."""
    assert data[0] == 0xD1
    place, last, out = 1, [0, 0], []
    for _ in range(count):
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        step = value >> 1
        last[value & 1] += step >> 1 ^ -(step & 1)
        out.append(last[value & 1])
    assert place == len(data) - 4
    return np.array(out)


def rows(kind: str, count: int, stride: int) -> np.ndarray:
    rng = np.random.default_rng(count + stride)
    if kind == "noise":
        return rng.integers(0, 256, (count, stride)).astype(np.uint8)
    if kind == "still":
        return np.full((count, stride), 77, np.uint8)
    return (np.cumsum(rng.integers(-3, 4, (count, stride)), axis=0) * rng.integers(0, 4, stride)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("stride", [4, 8, 12, 64])
@pytest.mark.parametrize("kind", ["noise", "still", "walk"])
def test_vertices_come_back(kind: str, count: int, stride: int) -> None:
    given = rows(kind, count, stride)
    np.testing.assert_array_equal(decode_vertices(encode_vertices(given), count, stride), given)


@pytest.mark.parametrize(
    "given", [[0], [7, 7, 0, 2**31 - 1, 0, 127, 128], list(range(5000, 0, -1))], ids=["one", "wide", "down"]
)
def test_indices_come_back(given: list[int]) -> None:
    np.testing.assert_array_equal(decode_indices(encode_indices(np.array(given)), len(given)), given)


def test_regular_data_becomes_small() -> None:
    assert len(encode_vertices(rows("walk", 5000, 8))) < 0.6 * 5000 * 8
    assert len(encode_indices(np.arange(3000))) < 1.01 * 3000


def test_the_package_of_the_format_reads_it(tmp_path: Path) -> None:
    node, place = shutil.which("node"), os.environ.get("MESHOPTIMIZER") or str(ROOT / "node_modules" / "meshoptimizer")
    if node is None or not Path(place).is_dir():
        pytest.skip(
            "the npm package meshoptimizer is neither in ./node_modules nor named by MESHOPTIMIZER, or there is no node"
        )
    given = {
        "vertices": rows("walk", 777, 12),
        "indices": np.random.default_rng(0).integers(0, 70_000, (3000, 1)).astype("<u4"),
    }
    coded = {"vertices": encode_vertices(given["vertices"]), "indices": encode_indices(given["indices"][:, 0])}
    for name, data in coded.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "const fs = require('fs'); const [, at, folder] = process.argv;"
        "import(at + '/meshopt_decoder.mjs').then(async ({MeshoptDecoder: d}) => { await d.ready;"
        "for (const [name, count, stride, mode] of [['vertices', 777, 12, 'ATTRIBUTES'], ['indices', 3000, 4, 'INDICES']]) {"
        "const out = new Uint8Array(count * stride);"
        "d.decodeGltfBuffer(out, count, stride, new Uint8Array(fs.readFileSync(folder + '/' + name)), mode);"
        "fs.writeFileSync(folder + '/' + name + '.out', out); } });"
    )
    subprocess.run([node, "-e", script, place, str(tmp_path)], check=True, capture_output=True)
    for name, data in given.items():
        assert (tmp_path / f"{name}.out").read_bytes() == data.tobytes()
