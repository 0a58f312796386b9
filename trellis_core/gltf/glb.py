"""Writing textured meshes as a binary glTF 2.0 file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..mesh.topology import Array
from . import vertex_formats as streams
from .images import MIME_TYPES, encode_image
from .meshopt import encode_indices, encode_vertices
from .placement import Placement
from .vertex_formats import Stream

Buffer = bytes | bytearray | memoryview

GENERATOR = "TRELLIS.2 Core"
LIMIT = 2**32 - 1
"""Bytes of the largest GLB: the format keeps its length in 32 bits."""

_VERTEX_BUFFER, _INDEX_BUFFER = 34962, 34963
_CLAY = {"baseColorFactor": [0.6, 0.6, 0.6, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_SAMPLER = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}
_WEBP, _QUANTIZED, _MESHOPT, _LOD = "EXT_texture_webp", "KHR_mesh_quantization", "EXT_meshopt_compression", "MSFT_lod"
_COVERAGE = 0.25
"""Share of the screen below which the next level of detail takes over; each further one at a quarter of it."""


@dataclass(frozen=True)
class Part:
    """A mesh with one metallic-roughness material, z up in object space; without uvs and images it is plain clay.

    Attributes:
        vertices: float32 [V, 3]. faces: int [F, 3]. normals: float32 [V, 3] unit.
        uvs: float32 [V, 2], v = 0 is the first image row.
        base_color: uint8 [S, S, 3 or 4], sRGB and alpha; alpha is stored unless the mode is OPAQUE.
        material: uint8 [S, S, 3]: ambient occlusion, roughness, metallic.
        occlusion: whether the first channel of `material` means something.
        tangents: float32 [V, 4], see `tangents.vertex_tangents`. normal_map: uint8 [S, S, 3], which needs them.
        alpha_mode: OPAQUE, MASK (at `alpha_cutoff`) or BLEND.
        double_sided: whether back faces are drawn.
    """

    vertices: Array
    faces: Array
    normals: Array
    uvs: Array | None = None
    base_color: Array | None = None
    material: Array | None = None
    occlusion: bool = False
    tangents: Array | None = None
    normal_map: Array | None = None
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    double_sided: bool = False


@dataclass(frozen=True)
class Packing:
    """How a file stores its parts.

    Attributes:
        image_format: png, jpeg or webp. Pictures with alpha that should be JPEG become PNG. WebP needs a viewer with
            EXT_texture_webp, which is then listed as required, for there is no second copy to fall back to. Maps that are no
            colours are lossless in it from quality 90 on, and JPEG below.
        image_quality: of JPEG and WebP, 1..100.
        compression: "none"; "quantize" stores rounded numbers (KHR_mesh_quantization, required); "meshopt" also packs them
            (EXT_meshopt_compression, required).
        placement: where the model stands.
    """

    image_format: str = "png"
    image_quality: int = 90
    compression: str = "none"
    placement: Placement = Placement()


def glb_bytes(parts: Part | Sequence[Part], packing: Packing = Packing(), extras: Mapping[str, Any] | None = None) -> bytes:
    """A GLB of a part; of several, the first and its coarser levels of detail (MSFT_lod).

    Viewers that do not know MSFT_lod show the first. Equal input gives equal bytes.

    Args:
        extras: anything JSON can say; goes to the asset's extras.

    Raises:
        InputError: unknown image format, or a file above 4 GB.
    """
    parts = [parts] if isinstance(parts, Part) else list(parts)
    file = _File(packing)
    for number, part in enumerate(parts):
        file.add(part, f"model_LOD{number}" if len(parts) > 1 else "model")
    return join_glb(*file.finished(extras))


class _File:
    """The lists of a glTF document as they grow, and the bytes behind them."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.chunks: list[bytes] = []
        self.lists: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("nodes", "meshes", "materials", "textures", "images", "accessors", "bufferViews")
        }
        self.required: set[str] = set()
        self.length = self.unpacked = 0

    def add(self, part: Part, name: str) -> None:
        """Append a part as a node."""
        node: dict[str, Any] = {"name": name, "mesh": len(self.lists["meshes"])}
        attributes, corners = self._geometry(part, node)
        material = self._append("materials", self._material(part))
        primitive = {"attributes": attributes, "indices": corners, "material": material}
        self._append("meshes", {"name": name, "primitives": [primitive]})
        self._append("nodes", node)

    def finished(self, extras: Mapping[str, Any] | None) -> tuple[dict[str, Any], bytes]:
        """The document and its binary chunk."""
        nodes = self.lists["nodes"]
        used = set(self.required)
        if len(nodes) > 1:
            used.add(_LOD)
            nodes[0]["extensions"] = {_LOD: {"ids": list(range(1, len(nodes)))}}
            nodes[0]["extras"] = {"MSFT_screencoverage": [_COVERAGE**k for k in range(1, len(nodes))] + [0.0]}
        buffers: list[dict[str, Any]] = [{"byteLength": self.length}]
        if self.unpacked:
            buffers.append({"byteLength": self.unpacked, "extensions": {_MESHOPT: {"fallback": True}}})
        document = {
            "asset": {"version": "2.0", "generator": GENERATOR} | ({"extras": dict(extras)} if extras else {}),
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            **{name: entries for name, entries in self.lists.items() if entries},
            **({"samplers": [_SAMPLER]} if self.lists["textures"] else {}),
            "buffers": buffers,
            **({"extensionsUsed": sorted(used)} if used else {}),
            **({"extensionsRequired": sorted(self.required)} if self.required else {}),
        }
        return document, b"".join(self.chunks)

    def _append(self, name: str, entry: dict[str, Any]) -> int:
        self.lists[name].append(entry)
        return len(self.lists[name]) - 1

    def _geometry(self, part: Part, node: dict[str, Any]) -> tuple[dict[str, int], int]:
        """Accessors of the attributes and of the indices; `node` is told what undoes the rounding."""
        place = self.packing.placement
        points, normals = place.points(part.vertices), place.directions(part.normals)
        uvs, faces, tangents = part.uvs, part.faces, part.tangents
        if tangents is not None:
            tangents = np.column_stack([place.directions(tangents[:, :3]), tangents[:, 3]])
        found: dict[str, Stream] = {}
        if self.packing.compression == "none":
            found["POSITION"], found["NORMAL"] = streams.plain(points, bounded=True), streams.plain(normals)
            if tangents is not None:
                found["TANGENT"] = streams.plain(tangents)
            if uvs is not None:
                found["TEXCOORD_0"] = streams.plain(uvs)
        else:
            self.required.add(_QUANTIZED)
            if uvs is not None:
                face_order, order = streams.near_order(faces, uvs, len(points))
                rank = np.empty(len(order), np.int64)
                rank[order] = np.arange(len(order))
                faces, points, normals, uvs = rank[faces[face_order]], points[order], normals[order], uvs[order]
                tangents = None if tangents is None else tangents[order]
            found["POSITION"], centre, half = streams.rounded_positions(points)
            node |= {"translation": centre.tolist(), "scale": [half] * 3}
            found["NORMAL"] = streams.rounded_directions(normals)
            if tangents is not None:
                found["TANGENT"] = streams.rounded_directions(tangents)
            if uvs is not None:
                found["TEXCOORD_0"] = streams.rounded_uvs(uvs)
        attributes = {name: self._accessor(stream, _VERTEX_BUFFER) for name, stream in found.items()}
        return attributes, self._accessor(streams.indices(faces, len(points)), _INDEX_BUFFER)

    def _accessor(self, stream: Stream, target: int) -> int:
        entry = {
            "bufferView": self._rows(stream.rows, target),
            "componentType": stream.component,
            "count": len(stream.rows),
            "type": stream.kind,
        }
        if stream.normalized:
            entry["normalized"] = True
        if stream.bounds is not None:
            entry["min"], entry["max"] = stream.bounds
        return self._append("accessors", entry)

    def _rows(self, rows: Array, target: int) -> int:
        """A buffer view of uint8 [N, stride], packed if the file is."""
        count, stride = rows.shape
        indices = target == _INDEX_BUFFER
        view: dict[str, Any] = {"target": target} | ({} if indices else {"byteStride": stride})
        if self.packing.compression != "meshopt":
            return self._append("bufferViews", {**self._bytes(rows.tobytes()), **view})
        self.required.add(_MESHOPT)
        data = encode_indices(rows.view(f"<u{stride}")[:, 0]) if indices else encode_vertices(rows)
        mode = "INDICES" if indices else "ATTRIBUTES"
        packed = {**self._bytes(data), "byteStride": stride, "mode": mode, "count": count}
        view |= {"buffer": 1, "byteOffset": self.unpacked, "byteLength": rows.size, "extensions": {_MESHOPT: packed}}
        self.unpacked += rows.size + -rows.size % 4
        return self._append("bufferViews", view)

    def _bytes(self, data: bytes) -> dict[str, int]:
        place = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data)}
        self.chunks.append(data + bytes(-len(data) % 4))
        self.length += len(self.chunks[-1])
        return place

    def _material(self, part: Part) -> dict[str, Any]:
        entry: dict[str, Any] = {"pbrMetallicRoughness": _CLAY, "alphaMode": part.alpha_mode, "doubleSided": part.double_sided}
        if part.alpha_mode == "MASK":
            entry["alphaCutoff"] = part.alpha_cutoff
        if part.uvs is None or part.base_color is None or part.material is None:
            return entry
        color = part.base_color[..., :3] if part.alpha_mode == "OPAQUE" else part.base_color
        paint = {"index": self._texture("base_color", color)}, {"index": self._texture("metallic_roughness", part.material)}
        entry["pbrMetallicRoughness"] = dict(zip(("baseColorTexture", "metallicRoughnessTexture"), paint, strict=True))
        if part.occlusion:
            entry["occlusionTexture"] = paint[1]
        if part.normal_map is not None:
            entry["normalTexture"] = {"index": self._texture("normal", part.normal_map)}
        return entry

    def _texture(self, name: str, pixels: Array) -> int:
        kind, quality = self.packing.image_format, self.packing.image_quality
        if kind == "jpeg" and pixels.shape[2] == 4:
            kind = "png"
        if kind == "webp" and name != "base_color":
            # Lossy WebP stores chroma at half the size, which smears channels that are no colours.
            kind, quality = ("webp", 100) if quality >= 90 else ("jpeg", quality)
        view = self._append("bufferViews", self._bytes(encode_image(np.ascontiguousarray(pixels), kind, quality)))
        source = {"source": self._append("images", {"name": name, "bufferView": view, "mimeType": MIME_TYPES[kind]})}
        if kind == "webp":
            self.required.add(_WEBP)
            source = {"extensions": {_WEBP: source}}
        return self._append("textures", {"sampler": 0, **source})


def join_glb(document: Mapping[str, Any], binary: Buffer, others: Sequence[tuple[bytes, Buffer]] = ()) -> bytes:
    """A GLB of its JSON document and its binary chunk; `others` are further chunks, of four letters and their content each.

    Chunks are filled up to multiples of four bytes.

    Raises:
        InputError: it would be larger than the format can say.
    """
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body: list[Buffer] = []
    for kind, content in [(b"BIN\0", binary), *others] if len(binary) else others:
        padding = -len(content) % 4
        body += [struct.pack("<I4s", len(content) + padding, kind), content, bytes(padding)]
    total = 12 + 8 + len(text) + sum(map(len, body))
    if total > LIMIT:
        raise InputError(f"The model takes {total / 1e9:.1f} GB, a GLB can hold 4.2: use a smaller texture or fewer faces.")
    return b"".join([struct.pack("<4sII", b"glTF", 2, total), struct.pack("<I4s", len(text), b"JSON"), text, *body])
