"""Small glTF files, put together by hand so that each can hold what a test is about."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from trellis_core.gltf.glb import join_glb

TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}

POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
"""Corners of a tetrahedron, y up."""
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.uint16)


class GltfFile:
    """A document and its one buffer; `document` may be changed at will before it is written."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}], "accessors": [], "bufferViews": [],
        }  # fmt: skip
        self.body = b""

    def view(self, data: bytes, **more: Any) -> int:
        """A buffer view of its own."""
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data), **more})
        self.body += data + bytes(-len(data) % 4)
        return len(self.document["bufferViews"]) - 1

    def accessor(self, rows: np.ndarray, **more: Any) -> int:
        """Rows [N] or [N, width] in a view of their own."""
        rows = np.ascontiguousarray(rows)
        entry = {
            "bufferView": self.view(rows.tobytes()), "componentType": COMPONENTS[rows.dtype.str[1:]], "count": len(rows),
            "type": TYPES[rows[0].size], **more,
        }  # fmt: skip
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def primitive(self, points: np.ndarray = POINTS, faces: np.ndarray | None = FACES, **more: Any) -> dict[str, Any]:
        """A primitive of the first mesh."""
        entry: dict[str, Any] = {"attributes": {"POSITION": self.accessor(points)}, **more}
        if faces is not None:
            entry["indices"] = self.accessor(np.asarray(faces).ravel())
        self.document["meshes"][0]["primitives"].append(entry)
        return entry

    def glb(self) -> bytes:
        """As one file."""
        return join_glb({**self.document, "buffers": self.document.get("buffers", [{"byteLength": len(self.body)}])}, self.body)

    def gltf(self, uri: str | None = None) -> bytes:
        """As a document whose buffer is at `uri`, or written into it."""
        uri = uri or "data:application/octet-stream;base64," + base64.b64encode(self.body).decode()
        return json.dumps({**self.document, "buffers": [{"byteLength": len(self.body), "uri": uri}]}).encode()


def tetrahedron() -> GltfFile:
    """The smallest solid."""
    file = GltfFile()
    file.primitive()
    return file


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume: positive if the faces are wound outward."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)
