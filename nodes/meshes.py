"""Between the host's MESH (y up, batched) and the core's mesh (z up, one)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import Types

from ..trellis_core.errors import InputError
from ..trellis_core.mesh.frames import y_up_to_z_up, z_up_to_y_up
from ..trellis_core.values import Mesh


def to_host(mesh: Mesh) -> Any:
    """A batch of one. What only we know of it stays on the object, for nodes of ours that get it as it is."""
    made = Types.MESH(z_up_to_y_up(mesh.vertices)[None], mesh.faces.long()[None])
    made.cells, made.made_with = mesh.cells, mesh.made_with
    return made


def from_host(mesh: Any) -> Mesh:
    """The only mesh of a batch.

    Raises:
        InputError: there are several, or it has no faces.
    """
    if len(mesh.vertices) != 1:
        raise InputError(f"The MESH holds {len(mesh.vertices)} meshes: give them one by one.")
    vertices, faces = mesh.vertices[0], mesh.faces[0]
    if getattr(mesh, "vertex_counts", None) is not None:
        vertices, faces = vertices[: int(mesh.vertex_counts[0])], faces[: int(mesh.face_counts[0])]
    if not len(faces):
        raise InputError("The mesh has no faces.")
    cells, used = getattr(mesh, "cells", None), getattr(mesh, "made_with", {})
    if cells is not None and len(cells) != len(vertices):
        cells = None
    return Mesh(y_up_to_z_up(vertices.float().cpu()).contiguous(), faces.int().cpu(), cells, used)
