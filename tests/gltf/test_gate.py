"""The gate for glTF: what valid files may hold comes out right, what is not read is refused in words."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.gltf_files import FACES, POINTS, GltfFile, tetrahedron, volume
from trellis_core.errors import InputError
from trellis_core.gltf.beside import Beside
from trellis_core.gltf.container import Container, with_extras
from trellis_core.gltf.glb import Part, glb_bytes
from trellis_core.gltf.plain import triangles
from trellis_core.gltf.read import read_mesh, read_mesh_file

HALF = 0.5**0.5


def arrays(data: bytes, kind: str = "glb", beside: Beside | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Vertices as the file has them, y up, and faces."""
    mesh = read_mesh(data, kind, beside)
    x, y, z = mesh.vertices.numpy().T
    return np.stack([x, z, -y], 1), mesh.faces.numpy()


def solid(data: bytes, kind: str = "glb", beside: Beside | None = None) -> float:
    return volume(*arrays(data, kind, beside))


# -- what the scene says


@pytest.mark.parametrize("place", [{"scale": [-2, 1, 1]}, {"matrix": [-2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}])
def test_mirrored_nodes_stay_outside_out(place: dict[str, Any]) -> None:
    file = tetrahedron()
    file.document["nodes"][0] |= place
    assert solid(file.glb()) == pytest.approx(2 / 6)


def test_mirrors_of_parents_and_children_cancel() -> None:
    file = tetrahedron()
    file.document["nodes"] = [
        {"children": [1], "scale": [1, -1, 1]},
        {"mesh": 0, "scale": [1, 1, -1], "rotation": [HALF, 0, 0, HALF]},
    ]
    assert solid(file.glb()) == pytest.approx(1 / 6)


def test_one_mesh_at_several_places() -> None:
    file = tetrahedron()
    file.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0], "scale": [-1, 1, 1]}]
    file.document["scenes"] = [{"nodes": [0, 1]}]
    vertices, faces = arrays(file.glb())
    assert len(faces) == 8 and vertices[:, 0].max() == 5 and volume(vertices, faces) == pytest.approx(2 / 6)


def test_a_camera_does_not_take_its_node_away() -> None:
    file = tetrahedron()
    camera = {"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1, "aspectRatio": 1.0}}
    file.document |= {
        "cameras": [camera],
        "nodes": [{"mesh": 0, "camera": 0, "children": [1]}, {"mesh": 0, "translation": [3, 0, 0]}],
    }
    assert solid(file.glb()) == pytest.approx(2 / 6)


def test_without_scenes_every_root_is_shown_once() -> None:
    file = tetrahedron()
    del file.document["scenes"], file.document["scene"]
    file.document["nodes"] = [{"mesh": 0}, {"children": [0], "translation": [1, 0, 0]}]
    assert len(arrays(file.glb())[1]) == 4 and arrays(file.glb())[0][:, 0].min() == 1


def test_hidden_nodes_are_left_out() -> None:
    file = tetrahedron()
    file.document["nodes"] = [
        {"mesh": 0},
        {"children": [2], "extensions": {"KHR_node_visibility": {"visible": False}}},
        {"mesh": 0},
    ]
    file.document["scenes"] = [{"nodes": [0, 1]}]
    assert len(arrays(file.glb())[1]) == 4


def test_a_skinned_mesh_stands_where_its_joints_carry_it() -> None:
    """Its own node counts for nothing; half the weight on a joint that moved by 2 moves a vertex by 1."""
    file = tetrahedron()
    bind = np.tile(np.eye(4, dtype=np.float32).T.reshape(16), (2, 1))
    primitive = file.document["meshes"][0]["primitives"][0]
    primitive["attributes"]["JOINTS_0"] = file.accessor(np.tile(np.array([[0, 1, 0, 0]], np.uint8), (4, 1)))
    primitive["attributes"]["WEIGHTS_0"] = file.accessor(
        np.tile(np.array([[128, 128, 0, 0]], np.uint8), (4, 1)), normalized=True
    )
    file.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": file.accessor(bind)}]
    file.document["nodes"] = [{"mesh": 0, "skin": 0, "scale": [0.01] * 3}, {"children": [2]}, {"translation": [2, 0, 0]}]
    file.document["scenes"] = [{"nodes": [0, 1]}]
    np.testing.assert_allclose(arrays(file.glb())[0], POINTS + [1, 0, 0], atol=1e-6)


def test_morph_targets_act_as_strongly_as_the_file_says() -> None:
    file = tetrahedron()
    mesh = file.document["meshes"][0]
    mesh["primitives"][0]["targets"] = [{"POSITION": file.accessor(np.full((4, 3), 4, np.float32))}]
    mesh["weights"] = [0.25]
    np.testing.assert_allclose(arrays(file.glb())[0], POINTS + 1, atol=1e-6)


# -- how numbers are stored


def test_sparse_accessors() -> None:
    """Rows replaced, on top of stored ones and on top of nothing."""
    file = tetrahedron()
    where, what = (
        file.view(np.array([3, 1], np.uint8).tobytes()),
        file.view(np.array([[0, 0, 9], [7, 0, 0]], np.float32).tobytes()),
    )
    sparse = {"count": 2, "indices": {"bufferView": where, "componentType": 5121}, "values": {"bufferView": what}}
    file.document["accessors"][0]["sparse"] = sparse
    np.testing.assert_array_equal(arrays(file.glb())[0], [[0, 0, 0], [7, 0, 0], [0, 1, 0], [0, 0, 9]])
    del file.document["accessors"][0]["bufferView"]
    file.document["accessors"][1] = file.document["accessors"].pop(file.accessor(np.array([0, 3, 1], np.uint16)))
    np.testing.assert_array_equal(np.unique(arrays(file.glb())[0], axis=0), [[0, 0, 0], [0, 0, 9], [7, 0, 0]])


@pytest.mark.parametrize("mode, corners", [(5, [0, 1, 2, 3, 4]), (6, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 0, 2, 3, 0, 3, 4])])
@pytest.mark.parametrize("indexed", [True, False])
def test_strips_and_fans_keep_their_winding(mode: int, corners: list[int], indexed: bool) -> None:
    """Five points in a row or around a centre, all triangles to be seen from +z."""
    row = [[0, 0, 0], [0, -1, 0], [1, 0, 0], [1, -1, 0], [2, 0, 0]]
    around = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]
    points = np.array(row if mode == 5 else around, np.float32)
    file = GltfFile()
    if indexed:
        file.primitive(points, np.array(corners, np.uint8), mode=mode)
    else:
        file.primitive(points[corners], None, mode=mode)
    vertices, faces = arrays(file.glb())
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    assert len(faces) == 3 and (np.cross(b - a, c - a)[:, 2] > 0).all()


def test_a_strip_beside_triangles_is_not_lost() -> None:
    file = tetrahedron()
    file.primitive(POINTS + 2, np.array([0, 1, 2, 2, 3], np.uint16), mode=5)
    file.primitive(POINTS, None, mode=1)  # lines: left aside where there are triangles
    assert len(arrays(file.glb())[1]) == 4 + 1


def test_triangles_that_join_strips_are_dropped() -> None:
    np.testing.assert_array_equal(triangles(np.array([0, 1, 2, 2, 3, 3, 4, 5]), 5), [[0, 1, 2], [3, 5, 4]])


def test_integers_that_stand_for_fractions() -> None:
    file = GltfFile()
    file.primitive(np.round(POINTS * 32767).astype(np.int16))
    file.document["accessors"][0]["normalized"] = True
    file.document |= {"extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"]}
    np.testing.assert_allclose(arrays(file.glb())[0], POINTS, atol=1e-6)


def test_whole_numbers_as_they_are() -> None:
    file = GltfFile()
    file.primitive((POINTS * 100).astype(np.uint16))
    np.testing.assert_array_equal(arrays(file.glb())[0], POINTS * 100)


def test_interleaved_attributes() -> None:
    file = tetrahedron()
    rows = np.concatenate([POINTS, np.full((4, 2), 9, np.float32)], 1)
    file.document["accessors"][0]["bufferView"] = file.view(rows.tobytes(), byteStride=20)
    np.testing.assert_array_equal(arrays(file.glb())[0], POINTS)


def test_parts_that_share_one_list_of_vertices_take_only_their_own() -> None:
    file = GltfFile()
    first = file.primitive(np.concatenate([POINTS, POINTS + 5]), FACES)
    second = {**first, "indices": file.accessor((FACES + 4).ravel())}
    file.document["meshes"][0]["primitives"].append(second)
    vertices, faces = arrays(file.glb())
    assert vertices.shape == (8, 3) and volume(vertices, faces) == pytest.approx(2 / 6)


# -- where the bytes lie


def test_buffers_written_into_the_document() -> None:
    assert solid(tetrahedron().gltf(), "gltf") == pytest.approx(1 / 6)


def test_a_second_buffer() -> None:
    file = tetrahedron()
    inner = json.loads(tetrahedron().gltf())["buffers"][0]
    file.document["buffers"] = [{"byteLength": len(file.body)}, inner]
    file.document["bufferViews"][0]["buffer"] = 1
    file.body = (
        bytes(file.document["bufferViews"][1]["byteOffset"]) + file.body[file.document["bufferViews"][1]["byteOffset"] :]
    )
    assert solid(file.glb()) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "name, uri", [("mesh.bin", "mesh.bin"), ("my möbel.bin", "my%20m%C3%B6bel.bin"), ("Mesh.BIN", "mesh.bin")]
)
def test_a_gltf_with_its_buffer_beside_it(tmp_path: Path, name: str, uri: str) -> None:
    (tmp_path / name).write_bytes(tetrahedron().body)
    (tmp_path / "model.GLTF").write_bytes(tetrahedron().gltf(uri))
    assert len(read_mesh_file(tmp_path / "model.GLTF").faces) == 4


@pytest.mark.parametrize("uri", ["../secret.bin", "/etc/hostname", "..\\secret.bin", "sub/../../secret.bin", "link.bin"])
def test_nothing_leads_out_of_the_folder(tmp_path: Path, uri: str) -> None:
    (tmp_path / "secret.bin").write_bytes(tetrahedron().body)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match="refers to the file"):
        read_mesh(tetrahedron().gltf(uri), "gltf", Beside(folder))


def test_chunks_of_unknown_kinds_are_passed_over_and_kept() -> None:
    glb = tetrahedron().glb()
    more = struct.pack("<I4s", 8, b"NOTE") + b"12345678"
    longer = glb[:8] + struct.pack("<I", len(glb) + len(more)) + glb[12:] + more
    assert solid(longer) == pytest.approx(1 / 6)
    noted = Container.read(with_extras(longer, {"prompt": 1}))
    assert [(kind, bytes(content)) for kind, content in noted.others] == [(b"NOTE", b"12345678")]
    assert bytes(noted.binary) == bytes(Container.read(glb).binary)
    assert noted.document["asset"]["extras"] == {"prompt": 1}


def test_notes_leave_uvs_skins_and_extensions_of_a_foreign_file_as_they_are() -> None:
    file = tetrahedron()
    file.document |= {"skins": [{"joints": [0]}], "extensions": {"VRM": {"a": [1]}}, "animations": [{"name": "walk"}]}
    before, after = Container.read(file.glb()), Container.read(with_extras(file.glb(), {"a": 1}))
    assert {k: v for k, v in after.document.items() if k != "asset"} == {
        k: v for k, v in before.document.items() if k != "asset"
    }
    assert bytes(after.binary) == bytes(before.binary)


def test_bytes_behind_the_end_are_not_the_files() -> None:
    assert solid(tetrahedron().glb() + b"\n\n\n") == pytest.approx(1 / 6)


# -- what is refused


def set_at(path: str, value: Any) -> bytes:
    file = tetrahedron()
    *above, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = file.document
    for step in above:
        place = place[step]
    place[last] = value
    return file.glb()


REFUSED = {
    "compressed (KHR_draco": ("extensionsRequired", ["KHR_draco_mesh_compression"]),
    "compressed (EXT_meshopt": ("bufferViews.0.extensions", {"EXT_meshopt_compression": {}}),
    "requires the extension 'ACME_shapes'": ("extensionsRequired", ["ACME_shapes"]),
    "EXT_mesh_gpu_instancing": ("nodes.0.extensions", {"EXT_mesh_gpu_instancing": {"attributes": {}}}),
    "points or lines only": ("meshes.0.primitives.0.mode", 1),
    "no triangles": ("scenes.0.nodes", []),
    "mesh 7, and has 1": ("nodes.0.mesh", 7),
    "node 3, and has 1": ("scenes.0.nodes", [3]),
    "stands in the scene twice": ("nodes.0.children", [0]),
    '"nodes.0.mesh"': ("nodes.0.mesh", "0"),
    '"accessors.0.count"': ("accessors.0.count", -4),
    '"accessors.0.componentType"': ("accessors.0.componentType", 5124),
    '"nodes.0.matrix"': ("nodes.0.matrix", [1, 2, 3]),
    '"asset.version"': ("asset.version", "1.0"),
    '"nodes"': ("nodes", {}),
    "accessor 0 reaches past the end": ("accessors.0.count", 5),
    "accessor 0 reaches past the end of": ("accessors.0.byteOffset", 2**39),
    "buffer view 0 reaches past": ("bufferViews.0.byteLength", 10**9),
    "buffer 5, and has 1": ("bufferViews.0.buffer", 5),
    "holds VEC2s": ("accessors.0.type", "VEC2"),
    "not given by whole numbers": ("accessors.1.componentType", 5122),
    "has no positions": ("meshes.0.primitives.0.attributes", {}),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_say_what_is_wrong(words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_mesh(set_at(*REFUSED[words]), "glb")
    assert words in str(caught.value)


def test_refusals_of_bytes() -> None:
    glb = tetrahedron().glb()
    far = tetrahedron()
    far.document["accessors"][1] |= {
        "sparse": {"count": 1, "indices": {"bufferView": 0, "componentType": 5121}, "values": {"bufferView": 0}}
    }
    holes = tetrahedron()
    holes.body = np.full((4, 3), np.nan, np.float32).tobytes() + holes.body[48:]
    made = tetrahedron()
    made.document["accessors"][0] |= {"count": 2**30}
    del made.document["accessors"][0]["bufferView"]
    past = GltfFile()
    past.primitive(faces=FACES + 1)
    cases = {
        "no valid glTF 2.0": b"{}",
        "does not begin with glTF": b"solid nothing",
        "version 1": glb[:4] + struct.pack("<I", 1) + glb[8:],
        "whole GLB": glb[:-4],
        "not finite": holes.glb(),
        "asks for": made.glb(),
        "points to vertex 4 of 4": past.glb(),
        "cannot be read as JSON": glb.replace(b'"asset"', b"'asset'"),
    }
    for words, data in cases.items():
        with pytest.raises(InputError, match=words):
            read_mesh(data, "gltf" if data[:1] == b"{" else "glb")
    for uri, words in (
        ("http://a/b.bin", "addresses are not opened"),
        ("data:nothing", "holds no data"),
        ("gone.bin", "came alone"),
    ):
        with pytest.raises(InputError, match=words):
            read_mesh(tetrahedron().gltf(uri), "gltf")
    with pytest.raises(InputError, match="'fbx' are not read"):
        read_mesh(b"", ".fbx")


def test_a_few_letters_cannot_ask_for_endless_work() -> None:
    """Nodes that use one mesh over and over are counted before any copy is made."""
    file = tetrahedron()
    file.document["nodes"] = [{"mesh": 0} for _ in range(30)]
    file.document["scenes"] = [{"nodes": list(range(30))}]
    assert len(arrays(file.glb())[1]) == 120
    file.document["accessors"][1] = {"componentType": 5125, "count": 6_000_000, "type": "SCALAR"}
    with pytest.raises(InputError, match="more than 50,000,000 triangles"):
        read_mesh(file.glb(), "glb")


WRONG = (None, True, -1, 1e400, 2**31, 2**63, 0.5, "", "x", [], {}, [[]], [0], {"a": 1}, [None], "data:;base64,####")


def test_a_thousand_damaged_files_are_refused_or_read() -> None:
    """Values of other types anywhere in the document, bytes changed, cut and repeated: words or triangles, nothing else."""
    rng = random.Random(7)
    part = Part(POINTS, FACES.astype(np.int32), POINTS, POINTS[:, :2], *[np.zeros((4, 4, 3), np.uint8)] * 2)
    whole = [tetrahedron().glb(), glb_bytes(part)]
    for _ in range(1000):
        data = rng.choice(whole)
        if rng.random() < 0.7:
            container = Container.read(data)
            place: Any = container.document
            while True:
                step = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if not isinstance(place[step], dict | list) or not place[step] or rng.random() < 0.2:
                    break
                place = place[step]
            place[step] = rng.choice([w for w in WRONG if w != 1e400])
            data = container.to_bytes()
        else:
            spot = rng.randrange(len(data))
            data = data[:spot] + rng.randbytes(rng.randrange(9)) + data[spot + rng.randrange(9) :]
        try:
            read_mesh(data, "glb")
        except InputError as error:
            assert len(str(error)) > 20
