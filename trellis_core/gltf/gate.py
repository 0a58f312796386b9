"""The gate for glTF: every number that a mesh reader sees was checked here against the document and its buffers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..mesh.topology import Array
from ..outside import checked, parse_object
from .beside import Beside
from .container import MAX_JSON, Container
from .document import NUMBERS, WIDTHS, Accessor, BufferView, Document, Image, Node, entry

MAX_NODES = 1_000_000
MAX_MADE = 256 << 20
"""Bytes of the largest accessor that is made from nothing (sparse, or zeros), for a few letters of text can ask for it."""
_READ = {
    "KHR_mesh_quantization", "KHR_texture_transform", "EXT_texture_webp", "EXT_texture_avif", "KHR_lights_punctual",
    "KHR_node_visibility", "KHR_animation_pointer", "KHR_xmp_json_ld", "KHR_xmp", "FB_ngon_encoding", "MSFT_lod",
    "KHR_texture_basisu", "MSFT_texture_dds",
}  # fmt: skip
"""Extensions that may be required, besides those of materials: they are read, or say nothing about triangles."""
PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


class Place(NamedTuple):
    """A node's world matrix, float64 [4, 4], and whether it is shown."""

    world: Array
    visible: bool


@dataclass
class Gltf:
    """A checked document with the bytes that it refers to."""

    document: Document
    beside: Beside
    own: memoryview = memoryview(b"")
    _buffers: dict[int, memoryview] = field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes, kind: str, beside: Beside) -> Gltf:
        """
        Args:
            kind: "glb" or "gltf".

        Raises:
            InputError: damaged, of another version, or it needs an extension that is not read.
        """
        if kind == "gltf":
            document, own = parse_object(data, "The glTF document", max_bytes=MAX_JSON), memoryview(b"")
        else:
            container = Container.read(data)
            document, own = container.document, container.binary
        made = cls(checked(Document, document, "The file is no valid glTF 2.0"), beside, own)
        for name in made.document.extensions_required:
            if name in PACKED:
                raise compressed(name)
            if name not in _READ and not name.startswith("KHR_materials_"):
                raise InputError(f"The file requires the extension {name!r}, which is not read. Export it without.")
        return made

    def buffer(self, number: int) -> memoryview:
        """The bytes of a buffer."""
        if number not in self._buffers:
            wanted = entry(self.document.buffers, number, "buffer")
            if wanted.uri is None and number:
                raise InputError(f"The file is damaged: buffer {number} has neither bytes nor an address.")
            data = self.own if wanted.uri is None else memoryview(self.beside.uri(wanted.uri, f"Buffer {number}"))
            if len(data) < wanted.byte_length:
                raise InputError(f"The file is cut short: buffer {number} has {len(data):,} of {wanted.byte_length:,} bytes.")
            self._buffers[number] = data[: wanted.byte_length]
        return self._buffers[number]

    def view(self, number: int) -> tuple[BufferView, memoryview]:
        """A buffer view and its bytes."""
        view = entry(self.document.buffer_views, number, "buffer view")
        if name := next((name for name in PACKED if name in view.extensions), None):
            raise compressed(name)
        data = self.buffer(view.buffer)
        if view.byte_offset + view.byte_length > len(data):
            raise InputError(f"The file is damaged: buffer view {number} reaches past the end of its buffer.")
        return view, data[view.byte_offset : view.byte_offset + view.byte_length]

    def rows(self, number: int, *widths: int) -> Array:
        """The numbers of an accessor, [count, width]; integers that stand for fractions become float32.

        Args:
            widths: those that are allowed.

        Raises:
            InputError: no such accessor, of another width, or outside its buffer.
        """
        accessor = entry(self.document.accessors, number, "accessor")
        what, width = f"accessor {number}", WIDTHS[accessor.type]
        if width not in widths:
            raise InputError(f"The file is damaged: {what} holds {accessor.type}s, which do not belong where it is used.")
        kind = np.dtype(NUMBERS[accessor.component_type])
        if accessor.buffer_view is not None:
            found = self._numbers(accessor.buffer_view, accessor.byte_offset, accessor.count, width, kind, what)
        elif accessor.count * width * kind.itemsize > MAX_MADE:
            raise InputError(f"The file is damaged: {what} asks for {accessor.count:,} rows that the file does not hold.")
        else:
            found = np.zeros((accessor.count, width), kind)
        if accessor.sparse is not None:
            found = self._replaced(found, accessor, what)
        if accessor.normalized and kind.kind in "iu":
            return np.maximum(found.astype(np.float32) / np.float32(np.iinfo(kind).max), np.float32(-1))
        if kind.kind == "f" and not np.isfinite(found).all():
            raise InputError(f"The file is damaged: {what} holds numbers that are not finite.")
        return found

    def image(self, number: int) -> bytes:
        """The bytes of a picture."""
        image: Image = entry(self.document.images, number, "picture")
        if image.buffer_view is not None:
            return bytes(self.view(image.buffer_view)[1])
        if image.uri is None:
            raise InputError(f"The file is damaged: picture {number} has neither bytes nor an address.")
        return self.beside.uri(image.uri, f"Picture {number}")

    @cached_property
    def places(self) -> dict[int, Place]:
        """Where every node of the scene stands.

        Raises:
            InputError: no scene, or nodes that contain each other or have two parents.
        """
        document = self.document
        found: dict[int, Place] = {}
        if document.scenes:
            roots = entry(document.scenes, document.scene or 0, "scene").nodes
        else:
            inner = {child for node in document.nodes for child in node.children}
            roots = tuple(number for number in range(len(document.nodes)) if number not in inner)
        stack = [(number, Place(np.eye(4), True)) for number in reversed(roots)]
        while stack:
            number, parent = stack.pop()
            if number in found:
                raise InputError(f"The file is damaged: node {number} stands in the scene twice, or inside itself.")
            node = entry(document.nodes, number, "node")
            if len(found) >= MAX_NODES:
                raise InputError(f"The file has more than {MAX_NODES:,} nodes.")
            shown = node.extensions.visibility is None or node.extensions.visibility.visible
            found[number] = Place(parent.world @ local_matrix(node), parent.visible and shown)
            stack += [(child, found[number]) for child in reversed(node.children)]
        return found

    def _numbers(self, view_number: int, offset: int, count: int, width: int, kind: np.dtype[Any], what: str) -> Array:
        view, data = self.view(view_number)
        row = width * kind.itemsize
        stride = view.byte_stride or row
        if stride < row or offset + (count - 1) * stride + row > len(data):
            raise InputError(f"The file is damaged: {what} reaches past the end of its buffer view.")
        return np.ndarray((count, width), kind, data, offset, (stride, kind.itemsize))

    def _replaced(self, rows: Array, accessor: Accessor, what: str) -> Array:
        sparse = accessor.sparse
        kind = np.dtype(NUMBERS[sparse.indices.component_type])
        which = self._numbers(sparse.indices.buffer_view, sparse.indices.byte_offset, sparse.count, 1, kind, what)[:, 0]
        if which.max() >= len(rows):
            raise InputError(f"The file is damaged: {what} replaces rows that it does not have.")
        values = self._numbers(
            sparse.values.buffer_view, sparse.values.byte_offset, sparse.count, rows.shape[1], rows.dtype, what
        )
        rows = np.array(rows)
        rows[which] = values
        return rows


def local_matrix(node: Node) -> Array:
    """A node's own 4 x 4 matrix: as it is written, or of its translation, rotation and scale."""
    from trimesh.transformations import quaternion_matrix

    if node.matrix is not None:
        return np.array(node.matrix, np.float64).reshape(4, 4).T
    x, y, z, w = node.rotation
    matrix = quaternion_matrix((w, x, y, z))
    matrix[:3, :3] *= node.scale
    matrix[:3, 3] = node.translation
    return matrix


def compressed(name: str) -> InputError:
    """What is said of geometry in a packed form."""
    return InputError(f"The file's geometry is compressed ({name}), which is not read: save it without compression.")
