"""Meshes that were not decoded here: of any unit, anywhere, of any number of faces. They are worked on in the unit cube."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..settings import JUDGED_MESH_GRID
from ..values import Mesh
from .clean import check_mesh
from .solid.dual_quads import dual_quads
from .topology import Array

_MULTIPLE = 32  # of which every decoder's grid is one


@dataclass(frozen=True)
class Fitted:
    """A mesh in the unit cube, and the way back.

    Attributes:
        mesh: its bounding box centred, the longest side 1.
        centre: float64 [3] and longest side, in the mesh's own unit.
    """

    mesh: Mesh
    centre: Array
    side: float

    def put_back(self, mesh: Mesh) -> Mesh:
        """A mesh made of the fitted one, in the size and place of the first."""
        vertices = mesh.vertices.double() * self.side + torch.from_numpy(self.centre)
        return replace(mesh, vertices=vertices.float(), cells=None)


def fitted(mesh: Mesh) -> Fitted:
    """
    Raises:
        InputError: the mesh is malformed. EmptyResultError: it has no face with an area.
    """
    vertices, faces = check_mesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy())
    used = vertices[np.unique(faces)].astype(np.float64)
    low, high = used.min(0), used.max(0)
    side = float((high - low).max())
    inside = ((vertices.astype(np.float64) - (low + high) / 2) / side).astype(np.float32)
    return Fitted(Mesh(torch.from_numpy(inside), torch.from_numpy(faces)), (low + high) / 2, side)


def judged_resolution(mesh: Mesh) -> int:
    """Voxels along the longest side of a fitted mesh that keep what its edges show, within `JUDGED_MESH_GRID`."""
    return int(np.clip(round(1 / max(_median_edge(mesh), 1e-6)), *JUDGED_MESH_GRID))


def decoded_resolution(mesh: Mesh) -> int | None:
    """Voxels per unit of the grid that a mesh was decoded on; None if its triangles are not those of a dual grid."""
    if float(mesh.vertices.abs().max()) > 0.5 + 1e-6:
        return None
    vertices, faces = mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy()
    if mesh.cells is not None:  # vertices lie about half a voxel behind their voxel's corner
        return round(float(((mesh.cells + 0.5).sum() / (mesh.vertices.double() + 0.5).sum()).item()))
    grid = round(1 / max(_median_edge(mesh), 1e-6) / _MULTIPLE) * _MULTIPLE
    around = (grid + step * _MULTIPLE for step in (0, -1, 1, -2, 2))
    return next((n for n in around if n > 0 and dual_quads(vertices, faces, n) is not None), None)


def _median_edge(mesh: Mesh) -> float:
    corners: Tensor = mesh.vertices[mesh.faces.long()]
    return float((corners - corners.roll(1, dims=1)).norm(dim=-1).median())
