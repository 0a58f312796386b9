"""The one way in for meshes: any file, through a gate, to triangles. Parsing is trimesh's work."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..mesh.frames import y_up_to_z_up
from ..values import Mesh
from .beside import Beside
from .gate import Gltf
from .other_formats import plainly_written
from .plain import MAX_TRIANGLES, plain_glb

if TYPE_CHECKING:
    import trimesh

FORMATS = ("glb", "gltf", "obj", "ply", "stl", "3mf", "off")
"""Kinds of files that are read, by their endings."""


def read_mesh(data: bytes, kind: str, beside: Beside | None = None) -> Mesh:
    """All triangles of a file, placed as its scene says, z up; files are taken to be y up, as glTF is.

    Args:
        kind: one of `FORMATS`, with or without a dot.
        beside: where the file's other parts lie, such as the .bin of a .gltf.

    Raises:
        InputError: of another format, damaged, without triangles, or with something that is not read; says which.
    """
    parts = read_parts(data, kind, beside or Beside(), textured=False)
    vertices = np.concatenate([part.vertices.astype(np.float32) for part in parts])
    first = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces = np.concatenate([part.faces.astype(np.int32) + np.int32(at) for part, at in zip(parts, first, strict=True)])
    release(parts)
    return Mesh(y_up_to_z_up(torch.from_numpy(vertices)).contiguous(), torch.from_numpy(faces))


def read_mesh_file(path: Path) -> Mesh:
    """`read_mesh` of a file and what lies beside it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}.") from None
    return read_mesh(data, path.suffix, Beside(path.parent))


def read_parts(data: bytes, kind: str, beside: Beside, textured: bool) -> list[trimesh.Trimesh]:
    """The meshes of a file, each placed in the world as float64 vertices [V, 3] and whole faces [F, 3].

    Args:
        textured: also read normals, UVs, colours, materials and pictures.

    Raises:
        InputError: see `read_mesh`.
    """
    import trimesh

    kind = kind.lower().lstrip(".")
    if kind not in FORMATS:
        raise InputError(f"Files of the kind {kind!r} are not read; these are: {', '.join(FORMATS)}.")
    if kind in ("glb", "gltf"):
        data, kind = plain_glb(Gltf.read(data, kind, beside), textured), "glb"
    else:
        data = plainly_written(data, kind)
    try:
        options = {} if textured else {"skip_materials": True}
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, resolver=beside, process=False, **options)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        release(scene.geometry.values())
    except InputError:
        raise
    except Exception as error:  # whatever a parser stumbles over in a file from outside
        raise InputError(f"The file cannot be read as .{kind}; it is damaged or of another kind ({_short(error)}).") from error
    _check(parts)
    return parts


def release(geometries: Iterable[Any]) -> None:
    """Let go of the large arrays of trimesh's objects, which refer to themselves and so live until Python's next sweep."""
    for geometry in geometries:
        if hasattr(geometry, "faces"):
            geometry.faces = np.zeros((0, 3), np.int64)
        geometry.vertices = np.zeros((0, 3))


def _check(parts: list[trimesh.Trimesh]) -> None:
    """The last word on what a parser made: shapes, numbers, corners."""
    if not parts:
        raise InputError("The file holds no triangles.")
    if sum(len(part.faces) for part in parts) > MAX_TRIANGLES:
        raise InputError(f"The file has more than {MAX_TRIANGLES:,} triangles: reduce it first.")
    for part in parts:
        vertices, faces = part.vertices, part.faces
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise InputError("The file's mesh is damaged: its vertices lack coordinates, or its faces corners.")
        if not np.isfinite(vertices).all() or np.abs(vertices).max() > np.finfo(np.float32).max:
            raise InputError("The file's mesh is damaged: it has vertices that are not finite.")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise InputError(f"The file's mesh is damaged: its faces point to vertex {faces.max()} of {len(vertices)}.")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
