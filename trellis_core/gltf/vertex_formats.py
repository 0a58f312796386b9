"""Vertex and index data as glTF stores it: plain floats, or rounded to integers (KHR_mesh_quantization)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..mesh.topology import Array

FLOAT, UINT32, INT16, UINT16, INT8 = 5126, 5125, 5122, 5123, 5120


@dataclass(frozen=True)
class Stream:
    """The data of one accessor.

    Attributes:
        rows: uint8 [N, stride], stride a multiple of 4 but for indices.
        component: glTF's number of the component type.
        kind: SCALAR, VEC2, VEC3 or VEC4.
        normalized: whether integers stand for -1..1 or 0..1.
        bounds: least and greatest components as stored, for positions.
    """

    rows: Array
    component: int
    kind: str
    normalized: bool = False
    bounds: tuple[list[float], list[float]] | None = None


def plain(values: Array, *, bounded: bool = False) -> Stream:
    """float32 [N, C] as it is."""
    data = np.ascontiguousarray(values, "<f4")
    bounds = (data.min(0).tolist(), data.max(0).tolist()) if bounded else None
    return Stream(_bytes(data), FLOAT, f"VEC{data.shape[1]}", bounds=bounds)


def indices(faces: Array, count: int) -> Stream:
    """Corners of int [F, 3] into `count` vertices, two bytes each where these suffice."""
    short = count < 65536
    data = np.ascontiguousarray(faces.reshape(-1, 1), "<u2" if short else "<u4")
    return Stream(_bytes(data), UINT16 if short else UINT32, "SCALAR")


def rounded_positions(points: Array) -> tuple[Stream, Array, float]:
    """Positions float32 [N, 3] in 16 bits, and the translation [3] and scale that a node needs to undo it.

    The error is at most 1/65534 of the bounding box's longest side.
    """
    low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
    centre, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-30)
    data = np.rint((points - centre) / half * 32767).astype("<i2")
    return Stream(_padded(data), INT16, "VEC3", True, (data.min(0).tolist(), data.max(0).tolist())), centre, half


def rounded_directions(vectors: Array) -> Stream:
    """Unit vectors float32 [N, 3], or tangents [N, 4], in 8 bits a component."""
    return Stream(_padded(np.rint(vectors * 127).astype("i1")), INT8, f"VEC{vectors.shape[1]}", True)


def rounded_uvs(uvs: Array) -> Stream:
    """Texture coordinates float32 [N, 2] in 0..1 in 16 bits: finer than a tenth of a texel up to 4096."""
    return Stream(_bytes(np.rint(np.clip(uvs, 0, 1) * 65535).astype("<u2")), UINT16, "VEC2", True)


def near_order(faces: Array, uvs: Array, count: int) -> tuple[Array, Array]:
    """An order in which neighbours follow one another: faces int64 [F] along a Z-curve over the atlas, vertices by first use.

    Small differences between neighbours are what compression lives on.
    """
    centre = (uvs[faces].mean(1).clip(0, 1) * 65535).astype(np.uint64)
    face_order = np.argsort(_spread(centre[:, 0]) | (_spread(centre[:, 1]) << np.uint64(1)), kind="stable")
    used, first = np.unique(faces[face_order].reshape(-1), return_index=True)
    vertex_order = used[np.argsort(first, kind="stable")]
    left_out = np.setdiff1d(np.arange(count), vertex_order, assume_unique=True)
    return face_order, np.concatenate([vertex_order, left_out])


def _spread(bits: Array) -> Array:
    """The 16 bits of each number apart, a zero between any two."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits


def _bytes(data: Array) -> Array:
    return np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1)


def _padded(data: Array) -> Array:
    """Rows of bytes, filled up to a multiple of 4."""
    rows = _bytes(data)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
