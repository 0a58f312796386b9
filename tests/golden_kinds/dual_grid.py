"""Golden runners: dual grid <-> mesh, volume attributes, sampling, distances, the texturing frame."""

from __future__ import annotations

from tests.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.mesh.dual_grid import dual_grid_to_mesh


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
