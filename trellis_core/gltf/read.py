"""Reading triangles back from files, and editing what a GLB says about itself."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..mesh.frames import y_up_to_z_up
from ..mesh.topology import Array
from ..values import Mesh
from .glb import join_glb

_JSON, _BIN = b"JSON", b"BIN\0"
_TRIANGLES = 4
_NUMBERS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


def read_mesh(data: bytes, file_format: str) -> Mesh:
    """All triangles of a file, z up, positions as they are.

    Args:
        file_format: "glb"; obj, ply, stl, gltf and others where the `trimesh` package is installed. Files are taken to
            be y up, as glTF is.

    Raises:
        InputError: damaged, of an unknown format, or without faces.
    """
    kind = file_format.lower().lstrip(".")
    vertices, faces = _read_glb(data) if kind == "glb" else _read_by_trimesh(data, kind)
    if not len(faces):
        raise InputError("The file holds no triangles.")
    if not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError("The file's mesh is damaged: vertices that are not finite, or faces that point past them.")
    upright = y_up_to_z_up(torch.from_numpy(vertices.astype(np.float32)))
    return Mesh(upright.contiguous(), torch.from_numpy(faces.astype(np.int32)))


def with_extras(glb: bytes, extras: Mapping[str, Any]) -> bytes:
    """The GLB with entries added to its `asset.extras`.

    Raises:
        InputError: not a whole GLB, or above 4 GB.
    """
    document, binary = split_glb(glb)
    if extras:
        asset = document.setdefault("asset", {"version": "2.0"})
        asset["extras"] = {**asset.get("extras", {}), **extras}
    return join_glb(document, binary)


def split_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a GLB, or `InputError`."""
    try:
        magic, version, length = struct.unpack_from("<4sII", data)
        size, kind = struct.unpack_from("<I4s", data, 12)
        if magic != b"glTF" or version != 2 or kind != _JSON or length != len(data):
            raise ValueError("its header does not fit")
        document = json.loads(data[20 : 20 + size])
        rest = data[20 + size :]
        if not rest:
            return document, b""
        size, kind = struct.unpack_from("<I4s", rest)
        if kind != _BIN or size > len(rest) - 8:
            raise ValueError("its binary part is cut short")
        return document, rest[8 : 8 + size]
    except (struct.error, ValueError) as error:
        raise InputError(f"This is not a whole GLB file: {error}.") from error


def _read_glb(data: bytes) -> tuple[Array, Array]:
    document, binary = split_glb(data)
    if used := set(document.get("extensionsRequired", ())) & {"KHR_draco_mesh_compression", "EXT_meshopt_compression"}:
        raise InputError(f"The file is compressed ({', '.join(used)}), which this program does not read.")
    vertices, faces, first = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    try:
        for mesh, matrix in _placed_meshes(document):
            for part in document["meshes"][mesh]["primitives"]:
                if part.get("mode", _TRIANGLES) != _TRIANGLES:
                    continue
                points = _accessor(document, binary, part["attributes"]["POSITION"])
                count = len(points)
                corners = _accessor(document, binary, part["indices"]).ravel() if "indices" in part else np.arange(count)
                vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
                faces.append(corners.astype(np.int64).reshape(-1, 3) + first)
                first += count
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"The GLB is damaged: {type(error).__name__} {error}.") from error
    return np.concatenate(vertices), np.concatenate(faces)


def _placed_meshes(document: Mapping[str, Any]) -> list[tuple[int, Array]]:
    """Every mesh of the scene with its 4 x 4 world matrix."""
    nodes, found = document.get("nodes", []), []
    scenes = document.get("scenes") or [{"nodes": range(len(nodes))}]
    stack = [(index, np.eye(4), 0) for index in scenes[document.get("scene", 0)].get("nodes", [])]
    while stack:
        index, parent, depth = stack.pop()
        if depth > len(nodes):
            raise ValueError("nodes contain each other")
        node = nodes[index]
        matrix = parent @ _local_matrix(node)
        if "mesh" in node:
            found.append((node["mesh"], matrix))
        stack += [(child, matrix, depth + 1) for child in node.get("children", [])]
    return found


def _local_matrix(node: Mapping[str, Any]) -> Array:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _accessor(document: Mapping[str, Any], binary: bytes, index: int) -> Array:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    kind = np.dtype(_NUMBERS[entry["componentType"]])
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    start = view.get("byteOffset", 0) + entry.get("byteOffset", 0)
    stride = view.get("byteStride", width * kind.itemsize)
    values = np.ndarray((entry["count"], width), kind, binary, start, (stride, kind.itemsize))
    if entry.get("normalized") and kind.kind in "iu":
        return np.maximum(values / np.float64(np.iinfo(kind).max), -1.0)
    return values


def _read_by_trimesh(data: bytes, kind: str) -> tuple[Array, Array]:
    try:
        import trimesh
    except ImportError:
        raise InputError(f"Reading .{kind} files needs the trimesh package (pip install trimesh). GLB needs none.") from None
    try:
        mesh = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh", process=False)
        return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError) as error:
        raise InputError(f"The file cannot be read as .{kind}: {error}.") from error
