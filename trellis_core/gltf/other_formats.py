"""The gate for OBJ, PLY, STL and 3MF: valid spellings that trimesh takes wrongly are put in the usual one, lies are refused."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

MAX_UNPACKED = 1 << 30
"""Bytes that a 3MF, which is a zip, may hold."""

_FACE_COMMENT = re.compile(r"^([vf][^\n#]*)#.*$", re.MULTILINE)
_RELATIVE = re.compile(r"^f[^\n]*[ /]-", re.MULTILINE)
_ZERO = re.compile(r"^f (?:[^\n]* )?0+(?=[ /\n])", re.MULTILINE)
_SHORT = re.compile(r"^v +[^ \n]+(?: +[^ \n]+)? *$", re.MULTILINE)
_COMMA = re.compile(r"^v [^\n]*\d,\d", re.MULTILINE)
_PLY_NUMBERS = {
    "char": "b", "int8": "b", "uchar": "B", "uint8": "B", "short": "h", "int16": "h", "ushort": "H", "uint16": "H",
    "int": "i", "int32": "i", "uint": "I", "uint32": "I", "float": "f", "float32": "f", "double": "d", "float64": "d",
}  # fmt: skip


def plainly_written(data: bytes, kind: str) -> bytes:
    """A file of `kind` (obj, ply, stl, 3mf, off) with the same content, written as trimesh understands it.

    Raises:
        InputError: it is cut short, or says what cannot be; says where.
    """
    gates = {"obj": _obj, "ply": _ply, "stl": _stl, "3mf": _3mf}
    return gates[kind](data) if kind in gates else data


def _obj(data: bytes) -> bytes:
    """Tabs, indentation, comments behind faces, old Mac line ends; and corners counted backwards."""
    from trimesh.util import decode_text

    text = decode_text(data).replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ").replace("\t", " ") + "\n"
    text = re.sub(r"^ +", "", text, flags=re.MULTILINE)
    text = _FACE_COMMENT.sub(r"\1", text)
    if found := _COMMA.search(text):
        raise InputError(f"The OBJ writes numbers with decimal commas ({found[0][:40]!r}): export it with decimal points.")
    if found := _SHORT.search(text):
        raise InputError(f"The OBJ is damaged: {found[0][:40]!r} has fewer than three coordinates.")
    if found := _ZERO.search(text):
        raise InputError(f"The OBJ is damaged: {found[0][:40]!r} names vertex 0; the first one is 1.")
    return (_counted_forwards(text) if _RELATIVE.search(text) else text).encode()


def _counted_forwards(text: str) -> str:
    """An OBJ whose faces count back from the line they stand on, with numbers from the file's start."""
    seen = {"v": 0, "vt": 0, "vn": 0}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        word = line[: line.find(" ")]
        if word in seen:
            seen[word] += 1
        elif word == "f":
            lines[number] = "f " + " ".join(_corner(corner, seen) for corner in line[2:].split())
    return "\n".join(lines)


def _corner(text: str, seen: dict[str, int]) -> str:
    parts = text.split("/")
    for place, (part, count) in enumerate(zip(parts, seen.values(), strict=False)):
        if part.startswith("-"):
            back = int(part) if part[1:].isdigit() and len(part) < 12 else 0
            if not 0 < -back <= count:
                raise InputError(f"The OBJ is damaged: the corner {text[:40]!r} points before the beginning.")
            parts[place] = str(count + 1 + back)
    return "/".join(parts)


@dataclass
class _Element:
    """A list of a PLY: its name, its rows, and (name, number, counter) of each property; counter only for lists."""

    name: str
    count: int
    properties: list[tuple[str, str, str | None]]

    @property
    def row(self) -> int | None:
        """Bytes of a row, None where they vary."""
        if any(counter for _, _, counter in self.properties):
            return None
        return sum(struct.calcsize(kind) for _, kind, _ in self.properties)


def _ply(data: bytes) -> bytes:
    """Comments in the header are dropped but for texture names; binary polygons of several sizes become triangles."""
    end = re.search(rb"^end_header *\r?\n", data, re.MULTILINE)
    if not data.startswith(b"ply") or end is None:
        raise InputError("This is no PLY file: its header is missing or has no end.")
    lines = [line.strip() for line in data[: end.start()].decode("latin-1").splitlines()]
    kept = [n for n in lines if n and not n.startswith(("obj_info", "comment")) or n.startswith("comment TextureFile")]
    elements = _ply_elements(kept)
    if any(element.name == "tristrips" and element.count for element in elements):
        raise InputError("The PLY holds strips of triangles, which are not read: save it with faces.")
    body = data[end.end() :]
    form = next((line.split()[1] for line in kept if line.startswith("format ")), "")
    if form == "ascii":
        rows = sum(element.count for element in elements)
        if body.count(b"\n") + 1 < rows:
            raise InputError(f"The PLY is cut short: its header promises {rows:,} lines.")
    elif form in ("binary_little_endian", "binary_big_endian"):
        return _binary_ply(kept, elements, body, "<" if form == "binary_little_endian" else ">")
    else:
        raise InputError(f"The PLY has the unknown format {form[:40]!r}.")
    return "\n".join([*kept, "end_header\n"]).encode("latin-1") + body


def _ply_elements(lines: list[str]) -> list[_Element]:
    elements: list[_Element] = []
    for words in (line.split() for line in lines):
        try:
            if words[0] == "element":
                elements.append(_Element(words[1], int(words[2]), []))
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append((words[4], _PLY_NUMBERS[words[3]], _PLY_NUMBERS[words[2]]))
            elif words[0] == "property":
                elements[-1].properties.append((words[2], _PLY_NUMBERS[words[1]], None))
        except (IndexError, KeyError, ValueError):
            raise InputError(f"The PLY is damaged: its header says {' '.join(words)[:60]!r}.") from None
    if any(element.count < 0 for element in elements):
        raise InputError("The PLY is damaged: its header counts below zero.")
    return elements


def _binary_ply(lines: list[str], elements: list[_Element], body: bytes, order: str) -> bytes:
    """Whole, with triangles where its faces have several sizes."""
    at, pieces = 0, []
    for element in elements:
        start, faces = at, None
        if element.row is not None:
            at += element.row * element.count
        else:
            at, faces = _polygons(element, body, at, order)
        if at > len(body):
            raise InputError(f"The PLY is cut short: it holds fewer than its {element.count:,} rows of {element.name!r}.")
        if faces is None:
            pieces.append(body[start:at])
        else:
            rows = np.zeros(len(faces), [("count", "u1"), ("corners", f"{order}i4", 3)])
            rows["count"], rows["corners"] = 3, faces
            pieces.append(rows.tobytes())
            place = next(i for i, line in enumerate(lines) if line.split()[:2] == ["element", element.name])
            end = place + 1 + len(element.properties)
            lines[place:end] = [f"element {element.name} {len(faces)}", "property list uchar int vertex_indices"]
    return "\n".join([*lines, "end_header\n"]).encode("latin-1") + b"".join(pieces)


_FACE_LISTS = ("vertex_indices", "vertex_index")


def _polygons(element: _Element, body: bytes, at: int, order: str) -> tuple[int, np.ndarray | None]:
    """Where a list's bytes end, and its polygons as triangles int64 [F, 3] if they have several sizes.

    What else stands in rows of several sizes, such as colours of faces, is left aside.
    """
    steps = [
        (name in _FACE_LISTS, struct.Struct(order + (counter or kind)), struct.calcsize(kind) if counter else 0)
        for name, kind, counter in element.properties
    ]
    kind = next((kind for name, kind, _ in element.properties if name in _FACE_LISTS), "i")
    starts, sizes = np.zeros((2, min(element.count, len(body))), np.int64)
    for row in range(element.count):
        for corners, first, width in steps:
            if at + first.size > len(body):
                raise InputError(f"The PLY is cut short: it holds {row:,} of its {element.count:,} rows of {element.name!r}.")
            size = int(first.unpack_from(body, at)[0]) if width else 0
            at += first.size
            if corners:
                starts[row], sizes[row] = at, size
            at += size * width
            if size < 0 or at > len(body):
                raise InputError(f"The PLY is damaged or cut short at row {row:,} of {element.name!r}.")
    if len(np.unique(sizes)) < 2:
        return at, None
    raw, found = np.frombuffer(body, np.uint8), [np.zeros((0, 3), np.int64)]
    for size in np.unique(sizes[sizes > 2]):
        bytes_of = starts[sizes == size][:, None] + np.arange(size * struct.calcsize(kind))
        polygons = raw[bytes_of].view(order + np.dtype(kind).str[1:]).astype(np.int64)
        fan = np.stack([np.zeros(size - 2, int), np.arange(1, size - 1), np.arange(2, size)], 1)
        found.append(polygons[:, fan].reshape(-1, 3))
    return at, np.concatenate(found)


def _stl(data: bytes) -> bytes:
    """A binary file is as long as its count says; a text file speaks of facets."""
    if data[:256].lstrip()[:5].lower() == b"solid" and b"facet" in data[:4096].lower():
        return data
    if len(data) < 84:
        raise InputError("This is no STL file, or one without triangles: it has less than 84 bytes.")
    length = 84 + 50 * struct.unpack_from("<I", data, 80)[0]
    if length > len(data):
        raise InputError(f"The STL is cut short, or none: it should have {length:,} bytes and has {len(data):,}.")
    return data[:length]


def _3mf(data: bytes) -> bytes:
    """A zip of a sane size with a model in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            members = packed.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        raise InputError("This is no whole 3MF file: it is no zip, or cut short.") from None
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise InputError(f"The 3MF would unpack to more than {MAX_UNPACKED >> 30} GB.")
    if not any("3d/3dmodel.model" in member.filename.lower() for member in members):
        raise InputError("This is no 3MF file: it holds no 3D/3dmodel.model.")
    return data
