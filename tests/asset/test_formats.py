"""What a finished file can hold: every way of packing it, placement, levels of detail, a limit of its size, its report."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gltf.test_glb import parse, picture, validator
from tests.helpers.solid_objects import ball, cube, decoded, rainbow, torus
from trellis_core.asset.asset import make_asset
from trellis_core.asset.report import stretch
from trellis_core.asset.size_limit import fit
from trellis_core.errors import InputError
from trellis_core.gltf.glb import Packing, Part, glb_bytes
from trellis_core.gltf.meshopt import encode_indices, encode_vertices
from trellis_core.gltf.placement import Placement
from trellis_core.gltf.read import read_mesh
from trellis_core.gltf.vertex_formats import near_order, rounded_directions, rounded_positions, rounded_uvs
from trellis_core.settings import GenerationSettings
from trellis_core.texturing.tangents import to_tangent_space, vertex_tangents

PLAIN = GenerationSettings(texture_size=1024, remesh=False)


def sample_part(size: int = 16, **more: object) -> Part:
    vertices, faces = ball(0.4, 2)
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    uvs = (vertices[:, :2] + 0.5).astype(np.float32)
    rng = np.random.default_rng(0)
    color, material, tilts = (rng.integers(0, 256, (size, size, c), np.uint8) for c in (4, 3, 3))
    tangents = vertex_tangents(vertices, faces, normals, uvs)
    return Part(vertices, faces, normals, uvs, color, material, True, tangents, tilts, **more)


def test_the_khronos_validator_accepts_every_combination(tmp_path: Path) -> None:
    _, _, _, place = node = validator()
    part = sample_part()
    bare = replace(part, occlusion=False, tangents=None, normal_map=None)
    choices = itertools.product(
        ("png", "jpeg", "webp"), ("OPAQUE", "MASK", "BLEND"), ("none", "quantize", "meshopt"), (part, bare), (1, 3)
    )
    for number, (kind, mode, compression, some, levels) in enumerate(choices):
        packing = Packing(kind, 80, compression, Placement.of(part.vertices, "ground", 1.7, "y"))
        data = glb_bytes([replace(some, alpha_mode=mode)] * levels, packing)
        (tmp_path / f"{number}_{kind}_{mode}_{compression}_{levels}.glb").write_bytes(data)
    script = (
        "const v = require(process.argv[1]), fs = require('fs'), at = process.argv[2];"
        "Promise.all(fs.readdirSync(at).map(f => v.validateBytes(new Uint8Array(fs.readFileSync(at + '/' + f)), {maxIssues: 9})"
        ".then(r => [f, r.issues]))).then(all => console.log(JSON.stringify(all)));"
    )
    found = json.loads(subprocess.run([node[0], "-e", script, place, str(tmp_path)], capture_output=True, check=True).stdout)
    assert len(found) == 3 * 3 * 3 * 2 * 2
    bad = [(name, issues["messages"]) for name, issues in found if issues["numErrors"] or issues["numWarnings"]]
    assert not bad, bad[:3]


def test_extensions_are_named_where_they_are_used() -> None:
    part = sample_part()
    plain, _ = parse(glb_bytes(part))
    assert "extensionsUsed" not in plain and "extensionsRequired" not in plain
    packed, _ = parse(glb_bytes([part, part], Packing("webp", 80, "meshopt")))
    needed = ["EXT_meshopt_compression", "EXT_texture_webp", "KHR_mesh_quantization"]
    assert packed["extensionsRequired"] == needed and packed["extensionsUsed"] == sorted([*needed, "MSFT_lod"])
    assert packed["nodes"][0]["extensions"]["MSFT_lod"]["ids"] == [1] and packed["scenes"] == [{"nodes": [0]}]
    assert len(packed["nodes"][0]["extras"]["MSFT_screencoverage"]) == 2
    material = packed["materials"][0]
    assert material["occlusionTexture"] == material["pbrMetallicRoughness"]["metallicRoughnessTexture"]


def test_meshopt_files_hold_the_same_streams_as_quantised_ones() -> None:
    part = sample_part()
    plain, body = parse(glb_bytes(part, Packing(compression="quantize")))
    packed, small = parse(glb_bytes(part, Packing(compression="meshopt")))
    assert len(small) < len(body)
    for old, new in zip(plain["bufferViews"], packed["bufferViews"], strict=True):
        if "target" not in old:
            continue
        raw = np.frombuffer(body, np.uint8, old["byteLength"], old["byteOffset"])
        coded = new["extensions"]["EXT_meshopt_compression"]
        rows = raw.reshape(coded["count"], coded["byteStride"])
        indices = rows.view(f"<u{coded['byteStride']}")[:, 0] if coded["mode"] == "INDICES" else None
        again = encode_vertices(rows) if indices is None else encode_indices(indices)
        assert small[coded["byteOffset"] : coded["byteOffset"] + coded["byteLength"]] == again
        assert (new["buffer"], new["byteLength"]) == (1, old["byteLength"])


def test_rounded_streams_stay_close() -> None:
    part = sample_part()
    stream, centre, half = rounded_positions(part.vertices)
    stored = stream.rows.view("<i2")[:, :3] / 32767 * half + centre
    assert np.abs(stored - part.vertices).max() <= half / 32767 * 0.51
    normals = rounded_directions(part.normals).rows.view("i1")[:, :3] / 127
    lengths = np.linalg.norm(normals, axis=1)
    assert np.abs(lengths - 1).max() < 0.0067 and ((normals * part.normals).sum(1) / lengths).min() > 0.9999
    assert np.abs(rounded_uvs(part.uvs).rows.view("<u2") / 65535 - part.uvs).max() < 1e-5


def test_the_order_for_packing_is_a_permutation_of_neighbours() -> None:
    rng = np.random.default_rng(1)
    part = sample_part()
    mixed = part.faces[rng.permutation(len(part.faces))]
    face_order, vertex_order = near_order(mixed, part.uvs, len(part.vertices))
    assert sorted(face_order) == list(range(len(mixed))) and sorted(vertex_order) == list(range(len(part.vertices)))
    centres = part.uvs[mixed].mean(1)
    steps = np.linalg.norm(np.diff(centres[face_order], axis=0), axis=1).mean()
    assert steps < 0.5 * np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()


def positions(glb: bytes) -> np.ndarray:
    document, body = parse(glb)
    view = document["bufferViews"][0]
    return np.frombuffer(body, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(-1, 3)


@pytest.mark.parametrize("pivot", ["origin", "center", "ground"])
@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_models_stand_where_they_should(pivot: str, up_axis: str) -> None:
    vertices, faces = cube(0.6, (0.1, -0.05, 0.15))
    place = Placement.of(vertices, pivot, 3.0, up_axis)
    found = positions(glb_bytes(Part(vertices, faces, vertices), Packing(placement=place)))
    low, high = found.min(0), found.max(0)
    np.testing.assert_allclose(high - low, 3.0, atol=1e-5)
    up = "xyz".index(up_axis)
    middle = (low + high) / 2
    across = [k for k in range(3) if k != up]
    if pivot == "origin":
        assert abs(middle[0] - 0.5) < 1e-5
    else:
        np.testing.assert_allclose(middle[across], 0, atol=1e-6)
        np.testing.assert_allclose(low[up], 0 if pivot == "ground" else -1.5, atol=1e-6)


def test_the_same_shape_in_quantised_form_after_its_node() -> None:
    part, place = sample_part(), Placement(scale=2.0)
    document, body = parse(glb_bytes(part, Packing(compression="quantize", placement=place)))
    view, node = document["bufferViews"][0], document["nodes"][0]
    stored = np.frombuffer(body, "<i2", view["byteLength"] // 2, view["byteOffset"]).reshape(-1, 4)[:, :3] / 32767
    found = stored * node["scale"] + node["translation"]
    wanted = place.points(part.vertices)
    order = [np.lexsort(np.round(points, 3).T) for points in (found, wanted)]
    np.testing.assert_allclose(found[order[0]], wanted[order[1]], atol=1e-4)


def test_our_reader_undoes_the_rounding() -> None:
    part = sample_part()
    found = read_mesh(glb_bytes(part, Packing(compression="quantize")), "glb").vertices.numpy()
    np.testing.assert_allclose(
        found[np.lexsort(np.round(found, 3).T)], part.vertices[np.lexsort(np.round(part.vertices, 3).T)], atol=1e-4
    )


def test_colours_under_clear_texels_are_kept_and_opacity_is_decided() -> None:
    def window(points: np.ndarray) -> np.ndarray:
        attrs = rainbow(points)
        attrs[points[:, 2] > 0.1, 5] = 0.5
        return attrs

    mesh, voxels = decoded(*torus(), 32, window)
    asset = make_asset(mesh, voxels, PLAIN.model_copy(update={"image_format": "webp", "image_quality": 100}))
    assert asset.alpha_mode == "BLEND"
    stored = picture(*parse(asset.glb), 0)
    np.testing.assert_array_equal(stored, asset.base_color.numpy())
    cut = make_asset(mesh, voxels, PLAIN.model_copy(update={"alpha_mode": "MASK"}))
    assert parse(cut.glb)[0]["materials"][0]["alphaMode"] == "MASK"


def test_levels_of_detail_get_coarser_and_keep_their_textures() -> None:
    asset = make_asset(*decoded(*ball(), 32), PLAIN.model_copy(update={"lods": 2}))
    document, body = parse(asset.glb)
    assert [mesh["name"] for mesh in document["meshes"]] == ["model_LOD0", "model_LOD1", "model_LOD2"]
    faces = asset.report.level_faces
    assert len(faces) == 3 and all(coarse < 0.35 * fine for fine, coarse in itertools.pairwise(faces))
    sizes = [
        picture(document, body, m["pbrMetallicRoughness"]["baseColorTexture"]["index"]).shape[0] for m in document["materials"]
    ]
    assert sizes == [1024, 512, 256]
    assert "Levels" in asset.report.to_text()


def test_a_number_of_faces_is_met() -> None:
    asset = make_asset(*decoded(*ball(), 64), PLAIN.model_copy(update={"faces": 3000}))
    assert abs(asset.report.faces - 3000) <= 60


def test_a_limit_of_the_file_is_kept_by_textures_first() -> None:
    model = decoded(*torus(), 32)
    whole = make_asset(*model, PLAIN)
    limit = 0.6 * whole.report.file_bytes
    half = make_asset(*model, PLAIN.model_copy(update={"max_file_mb": limit / 1e6}))
    assert half.report.file_bytes <= limit and half.report.faces == whole.report.faces
    assert "jpeg" in half.report.note and half.report.note in half.report.to_text()


def test_vertices_give_way_last_and_nonsense_is_refused() -> None:
    calls = []

    def dress(vertices: int, size: int) -> list[Part]:
        calls.append((vertices, size))
        rounds = 4 if vertices >= 1000 else 3 if vertices >= 300 else 2
        ball_vertices, faces = ball(0.4, rounds)
        base = sample_part(64)
        return [replace(base, vertices=ball_vertices, faces=faces, normals=ball_vertices / 0.4, uvs=ball_vertices[:, :2] + 0.5,
                        tangents=None, normal_map=None)]  # fmt: skip

    found = fit(dress, 1538, 1024, Packing(), 60_000)
    assert len(found.data) <= 60_000 and "vertices" in found.note and calls[0] == (1538, 1024)
    with pytest.raises(InputError, match="raise max_file_mb"):
        fit(dress, 1538, 1024, Packing(), 2000)


def test_tangents_follow_the_texture_and_its_handedness() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 4)), -1).reshape(-1, 2).astype(np.float32)
    from tests.helpers.solid_objects import grid_surface

    faces = grid_surface(4, 4, False, False)[:, [0, 2, 1]]
    plane = np.column_stack([grid, np.zeros(16)]).astype(np.float32)
    up = np.tile(np.float32([0, 0, 1]), (16, 1))
    upright = np.column_stack([grid[:, 0], 1 - grid[:, 1]])
    np.testing.assert_allclose(vertex_tangents(plane, faces, up, upright), np.tile([1, 0, 0, 1], (16, 1)), atol=1e-6)
    np.testing.assert_allclose(vertex_tangents(plane, faces, up, grid), np.tile([1, 0, 0, -1], (16, 1)), atol=1e-6)
    turned = np.column_stack([grid[:, 1], grid[:, 0]])
    np.testing.assert_allclose(vertex_tangents(plane, faces, up, turned)[:, :3], np.tile([0, 1, 0], (16, 1)), atol=1e-6)


def test_what_is_written_in_tangent_space_is_read_again() -> None:
    generator = torch.Generator().manual_seed(0)
    normals, tangents, wanted = (
        torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1) for _ in range(3)
    )
    handed = torch.tensor([1.0, -1.0]).repeat(25)
    wanted = torch.nn.functional.normalize(wanted + 2 * normals, dim=1)
    x, y, z = to_tangent_space(wanted, normals, tangents, handed).split(1, dim=1)
    bitangents = torch.nn.functional.normalize(torch.linalg.cross(normals, tangents, dim=1), dim=1) * handed[:, None]
    seen = torch.nn.functional.normalize(x * tangents + y * bitangents + z * normals, dim=1)
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=0)


def test_stretch_is_that_of_a_known_map() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5)), -1).reshape(-1, 2)
    from tests.helpers.solid_objects import grid_surface

    plane = np.column_stack([grid * [3, 1], np.zeros(25)]).astype(np.float32)
    found = stretch(plane, grid_surface(5, 5, False, False), grid.astype(np.float32))
    assert found == pytest.approx({"aniso_median": 3, "aniso_95": 3, "stretch_99": 3 / 5**0.5}, rel=1e-4)


def test_the_report_tells_programs_what_it_tells_people() -> None:
    asset = make_asset(*decoded(*ball(), 32), PLAIN)
    facts = json.loads(asset.report.to_json())
    assert facts["warnings"] == [] and facts["level_faces"] == [facts["faces"]]
    assert set(facts["seconds"]) == {"clean", "decimate", "unwrap", "bake", "write"}
    assert 1 <= facts["aniso_median"] <= facts["aniso_95"] < 1.5
    crowded = replace(asset.report, texture_size=1024, texels_per_face=0.5, faces=1_000_000, volume=-1.0, non_manifold_edges=3)
    words = " ".join(crowded.warnings())
    assert "Atlas of 1024 px too small for 1 M triangles: use 4096 or 100k triangles." in words
    assert "inside out" in words and "3 edges" in words
