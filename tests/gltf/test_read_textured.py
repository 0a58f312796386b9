"""Models with their looks: materials, UV maps, pictures and vertex colours, of GLB and of OBJ with what lies beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.gltf_files import FACES, POINTS, GltfFile
from trellis_core.errors import InputError
from trellis_core.gltf.beside import Beside
from trellis_core.gltf.glb import Packing, Part, glb_bytes
from trellis_core.gltf.read_textured import read_textured_mesh
from trellis_core.ovoxel.textured_mesh import BLEND, textured_mesh_to_attributes

CORNERS = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
SIDES = "".join(f"f {a}/1 {b}/1 {c}/1\n" for a, b, c in FACES.astype(int) + 1)
OBJ = "mtllib chair.mtl\n" + CORNERS + "vt 0.5 0.5\nusemtl paint\n" + SIDES


def png(colour: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", (4, 4), colour).save(stream, "png")
    return stream.getvalue()


def textured(texture: dict[str, Any] | None = None, data: bytes = b"", **material: Any) -> GltfFile:
    """A tetrahedron with a texture in its base colour."""
    file = GltfFile()
    primitive = file.primitive(material=0)
    primitive["attributes"]["TEXCOORD_0"] = file.accessor(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32))
    file.document["images"] = [{"bufferView": file.view(data or png((200, 100, 50)))}]
    file.document["textures"] = [{"source": 0}]
    base = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, **(texture or {})}}}
    file.document["materials"] = [base | material]
    return file


def voxel_colours(mesh: Any) -> np.ndarray:
    return textured_mesh_to_attributes(mesh, 16).base_color.numpy()


def test_a_texture_with_its_material() -> None:
    mesh = read_textured_mesh(textured(alphaMode="BLEND").glb(), "glb")
    assert mesh.materials[0].alpha_mode == BLEND
    np.testing.assert_allclose(voxel_colours(mesh).mean(0) * 255, [200, 100, 50], atol=1)


def test_our_own_files_of_every_compression_come_back() -> None:
    uvs = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    colour, material = np.full((8, 8, 3), (200, 100, 50), np.uint8), np.full((8, 8, 3), (255, 128, 64), np.uint8)
    part = Part(POINTS * 0.5, FACES.astype(np.int32), POINTS, uvs, colour, material)
    for kind, compression in (("png", "none"), ("webp", "quantize")):
        mesh = read_textured_mesh(glb_bytes(part, Packing(image_format=kind, compression=compression)), "glb")
        assert mesh.uvs.amax() == pytest.approx(1, abs=1e-4) and mesh.triangles.shape == (4, 3, 3)
        found = textured_mesh_to_attributes(mesh, 16)
        np.testing.assert_allclose(found.base_color.mean(0) * 255, [200, 100, 50], atol=3)
        np.testing.assert_allclose([found.metallic.mean() * 255, found.roughness.mean() * 255], [64, 128], atol=2)


def test_the_texture_chooses_its_uv_map_and_moves_it() -> None:
    """Quarter turn, half size, offset (0, 1): the lower left quadrant of the picture, as the extension's text has it."""
    transform = {"KHR_texture_transform": {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}}
    plain, moved = textured(), textured({"extensions": transform})
    before, after = (read_textured_mesh(f.glb(), "glb").uvs.numpy() for f in (plain, moved))
    u, v = before[..., 0], 1 - before[..., 1]
    np.testing.assert_allclose(after, np.stack([v / 2, 1 - (1 - u / 2)], -1), atol=1e-6)
    second = textured({"texCoord": 1})
    with pytest.raises(InputError, match="lacks its UV map 1"):
        read_textured_mesh(second.glb(), "glb")
    named = second.document["meshes"][0]["primitives"][0]["attributes"]
    named["TEXCOORD_1"] = second.accessor(np.full((4, 2), 0.25, np.float32))
    np.testing.assert_allclose(read_textured_mesh(second.glb(), "glb").uvs.numpy()[0, 0], [0.25, 0.75], atol=1e-6)


def test_textures_on_different_uv_maps_are_refused() -> None:
    file = textured()
    file.document["materials"][0]["pbrMetallicRoughness"]["metallicRoughnessTexture"] = {"index": 0, "texCoord": 1}
    with pytest.raises(InputError, match="different UV maps"):
        read_textured_mesh(file.glb(), "glb")


def test_the_older_model_of_materials() -> None:
    older = {"diffuseFactor": [0.2, 0.4, 0.6, 1], "specularFactor": [0, 0, 0], "glossinessFactor": 0.25}
    file = textured(extensions={"KHR_materials_pbrSpecularGlossiness": older})
    del file.document["materials"][0]["pbrMetallicRoughness"]
    (material,) = read_textured_mesh(file.glb(), "glb").materials
    assert material.base_color_factor == pytest.approx(np.array((0.2, 0.4, 0.6)) / (1 - 0.04), abs=0.004)
    assert material.roughness_factor == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "data, words", [(b"\xabKTX 20\xbb", "no picture in a known format"), (png((1, 2, 3))[:40], "picture"), (b"x", "picture")]
)
def test_a_picture_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_textured_mesh(textured(data=data).glb(), "glb")


def test_a_texture_in_a_format_that_is_not_read() -> None:
    file = textured()
    file.document["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    with pytest.raises(InputError, match="KTX2"):
        read_textured_mesh(file.glb(), "glb")


@pytest.mark.parametrize("with_material", [True, False])
def test_vertex_colours_lie_where_they_were_painted(with_material: bool) -> None:
    """Red below, blue above, and what the material says besides."""
    file = GltfFile()
    primitive = file.primitive(**({"material": 0} if with_material else {}))
    painted = np.array([[255, 0, 0, 255], [255, 0, 0, 255], [0, 0, 255, 255], [255, 0, 0, 255]], np.uint8)
    primitive["attributes"]["COLOR_0"] = file.accessor(painted, normalized=True)
    if with_material:
        file.document["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 0.5, 1]}}]
    found = textured_mesh_to_attributes(read_textured_mesh(file.glb(), "glb"), 32)
    top, bottom = found.coords[:, 2] >= 28, found.coords[:, 2] <= 2
    blue = 0.5 if with_material else 1.0
    np.testing.assert_allclose(found.base_color[top].mean(0), [0.07, 0, 0.93 * blue], atol=0.07)
    np.testing.assert_allclose(found.base_color[bottom].mean(0), [0.97, 0, 0.03 * blue], atol=0.05)


def test_colours_of_a_ply() -> None:
    rows = "".join(f"{x} {y} {z} {255 * int(y > 0)} 0 255\n" for x, y, z in POINTS)
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {c}\n" for c in "xyz")
    header += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    header += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in FACES)
    mesh = read_textured_mesh((header + rows + faces).encode(), "ply")
    assert mesh.colors.amax((0, 1)).tolist() == [1, 0, 1] and mesh.colors.amin((0, 1)).tolist() == [0, 0, 1]


NAMES = {
    "beside": ("chair.png", "chair.png"),
    "in a folder": ("textures/chair.png", "textures/chair.png"),
    "with backslashes": ("textures\\chair.png", "textures/chair.png"),
    "of another machine": ("C:\\Users\\me\\work\\chair.png", "chair.png"),
    "in other capitals": ("Chair.PNG", "chair.png"),
    "with a space": ("my chair.png", "my chair.png"),
    "behind options": ("-s 1 1 1 -clamp on chair.png", "chair.png"),
    "out of the folder": ("../../chair.png", "chair.png"),
}


@pytest.mark.parametrize("case", NAMES)
def test_an_obj_finds_its_texture(tmp_path: Path, case: str) -> None:
    written, name = NAMES[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(png((200, 100, 50)))
    (tmp_path / "chair.mtl").write_text(f"newmtl paint\nKd 1 1 1\nmap_Kd {written}\n")
    beside = Beside(tmp_path)
    mesh = read_textured_mesh(OBJ.encode(), "obj", beside)
    np.testing.assert_allclose(voxel_colours(mesh).mean(0) * 255, [200, 100, 50], atol=1)
    assert {path.name for path in beside.used} == {"chair.mtl", Path(name).name}


def test_what_an_obj_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'chair.mtl', not found beside it"):
        read_textured_mesh(OBJ.encode(), "obj", Beside(tmp_path))
    (tmp_path / "chair.mtl").write_text("newmtl paint\nmap_Kd wood.png\n")
    with pytest.raises(InputError, match=r"'wood.png'"):
        read_textured_mesh(OBJ.encode(), "obj", Beside(tmp_path))
    (tmp_path / "wood.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match="picture"):
        read_textured_mesh(OBJ.encode(), "obj", Beside(tmp_path))


def test_without_anything_painted_it_is_grey() -> None:
    mesh = read_textured_mesh((CORNERS + SIDES.replace("/1", "")).encode(), "obj")
    assert mesh.colors is None and torch.isfinite(mesh.normals).all()
    assert len(set(mesh.materials[0].base_color_factor)) == 1
