"""OBJ, PLY, STL, 3MF and OFF: spellings that are valid and unusual, and files that lie."""

from __future__ import annotations

import io
import random
import struct
import zipfile

import numpy as np
import pytest

from tests.helpers.gltf_files import FACES, POINTS, volume
from trellis_core.errors import InputError
from trellis_core.gltf.read import read_mesh

CORNERS = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
SIDES = "".join(f"f {a} {b} {c}\n" for a, b, c in FACES.astype(int) + 1)
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def arrays(data: str | bytes, kind: str) -> tuple[np.ndarray, np.ndarray]:
    mesh = read_mesh(data.encode() if isinstance(data, str) else data, kind)
    x, y, z = mesh.vertices.numpy().T
    return np.stack([x, z, -y], 1), mesh.faces.numpy()


def area(data: str | bytes, kind: str) -> float:
    vertices, faces = arrays(data, kind)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


SPELLINGS = {
    "as usual": CORNERS + SIDES,
    "tabs": (CORNERS + SIDES).replace(" ", "\t"),
    "indented": "".join(f"  {line}\n" for line in (CORNERS + SIDES).splitlines()),
    "comments behind lines": (CORNERS + SIDES).replace("\n", " # from f 1 2 3\n"),
    "old Mac line ends": (CORNERS + SIDES).replace("\n", "\r"),
    "Windows line ends": (CORNERS + SIDES).replace("\n", "\r\n"),
    "continued lines": (CORNERS + SIDES).replace("f 1", "f \\\n1"),
    "counted backwards": CORNERS + "".join(f"f {' '.join(str(int(n) - 4) for n in face)}\n" for face in FACES),
    "counted backwards in the middle": CORNERS + "f -4 -2 -3\n" + "v 9 9 9\n" + "f 1 2 4\nf 1 4 3\nf -4 -3 -2\n",
    "with normals and UVs": CORNERS
    + "vt 0 0\nvn 0 0 1\n"
    + SIDES.replace("\n", "/1/1\n").replace(" ", "/1/1 ").replace("f/1/1", "f"),
    "with colours": CORNERS.replace("\n", " 1 0 0\n") + SIDES,
    "with weights": CORNERS.replace("\n", " 1.0\n") + SIDES,
    "not UTF-8": ("# \xe9t\xe9\n" + CORNERS + SIDES).encode("latin-1"),
    "small exponents": CORNERS.replace("1", "1.0E+0") + SIDES,
    "several groups and materials": CORNERS + "o a\ng b\nusemtl c d#1\n" + SIDES.replace("f 2", "usemtl e\nf 2"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_obj_in_every_spelling(spelling: str) -> None:
    vertices, faces = arrays(SPELLINGS[spelling], "obj")
    assert len(faces) == 4 and volume(vertices, faces) == pytest.approx(1 / 6)


@pytest.mark.parametrize("faces", ["f 1 2 3 4\n", "f 1 2 3 4\nf 1 2 3\n", "f 1/1 2/1 3/1 4/1\n"])
def test_polygons_of_an_obj_become_triangles(faces: str) -> None:
    assert area(SQUARE + "vt 0 0\n" + faces, "obj") == pytest.approx(1.0 + 0.5 * faces.count("f 1 2 3\n"))


def ply(faces: list[list[int]], form: str, points: str = SQUARE, notes: str = "") -> bytes:
    rows = [[float(n) for n in line.split()[1:]] for line in points.splitlines()]
    header = (
        f"ply\nformat {form} 1.0\n{notes}element vertex {len(rows)}\nproperty float x\nproperty float y\nproperty float z\n"
    )
    header += f"{notes}element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    if form == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        return (header + body + "".join(f"{len(f)} {' '.join(map(str, f))}\n" for f in faces)).encode()
    order = "<" if "little" in form else ">"
    body = np.array(rows, f"{order}f4").tobytes()
    return header.encode() + body + b"".join(struct.pack(f"{order}B{len(f)}i", len(f), *f) for f in faces)


FORMS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "faces", [[[0, 1, 2, 3]], [[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3], [3, 2, 1]], [[0, 1], [0, 1, 2, 3], [1, 2, 3]]]
)
def test_ply_with_polygons_of_one_and_of_several_sizes(form: str, faces: list[list[int]]) -> None:
    wanted = {1: 1.0, 2: 1.0 if len(faces[0]) == 3 else 1.5, 3: 1.5}[len(faces)]
    assert area(ply(faces, form), "ply") == pytest.approx(wanted)


@pytest.mark.parametrize("form", FORMS)
def test_comments_within_a_ply_header(form: str) -> None:
    assert area(ply([[0, 1, 2, 3]], form, notes="comment made by hand\nobj_info x\n"), "ply") == pytest.approx(1.0)


def test_polygons_of_several_sizes_with_colours_beside_them() -> None:
    plain = ply([], "binary_little_endian").replace(b"face 0", b"face 2")
    header = plain.replace(b"vertex_indices\n", b"vertex_indices\nproperty uchar red\nproperty float quality\n")
    rows = [struct.pack(f"<B{len(f)}iBf", len(f), *f, 9, 0.5) for f in ([0, 1, 2, 3], [0, 1, 2])]
    assert area(header + b"".join(rows), "ply") == pytest.approx(1.5)


def stl() -> bytes:
    rows = np.zeros(len(FACES), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("colour", "<u2")])
    rows["corners"] = POINTS[FACES.astype(int)]
    return b"solid in name only".ljust(80) + struct.pack("<I", len(rows)) + rows.tobytes()


def test_stl_binary_text_and_with_bytes_behind_its_end() -> None:
    text = "solid a\n" + "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in POINTS[face])
        + "endloop\nendfacet\n"
        for face in FACES.astype(int)
    )
    for data in (stl(), stl() + b"trailer", text + "endsolid a\n", text.upper() + "ENDSOLID A\n"):
        assert volume(*arrays(data, "stl")) == pytest.approx(1 / 6)


def threemf(transform: str = "1 0 0 0 1 0 0 0 1 5 6 7", corner: str = "0") -> bytes:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in POINTS)
    sides = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in FACES).replace('v1="0"', f'v1="{corner}"')
    text = f"""<?xml version="1.0"?>
        <model unit="millimeter" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources><object id="1"
        type="model"><mesh><vertices>{vertices}</vertices><triangles>{sides}</triangles></mesh></object></resources>
        <build><item objectid="1" transform="{transform}"/></build></model>"""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("3D/3dmodel.model", text)
    return stream.getvalue()


def test_3mf_with_its_placement() -> None:
    vertices, faces = arrays(threemf(), "3mf")
    assert vertices.min(0).tolist() == [5, 6, 7] and volume(vertices, faces) == pytest.approx(1 / 6)
    assert volume(*arrays(threemf("-1 0 0 0 1 0 0 0 1 0 0 0"), "3mf")) == pytest.approx(1 / 6)


def test_off() -> None:
    assert area("OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n", "off") == pytest.approx(1.0)


LIES = {
    "decimal commas": ("obj", SQUARE.replace("1 1", "1,5 1") + "f 1 2 3\n"),
    "fewer than three coordinates": ("obj", "v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n"),
    "names vertex 0": ("obj", SQUARE + "f 0 1 2\n"),
    "before the beginning": ("obj", SQUARE + "f -1 -2 -9\n"),
    "it is damaged or of another kind": ("obj", SQUARE + "f 1 2 99999999999999999999\n"),
    "not finite": ("obj", SQUARE.replace("1 1", "nan 1") + "f 1 2 3\n"),
    "no triangles": ("obj", SQUARE + "l 1 2 3\n"),
    "no PLY file": ("ply", SQUARE),
    "promises 9 lines": ("ply", ply([[0, 1, 2]], "ascii").replace(b"face 1", b"face 5")),
    "fewer than its 4,000,000,000 rows": ("ply", ply([[0, 1, 2]], FORMS[1]).replace(b"vertex 4", b"vertex 4000000000")),
    "holds 1 of its 9 rows": ("ply", ply([[0, 1, 2]], FORMS[1]).replace(b"face 1", b"face 9")),
    "counts below zero": ("ply", ply([[0, 1, 2]], FORMS[1]).replace(b"vertex 4", b"vertex -4")),
    "header says 'property list uchar foo": ("ply", ply([[0, 1, 2]], "ascii").replace(b"uchar int", b"uchar foo")),
    "strips of triangles": ("ply", ply([[0, 1, 2]], "ascii").replace(b"element face", b"element tristrips")),
    "point to vertex 9 of 4": ("ply", ply([[0, 1, 9]], "ascii")),
    "STL is cut short": ("stl", stl()[:-20]),
    "no STL file": ("stl", b"nothing"),
    "no whole 3MF": ("3mf", threemf()[:-30]),
    "point to vertex 77": ("3mf", threemf(corner="77")),
}


@pytest.mark.parametrize("words", LIES)
def test_lies_are_told(words: str) -> None:
    kind, data = LIES[words]
    with pytest.raises(InputError) as caught:
        read_mesh(data.encode() if isinstance(data, str) else data, kind)
    assert words in str(caught.value)


def test_a_3mf_that_unpacks_without_end_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("3D/3dmodel.model", bytes(1 << 20))
        packed.infolist()[0].file_size = 5 << 30
    with pytest.raises(InputError, match="more than 1 GB"):
        read_mesh(stream.getvalue(), "3mf")


def test_hundreds_of_damaged_files_are_refused_or_read() -> None:
    rng = random.Random(3)
    whole = [("obj", (CORNERS + SIDES).encode()), ("stl", stl()), ("3mf", threemf())]
    whole += [("ply", ply([[0, 1, 2, 3], [0, 1, 2]], form)) for form in FORMS]
    for _ in range(600):
        kind, data = rng.choice(whole)
        for _ in range(rng.randrange(1, 4)):
            spot = rng.randrange(len(data))
            more = rng.choice([b"", rng.randbytes(3), b"-1", b"9" * 30, b" ", b"\n", b"nan", b"e99", b"/"])
            data = data[:spot] + more + data[spot + rng.randrange(4) :]
        try:
            read_mesh(data, kind)
        except InputError as error:
            assert len(str(error)) > 20
