"""The container of a GLB: its JSON document, its binary chunk, and whatever else it carries."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..outside import parse_object
from .glb import join_glb

MAX_JSON = 1 << 30
"""Bytes of the longest document: a .gltf may hold its buffers as text."""
_JSON, _BIN = b"JSON", b"BIN\0"
_HEADER, _CHUNK = struct.Struct("<4sII"), struct.Struct("<I4s")


@dataclass(frozen=True)
class Container:
    """A GLB in parts.

    Attributes:
        document: the JSON chunk. binary: the binary chunk, empty if there is none.
        others: chunks of kinds that the format does not know, kind and content, to be kept where the file is written again.
    """

    document: dict[str, Any]
    binary: memoryview = memoryview(b"")
    others: tuple[tuple[bytes, memoryview], ...] = ()

    @classmethod
    def read(cls, data: bytes) -> Container:
        """
        Raises:
            InputError: not a whole GLB, or its document is no JSON.
        """
        chunks = _chunks(data)
        if not chunks or chunks[0][0] != _JSON:
            raise InputError("This is not a whole GLB file: it does not begin with its document.")
        document = parse_object(chunks[0][1], "The GLB's document", max_bytes=MAX_JSON)
        binary = next((content for kind, content in chunks[1:] if kind == _BIN), memoryview(b""))
        return cls(document, binary, tuple(chunk for chunk in chunks[1:] if chunk[0] not in (_JSON, _BIN)))

    def to_bytes(self) -> bytes:
        """The file, with the document as it is now and everything else byte for byte as it was."""
        return join_glb(self.document, self.binary, self.others)


def split_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a GLB, or `InputError`."""
    container = Container.read(data)
    return container.document, bytes(container.binary)


def with_extras(glb: bytes, extras: Mapping[str, Any]) -> bytes:
    """The GLB with entries added to its `asset.extras`; geometry, UVs, skins, pictures and unknown chunks stay as they are.

    Raises:
        InputError: not a whole GLB, or above 4 GB.
    """
    container = Container.read(glb)
    if not extras:
        return glb
    asset = container.document.get("asset")
    asset = asset if isinstance(asset, dict) else {"version": "2.0"}
    had = asset.get("extras")
    noted = {**(had if isinstance(had, dict) else {}), **extras}
    return replace(container, document={**container.document, "asset": {**asset, "extras": noted}}).to_bytes()


def _chunks(data: bytes) -> list[tuple[bytes, memoryview]]:
    """Kind and content of each chunk."""
    if len(data) < _HEADER.size or data[:4] != b"glTF":
        raise InputError("This is not a GLB file: it does not begin with glTF. A .gltf document must be named so.")
    _, version, length = _HEADER.unpack_from(data)
    if version != 2:
        raise InputError(f"This GLB has version {version} of the format; version 2 is read. Export it again as glTF 2.0.")
    if length > len(data):
        raise InputError(f"This is not a whole GLB file: {len(data):,} of its {length:,} bytes are there.")
    view, at, found = memoryview(data)[:length], _HEADER.size, []
    while at + _CHUNK.size <= length:
        size, kind = _CHUNK.unpack_from(view, at)
        at += _CHUNK.size
        if at + size > length:
            raise InputError("This is not a whole GLB file: a part of it is cut short.")
        found.append((kind, view[at : at + size]))
        at += size
    return found
