"""The GLB writer: right by the specification's own validator, by another reader, and byte for byte."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.solid_objects import cube
from trellis_core.errors import InputError
from trellis_core.gltf.glb import Packing, Part, glb_bytes
from trellis_core.gltf.images import encode_image

ROOT = Path(__file__).resolve().parents[2]


def sample(image_format: str = "png", extras: dict | None = None, **more: object) -> bytes:
    vertices, faces = cube()
    vertices = vertices + np.float32([0.0, 0.1, 0.2])
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    uvs = vertices[:, :2] + 0.5
    rng = np.random.default_rng(0)
    color, metal = rng.integers(0, 256, (8, 8, 4), np.uint8), rng.integers(0, 256, (8, 8, 3), np.uint8)
    return glb_bytes(Part(vertices, faces, normals, uvs, color, metal, **more), Packing(image_format), extras)


def parse(glb: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", glb)
    assert (magic, version, length) == (b"glTF", 2, len(glb))
    size, kind = struct.unpack_from("<I4s", glb, 12)
    body_size, body_kind = struct.unpack_from("<I4s", glb, 20 + size)
    assert (kind, body_kind) == (b"JSON", b"BIN\0") and 28 + size + body_size == len(glb)
    return json.loads(glb[20 : 20 + size]), glb[28 + size :]


def picture(document: dict, body: bytes, number: int) -> np.ndarray:
    view = document["bufferViews"][document["images"][number]["bufferView"]]
    data = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.asarray(Image.open(io.BytesIO(data)))


def validator() -> list[str]:
    """The command that runs the Khronos validator on a file, or a skip."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the Khronos validator cannot run")
    place = os.environ.get("GLTF_VALIDATOR") or str(ROOT / "node_modules" / "gltf-validator")
    if not Path(place).is_dir():
        pytest.skip("the npm package gltf-validator is neither in ./node_modules nor named by GLTF_VALIDATOR")
    script = (
        "const v = require(process.argv[1]), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])), {maxIssues: 50})"
        ".then(r => console.log(JSON.stringify(r.issues)));"
    )
    return [node, "-e", script, place]


def issues(glb: bytes, folder: Path) -> dict:
    path = folder / "checked.glb"
    path.write_bytes(glb)
    return json.loads(subprocess.run([*validator(), str(path)], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("alpha_mode", ["OPAQUE", "MASK", "BLEND"])
def test_the_khronos_validator_finds_nothing(image_format: str, alpha_mode: str, tmp_path: Path) -> None:
    found = issues(sample(image_format=image_format, alpha_mode=alpha_mode, extras={"seed": 1}), tmp_path)
    assert (found["numErrors"], found["numWarnings"]) == (0, 0), found["messages"]


def test_the_validator_would_find_a_fault(tmp_path: Path) -> None:
    glb = bytearray(sample())
    document, body = parse(bytes(glb))
    start = len(glb) - len(body) + document["bufferViews"][1]["byteOffset"]
    glb[start : start + 4] = struct.pack("<f", 9.0)
    assert issues(bytes(glb), tmp_path)["numErrors"] > 0


def test_contents_are_what_was_given() -> None:
    document, body = parse(sample(alpha_mode="MASK", alpha_cutoff=0.25, double_sided=True, extras={"seed": 7}))
    vertices, faces = cube()
    vertices = vertices + np.float32([0.0, 0.1, 0.2])
    positions = np.frombuffer(body, "<f4", 24, document["bufferViews"][0]["byteOffset"]).reshape(-1, 3)
    np.testing.assert_array_equal(positions, np.column_stack([vertices[:, 0], vertices[:, 2], -vertices[:, 1]]))
    accessor = document["accessors"][0]
    assert (accessor["min"], accessor["max"]) == (positions.min(0).tolist(), positions.max(0).tolist())
    indices = np.frombuffer(body, "<u2", 36, document["bufferViews"][3]["byteOffset"])
    np.testing.assert_array_equal(indices.reshape(-1, 3), faces)
    material = document["materials"][0]
    assert (material["alphaMode"], material["alphaCutoff"], material["doubleSided"]) == ("MASK", 0.25, True)
    assert document["asset"]["extras"] == {"seed": 7} and "TRELLIS" in document["asset"]["generator"]
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(picture(document, body, 0), rng.integers(0, 256, (8, 8, 4), np.uint8))
    np.testing.assert_array_equal(picture(document, body, 1), rng.integers(0, 256, (8, 8, 3), np.uint8))


def test_opaque_materials_store_no_alpha_and_large_meshes_long_indices() -> None:
    document, body = parse(sample())
    assert picture(document, body, 0).shape == (8, 8, 3)
    many = np.zeros((70_000, 3), np.float32)
    up = np.tile(np.float32([0, 0, 1]), (70_000, 1))
    blank = np.zeros((2, 2, 4), np.uint8)
    document, _ = parse(glb_bytes(Part(many, np.array([[0, 1, 69_999]]), up, many[:, :2], blank, blank[..., :3])))
    assert document["accessors"][3]["componentType"] == 5125


def test_trimesh_reads_the_same_mesh() -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.load(io.BytesIO(sample()), file_type="glb", force="mesh")
    assert mesh.is_watertight and mesh.volume == pytest.approx(0.6**3, rel=1e-5)


def test_equal_input_gives_equal_bytes() -> None:
    for image_format in ("png", "jpeg", "webp"):
        assert sample(image_format=image_format) == sample(image_format=image_format)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 64)])
def test_png_is_lossless(channels: int, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, channels), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_image(pixels)))), pixels)


def test_webp_keeps_colour_under_zero_alpha() -> None:
    pixels = np.full((32, 32, 4), 200, np.uint8)
    pixels[:16, :, 3] = 0
    back = np.asarray(Image.open(io.BytesIO(encode_image(pixels, "webp"))))
    assert np.abs(back[..., :3].astype(int) - 200).max() <= 3 and (back[:16, :, 3] == 0).all()
    with pytest.raises(InputError, match="png"):
        encode_image(pixels, "bmp")


def test_a_file_too_large_for_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = len(sample())
    monkeypatch.setattr("trellis_core.gltf.glb.LIMIT", limit)
    assert len(sample()) == limit
    monkeypatch.setattr("trellis_core.gltf.glb.LIMIT", limit - 1)
    with pytest.raises(InputError, match="a GLB can hold 4.2"):
        sample()
