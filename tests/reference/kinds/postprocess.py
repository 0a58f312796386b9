"""Golden cases of the reference's mesh post-processing: remesh, clean-up, simplify, charts, export."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.reference.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.mesh.topology import first_seen_order
from trellis_core.reference import cleanup
from trellis_core.reference.charts import ChartSettings, cluster, unwrap
from trellis_core.reference.distance import ReferenceIndex
from trellis_core.reference.remesh import Grid, narrow_band
from trellis_core.reference.simplify import collapse_round, simplify
from trellis_core.reference.to_glb import ReferenceSettings, reference_asset
from trellis_core.values import Mesh, PbrVoxels


def _mesh(tensors: dict[str, torch.Tensor], prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
    return tensors[f"{prefix}vertices"].numpy(), tensors[f"{prefix}faces"].numpy()


def _assert_mesh(vertices: np.ndarray, faces: np.ndarray, case: Case, prefix: str, atol: float = 1e-6) -> None:
    assert_equal(torch.from_numpy(faces), case.outputs[f"{prefix}faces"], f"{prefix}faces")
    assert_close(torch.from_numpy(vertices), case.outputs[f"{prefix}vertices"], atol, f"{prefix}vertices")


@kind(r"12_remesh_.*")
def narrow_band_remesh(case: Case) -> None:
    config = case.json("config")
    grid = Grid(config["resolution"], config["scale"], np.array(config["center"], np.float64))
    found = narrow_band(ReferenceIndex(*_mesh(case.inputs)), grid, config["band"], config["project_back"])
    assert_equal(torch.from_numpy(found.cells), case.outputs["voxel_coords"], "voxel_coords")
    assert_equal(torch.from_numpy(found.crossings), case.outputs["intersected"], "intersected")
    assert_close(torch.from_numpy(found.points), case.outputs["dual_vertices_grid"], 1e-4, "dual_vertices_grid")
    _assert_mesh(found.vertices, found.faces, case, "", atol=1e-5)


@kind(r"13_cumesh_cleanup.*")
def cleanup_sequence(case: Case) -> None:
    config = case.json("config")
    mesh = _mesh(case.inputs)
    for name, _, _ in config["sequence"]:
        operation = name.split("_", 1)[1]
        if operation == "fill_holes":
            mesh = cleanup.fill_holes(*mesh, config["max_hole_perimeter"])
        elif operation.startswith("simplify_to_"):
            mesh = simplify(*mesh, int(operation.removeprefix("simplify_to_")))
        elif operation.startswith("remove_small_cc_"):
            mesh = cleanup.remove_small_components(*mesh, float(operation.removeprefix("remove_small_cc_")))
        else:
            mesh = getattr(cleanup, operation)(*mesh)
        _assert_mesh(*mesh, case, f"{name}.")
    (normals,) = (name for name in case.outputs if name.endswith("vertex_normals"))
    assert_close(torch.from_numpy(cleanup.vertex_normals(*mesh)), case.outputs[normals], 1e-6, normals)


@kind(r"14_simplify_step.*")
def simplify_step(case: Case) -> None:
    prefixes = [name.removesuffix("faces") for name in case.outputs if name.endswith(".faces")]
    for prefix in prefixes:
        mesh = collapse_round(*_mesh(case.inputs), float(prefix[1:-1]))
        _assert_mesh(*mesh, case, prefix)


@kind(r"15_charts_uv.*")
def charts_and_uv(case: Case) -> None:
    mesh = cleanup.remove_degenerate_faces(*_mesh(case.inputs))
    for name, config in case.json("config").items():
        settings = ChartSettings(
            config.get("threshold_cone_half_angle_rad", math.pi / 2),
            config.get("refine_iterations", 100),
            config.get("global_iterations", 3),
            config.get("smooth_strength", 1.0),
        )
        expected = first_seen_order(case.outputs[f"{name}.chart_id"].numpy())
        assert_equal(torch.from_numpy(cluster(*mesh, settings)), torch.from_numpy(expected), f"{name}.chart_id")
    vertices, faces, uv, source = unwrap(*mesh, case.outputs["to_glb.chart_id"].numpy().astype(np.int64))
    _assert_mesh(vertices, faces, case, "unwrap.", atol=0)
    assert_close(torch.from_numpy(uv), case.outputs["unwrap.uvs"], 1e-6, "unwrap.uvs")
    assert_equal(torch.from_numpy(source), case.outputs["unwrap.vmap"], "unwrap.vmap")


@kind(r"16_to_glb_.*")
def export(case: Case) -> None:
    config = case.json("config")
    given = ("decimation_target", "texture_size", "remesh", "remesh_band", "remesh_project")
    settings = ReferenceSettings(**{name: config[name] for name in given if name in config})
    voxels = PbrVoxels(case.inputs["coords"], case.inputs["attr_volume"], config["grid_size"])
    asset = reference_asset(Mesh(*map(torch.from_numpy, _mesh(case.inputs))), voxels, settings)

    _assert_mesh(asset.vertices, asset.faces, case, "", atol=1e-5)
    assert_close(torch.from_numpy(asset.normals), case.outputs["normals"], 1e-4, "normals")
    uv = torch.from_numpy(asset.uv * np.float32([1, -1]) + np.float32([0, 1]))
    assert_close(uv, case.outputs["uv_trimesh"], 1e-6, "uv_trimesh")
    assert asset.double_sided == config["doubleSided"]
    # Texels on chart borders depend on the rasteriser, and through them the inpainted gaps.
    for name, image in (("base_color_alpha", asset.base_color), ("metallic_roughness", asset.metallic_roughness)):
        off = np.abs(image.astype(int) - case.outputs[name].numpy().astype(int)).max(axis=2)
        near = float((off <= 2).mean())
        assert near >= 0.98, f"{name}: only {near:.2%} of the texels within 2/255, worst {off.max()}"
