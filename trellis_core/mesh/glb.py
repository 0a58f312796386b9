"""Writing one textured mesh as a binary glTF 2.0 file."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .images import MIME_TYPES, encode_image
from .topology import Array

GENERATOR = "TRELLIS.2 Core"
LIMIT = 2**32 - 1
"""Bytes of the largest GLB: the format keeps its length in 32 bits."""

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTEX_BUFFER, _INDEX_BUFFER = 34962, 34963
_CLAY = {"baseColorFactor": [0.6, 0.6, 0.6, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def glb_bytes(
    vertices: Array,
    faces: Array,
    normals: Array,
    uvs: Array | None = None,
    base_color: Array | None = None,
    metallic_roughness: Array | None = None,
    *,
    alpha_mode: str = "OPAQUE",
    alpha_cutoff: float = 0.5,
    double_sided: bool = False,
    image_format: str = "png",
    extras: Mapping[str, Any] | None = None,
) -> bytes:
    """A GLB of one mesh with one metallic-roughness material; without uvs and images the material is plain clay.

    Args:
        vertices: float32 [V, 3], z up; written y up as (x, z, -y).
        faces: int [F, 3].
        normals: float32 [V, 3] unit, z up.
        uvs: float32 [V, 2], v = 0 is the first image row.
        base_color: uint8 [S, S, 3 or 4], sRGB and alpha; alpha is stored unless the mode is OPAQUE.
        metallic_roughness: uint8 [S, S, 3]: occlusion (unused), roughness, metallic.
        alpha_mode: OPAQUE, MASK (at `alpha_cutoff`) or BLEND.
        double_sided: whether back faces are drawn.
        image_format: png, jpeg or webp; see `encode_image`. WebP needs a viewer with EXT_texture_webp.
        extras: anything JSON can say; goes to the asset's extras.
    """
    chunks: list[bytes] = []
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def view(data: bytes, **more: int) -> int:
        offset = sum(map(len, chunks))
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(data), **more})
        chunks.append(data + bytes(-len(data) % 4))
        return len(views) - 1

    def accessor(array: Array, component: int, kind: str, target: int, **more: Any) -> int:
        place = view(np.ascontiguousarray(array).tobytes(), target=target)
        count = array.size if kind == "SCALAR" else len(array)
        accessors.append({"bufferView": place, "componentType": component, "count": count, "type": kind, **more})
        return len(accessors) - 1

    positions = y_up(vertices.astype("<f4"))
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    short = len(vertices) < 65536
    attributes = {
        "POSITION": accessor(positions, _FLOAT, "VEC3", _VERTEX_BUFFER, **bounds),
        "NORMAL": accessor(y_up(normals.astype("<f4")), _FLOAT, "VEC3", _VERTEX_BUFFER),
    }
    if uvs is not None:
        attributes["TEXCOORD_0"] = accessor(uvs.astype("<f4"), _FLOAT, "VEC2", _VERTEX_BUFFER)
    index_type = (_UINT16, "<u2") if short else (_UINT32, "<u4")
    indices = accessor(faces.astype(index_type[1]), index_type[0], "SCALAR", _INDEX_BUFFER)

    images, textures = [], []
    paint: dict[str, Any] = _CLAY
    maps = {}
    if uvs is not None:
        maps = {"base_color": base_color[..., :3] if alpha_mode == "OPAQUE" else base_color}
        maps["metallic_roughness"] = metallic_roughness
        paint = {"baseColorTexture": {"index": 0}, "metallicRoughnessTexture": {"index": 1}}
    for name, pixels in maps.items():
        kind = "png" if image_format == "jpeg" and pixels.shape[2] == 4 else image_format
        data = encode_image(np.ascontiguousarray(pixels), kind)
        images.append({"name": name, "bufferView": view(data), "mimeType": MIME_TYPES[kind]})
        source = {"source": len(images) - 1}
        textures.append({"sampler": 0} | ({"extensions": {"EXT_texture_webp": source}} if kind == "webp" else source))

    material = {
        "pbrMetallicRoughness": paint,
        "alphaMode": alpha_mode,
        "doubleSided": double_sided,
    } | ({"alphaCutoff": alpha_cutoff} if alpha_mode == "MASK" else {})
    sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
    samplers = [sampler | {"wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}]
    pictures = {"textures": textures, "images": images, "samplers": samplers}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": GENERATOR} | ({"extras": dict(extras)} if extras else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [material],
        **(pictures if maps else {}),
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, chunks))}],
    }
    if image_format == "webp" and maps:
        document |= {"extensionsUsed": ["EXT_texture_webp"], "extensionsRequired": ["EXT_texture_webp"]}
    return join_glb(document, b"".join(chunks))


def join_glb(document: Mapping[str, Any], binary: bytes) -> bytes:
    """A GLB of its JSON document and its binary chunk, whose length is a multiple of 4.

    Raises:
        InputError: it would be larger than the format can say.
    """
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = [struct.pack("<I4s", len(binary), b"BIN\0"), binary] if binary else []
    total = 12 + 8 + len(text) + sum(map(len, body))
    if total > LIMIT:
        raise InputError(f"The model takes {total / 1e9:.1f} GB, a GLB can hold 4.2: use a smaller texture or fewer faces.")
    return b"".join([struct.pack("<4sII", b"glTF", 2, total), struct.pack("<I4s", len(text), b"JSON"), text, *body])


def y_up(points: Array) -> Array:
    """z-up rows [N, 3] in glTF's axes: (x, z, -y)."""
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file completely or not at all: beside its place first, then renamed over it.

    Raises:
        InputError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist: create it, or choose another place for {path.name}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file in it.")
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be written: {reason}. Free some space or choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
