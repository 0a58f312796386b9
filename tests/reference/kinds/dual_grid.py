"""Golden runners: dual grid <-> mesh, volume attributes, sampling, distances, the texturing frame."""

from __future__ import annotations

from functools import partial

import torch

from tests.reference.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.mesh.distance import unsigned_distance
from trellis_core.mesh.frames import texturing_mesh_preprocess
from trellis_core.ovoxel.attributes import grid_sample_3d, trilinear_corners
from trellis_core.ovoxel.brick_table import BrickTable
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.ovoxel.mipmap import Texture2D
from trellis_core.ovoxel.textured_mesh import BLEND, MASK, OPAQUE, Material, TexturedMesh, textured_mesh_to_attributes
from trellis_core.ovoxel.voxelize import mesh_to_dual_grid

# Without (enough) regularisation flat regions have no unique minimum: those weight sets only pin voxels and flags.
_COMPARABLE = ("train", "default", "reg_only")


@kind(r"06_fdg2mesh_.*")
def dual_grid_to_triangles(case: Case) -> None:
    config, given = case.json("config"), case.inputs
    modes = {
        "split_none": (None, False),
        "split_weight": (given["split_weight"], False),
        "train": (given["split_weight"], True),
    }
    for mode, (weight, train) in modes.items():
        mesh = dual_grid_to_mesh(
            given["coords"], given["dual_vertices"], given["intersected"], weight, config["grid_size"],
            aabb=config["aabb"], train=train, reference_quirks=True,
        )  # fmt: skip
        assert_equal(mesh.faces, case.outputs[f"{mode}.faces"], f"{mode} faces")
        assert_close(mesh.vertices, case.outputs[f"{mode}.vertices"], 1e-6, f"{mode} vertices")


@kind(r"08_mesh2fdg_.*")
def triangles_to_dual_grid(case: Case) -> None:
    config, given, expected = case.json("config"), case.inputs, case.outputs
    size = config["grid_size"]
    extent = torch.tensor(config["aabb"][1]) - torch.tensor(config["aabb"][0])
    for name, weights in config["weights"].items():
        if f"{name}.dual_vertices" not in expected:
            continue
        grid = mesh_to_dual_grid(given["vertices"], given["faces"], size, aabb=config["aabb"], **weights)
        assert_equal(grid.coords, expected["raw_order_coords"], "coords in order of first touch")
        order = lexicographic(grid.coords)
        assert_equal(grid.intersected[order], expected["intersected"], "flags")
        assert 0 <= grid.dual_vertices.min() <= grid.dual_vertices.max() <= 1
        if name in _COMPARABLE:
            inside = expected[f"{name}.dual_vertices"] / extent * size - expected["coords"]
            close = (grid.dual_vertices[order] - inside).abs().amax(1) < 1e-3
            assert close.float().mean() >= 0.99, f"{name}: only {close.float().mean():.2%} of the dual vertices agree"


def lexicographic(coords: torch.Tensor) -> torch.Tensor:
    """Order of integer rows [N, 3] by x, then y, then z."""
    x, y, z = coords.long().unbind(1)
    return (((x << 20) + y << 20) + z).argsort()


@kind(r"11_unsigned_distance.*")
def closest_points(case: Case) -> None:
    given, expected = case.inputs, case.outputs
    found = unsigned_distance(given["points"], given["vertices"], given["faces"])
    assert_close(found.distance, expected["distance"], 1e-5, "distance")
    assert_close(found.point, expected["closest"], 1e-5, "closest point")
    same = found.face == expected["face"]  # a shared edge belongs to either face
    assert_close(found.uvw[same], expected["uvw"][same], 1e-4, "barycentric weights")


@kind(r"10_grid_sample_3d.*")
def sparse_sampling(case: Case) -> None:
    given, expected = case.inputs, case.outputs
    shape = tuple(case.json("config")["shape"][2:])
    sample = partial(grid_sample_3d, given["feats"], given["coords"], shape)
    assert_close(sample(given["query"]), expected["trilinear"], 1e-5, "trilinear")
    assert_close(sample(given["query"].clamp(min=0), mode="nearest"), expected["nearest"], 1e-5, "nearest")
    for b, query in enumerate(given["query"]):
        of_sample = (given["coords"][:, 0] == b).nonzero()[:, 0]
        local, weights = trilinear_corners(BrickTable.build(given["coords"][of_sample, 1:], shape), query)
        rows = torch.where(local < 0, -1, of_sample[local.long()])
        assert_equal(rows, expected["corner_index"][b], "corner rows")
        assert_close(weights, expected["corner_weight"][b], 1e-5, "corner weights")


@kind(r"texturing_mesh_preprocess.*")
def texturing_frame(case: Case) -> None:
    assert_close(texturing_mesh_preprocess(case.inputs["vertices"]), case.outputs["vertices"], 1e-12, "vertices")
    assert_equal(case.inputs["faces"], case.outputs["faces"], "faces")


@kind(r"09_volattr_.*")
def textured_triangles_to_attributes(case: Case) -> None:
    config, given, expected = case.json("config"), case.inputs, case.outputs
    textures = {
        name: Texture2D.build(given[f"{name}_texture"], wrap=config["wrap"], linear=config["filter"] == "linear")
        for name in ("base_color", "metallic", "roughness", "alpha", "emissive", "normal")
        if f"{name}_texture" in given
    }
    material = Material(
        base_color_factor=tuple(given["base_color_factor"][:3].tolist()),
        metallic_factor=config["metallic_factor"],
        roughness_factor=config["roughness_factor"],
        alpha_mode=(OPAQUE, MASK, BLEND)[config["alpha_mode"]],
        alpha_cutoff=config["alpha_cutoff"],
        alpha_factor=config["alpha_factor"],
        emissive_factor=tuple(config["emissive_factor"]),
        mip_offset=config["mip_level_offset"],
        **textures,
    )
    # Triangles are given relative to the low corner of the grid.
    box = [corner * given["voxel_size"] for corner in given["grid_range"]]
    mesh = TexturedMesh(given["triangles"], given["normals"], given["uvs"], given["material_ids"].long(), (material,))
    found = textured_mesh_to_attributes(mesh, config["grid_size"], aabb=tuple(corner.tolist() for corner in box))
    assert_equal(found.coords, expected["coords"], "coords")
    stored = found.to_uint8()
    for name in ("base_color", "metallic", "roughness", "alpha", "emissive", "normal"):
        # Where normals of several faces nearly cancel, float32 rounding in the reference grows by their length.
        atol = 5e-5 if name == "normal" and "normal" in textures else 1e-5
        assert_close(getattr(found, name), expected[f"{name}_f32"], atol, name)
        assert_close(getattr(stored, name).int().flatten(), expected[f"{name}_u8"].int().flatten(), 1, f"{name} in 8 bits")
