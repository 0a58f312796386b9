"""Reading GLB files back, and adding notes to them."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from trellis_core.errors import InputError
from trellis_core.gltf.container import split_glb, with_extras
from trellis_core.gltf.glb import Part, glb_bytes, join_glb
from trellis_core.gltf.read import read_mesh

VERTICES = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.25, 0], [0, 0, 0.125]], np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
NORMALS = np.tile(np.array([[0, 0, 1]], np.float32), (4, 1))


def _glb() -> bytes:
    return glb_bytes(Part(VERTICES, FACES, NORMALS))


def test_reads_back_what_was_written() -> None:
    mesh = read_mesh(_glb(), "glb")
    assert torch.equal(mesh.vertices, torch.from_numpy(VERTICES))
    assert torch.equal(mesh.faces, torch.from_numpy(FACES))


def test_follows_the_scene() -> None:
    """A node turned about y, scaled and moved, inside another: glTF's x, y, z are ours x, -z, y."""
    document, binary = split_glb(_glb())
    half = 2**-0.5
    document["nodes"] = [
        {"children": [1], "translation": [1, 2, 3]},
        {"mesh": 0, "rotation": [0, half, 0, half], "scale": [2, 2, 2]},
    ]
    mesh = read_mesh(join_glb(document, binary), "glb")
    y_up = VERTICES[:, [0, 2, 1]] * [1, 1, -1]
    turned = np.stack([y_up[:, 2], y_up[:, 1], -y_up[:, 0]], axis=1) * 2 + [1, 2, 3]
    np.testing.assert_allclose(mesh.vertices.numpy(), turned[:, [0, 2, 1]] * [1, -1, 1], atol=1e-6)


def test_notes_change_nothing_else() -> None:
    noted = with_extras(_glb(), {"prompt": "{}"})
    document, binary = split_glb(noted)
    assert document["asset"].pop("extras") == {"prompt": "{}"}
    assert (document, binary) == split_glb(_glb())
    assert with_extras(noted, {})[:4] == b"glTF"


def test_refuses_what_it_cannot_read() -> None:
    document, binary = split_glb(_glb())
    packed = join_glb(document | {"extensionsRequired": ["KHR_draco_mesh_compression"]}, binary)
    pointing_past = bytearray(_glb())
    view = document["bufferViews"][document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]["bufferView"]]
    struct.pack_into("<H", pointing_past, len(pointing_past) - len(binary) + view["byteOffset"], 60000)
    lost = json.loads(json.dumps(document))
    lost["accessors"][0]["bufferView"] = 99
    empty = document | {"scenes": [{"nodes": []}]}
    cases = {
        "whole GLB": _glb()[:-4],
        "compressed": packed,
        "damaged": bytes(pointing_past),
        "refers to buffer view 99": join_glb(lost, binary),
        "no triangles": join_glb(empty, binary),
    }
    for phrase, data in cases.items():
        with pytest.raises(InputError, match=phrase):
            read_mesh(data, "glb")
