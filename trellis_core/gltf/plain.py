"""Any glTF file as one of the plainest kind, which mesh readers understand alike.

What they pass over or take differently is resolved here, out of checked numbers: sparse accessors, strips and fans,
integers that stand for fractions, several buffers, skins, morph targets, second UV maps and texture transforms. What is
not resolved is refused in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..mesh.topology import Array
from . import document as gltf_document
from .document import FAN, STRIP, TRIANGLES, Material, Mesh, Node, Primitive, TextureInfo, TextureTransform, entry
from .gate import PACKED, Gltf, compressed
from .glb import join_glb
from .images import check_picture

MAX_TRIANGLES = 50_000_000
"""Most triangles that a scene may have, each use of a mesh counted."""
COLORS = "_COLOR_0"
"""Name of the vertex colours in the plain file: trimesh loses those of the usual name where there is a material too."""
_FLOAT, _UNSIGNED = 5126, 5125
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


def plain_glb(gltf: Gltf, textured: bool) -> bytes:
    """A GLB with one scene of placed meshes: float32 attributes, uint32 triangles, and one buffer.

    Args:
        textured: with materials, normals, UVs and colours; else with positions only.

    Raises:
        InputError: damaged, without triangles, or with something that is not read.
    """
    writer = _Writer(gltf, textured)
    for number, place in gltf.places.items():
        node = gltf.document.nodes[number]
        if node.mesh is not None and place.visible:
            writer.place(node, place.world)
    return writer.finished()


class _Writer:
    """The lists of the new document as they grow."""

    def __init__(self, gltf: Gltf, textured: bool) -> None:
        self.gltf, self.textured = gltf, textured
        self.lists: dict[str, list[Any]] = {
            name: [] for name in ("nodes", "meshes", "accessors", "bufferViews", "materials", "textures", "images")
        }
        self.chunks: list[bytes] = []
        self.length = self.triangles = self.others = 0
        self.made: dict[Any, int | None] = {}

    def place(self, node: Node, world: Array) -> None:
        """Append a node and its mesh."""
        if node.extensions.instancing is not None:
            raise InputError("The file places copies by EXT_mesh_gpu_instancing, which is not read: make them objects first.")
        mesh = entry(self.gltf.document.meshes, node.mesh, "mesh")
        weights = node.weights or mesh.weights
        if node.skin is not None:
            world = np.eye(4)  # a skinned mesh hangs on its joints alone
        key = ("mesh", node.mesh, node.skin, weights)
        if key not in self.made:
            self.made[key] = self._mesh(mesh, weights, None if node.skin is None else self._joints(node.skin))
        if (number := self.made[key]) is not None:
            primitives = self.lists["meshes"][number]["primitives"]
            self.triangles += sum(self.lists["accessors"][p["indices"]]["count"] // 3 for p in primitives)
            if self.triangles > MAX_TRIANGLES:
                raise InputError(f"The file has more than {MAX_TRIANGLES:,} triangles, counting copies: reduce it first.")
            self._append("nodes", {"mesh": number, "matrix": world.T.ravel().tolist()})

    def finished(self) -> bytes:
        """The file."""
        if not self.triangles:
            only = " It holds points or lines only." if self.others else ""
            raise InputError(f"The file holds no triangles.{only}")
        lists = {name: entries for name, entries in self.lists.items() if entries}
        scene = {"scene": 0, "scenes": [{"nodes": list(range(len(self.lists["nodes"])))}]}
        body = b"".join(self.chunks)
        self.chunks.clear()
        return join_glb({"asset": {"version": "2.0"}, **scene, **lists, "buffers": [{"byteLength": len(body)}]}, body)

    def _append(self, name: str, item: Any) -> int:
        self.lists[name].append(item)
        return len(self.lists[name]) - 1

    def _bytes(self, data: bytes) -> int:
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data)}
        self.chunks.append(data + bytes(-len(data) % 4))
        self.length += len(self.chunks[-1])
        return self._append("bufferViews", view)

    def _accessor(self, rows: Array, component: int) -> int:
        view = self._bytes(np.ascontiguousarray(rows, "<f4" if component == _FLOAT else "<u4").tobytes())
        return self._append(
            "accessors", {"bufferView": view, "componentType": component, "count": len(rows), "type": _TYPES[rows.shape[1]]}
        )

    def _mesh(self, mesh: Mesh, weights: Sequence[float], joints: Array | None) -> int | None:
        primitives = [made for p in mesh.primitives if (made := self._primitive(p, weights, joints)) is not None]
        return self._append("meshes", {"primitives": primitives}) if primitives else None

    def _primitive(self, primitive: Primitive, weights: Sequence[float], joints: Array | None) -> dict[str, Any] | None:
        if primitive.mode < TRIANGLES:
            self.others += 1
            return None
        if name := next((name for name in PACKED if name in primitive.extensions), None):
            raise compressed(name)
        if "POSITION" not in primitive.attributes:
            raise InputError("The file is damaged: a part of a mesh has no positions.")
        points = self.gltf.rows(primitive.attributes["POSITION"], 3)
        faces = triangles(self._corners(primitive, len(points)), primitive.mode)
        if not len(faces):
            return None
        columns = {"POSITION": self._posed(primitive, points, weights, joints)}
        material = None
        if self.textured:
            material = (
                None if primitive.material is None else entry(self.gltf.document.materials, primitive.material, "material")
            )
            moved = joints is not None or any(weights)  # then its normals turn too, and are computed anew
            columns |= self._look(primitive, material, len(points), moved)
        columns, faces = _compact(columns, faces)
        made = {"attributes": {name: self._accessor(rows, _FLOAT) for name, rows in columns.items()}}
        made["indices"] = self._accessor(faces.reshape(-1, 1), _UNSIGNED)
        if material is not None:
            made["material"] = self._material(primitive.material, material)
        return made

    def _corners(self, primitive: Primitive, count: int) -> Array:
        if primitive.indices is None:
            return np.arange(count)
        corners = self.gltf.rows(primitive.indices, 1)[:, 0]
        if corners.dtype.kind != "u":
            raise InputError("The file is damaged: its triangles are not given by whole numbers.")
        if corners.max() >= count:
            raise InputError(f"The file is damaged: a triangle points to vertex {corners.max()} of {count}.")
        return corners

    def _posed(self, primitive: Primitive, points: Array, weights: Sequence[float], joints: Array | None) -> Array:
        """Positions with morph targets and skin applied."""
        for target, weight in zip(primitive.targets, weights, strict=False):
            if weight and "POSITION" in target:
                points = points + weight * self._attribute(target["POSITION"], len(points), 3)
        if joints is None or "JOINTS_0" not in primitive.attributes:
            return points
        blend = np.zeros((len(points), 3, 4))
        total = np.zeros(len(points))
        for number in range(len(primitive.attributes)):
            if f"JOINTS_{number}" not in primitive.attributes or f"WEIGHTS_{number}" not in primitive.attributes:
                break
            which = self._attribute(primitive.attributes[f"JOINTS_{number}"], len(points), 4)
            share = self._attribute(primitive.attributes[f"WEIGHTS_{number}"], len(points), 4).astype(np.float64)
            if which.dtype.kind != "u" or which.max() >= len(joints):
                raise InputError("The file is damaged: its skin names joints that do not exist.")
            for column in range(4):
                blend += share[:, column, None, None] * joints[which[:, column]]
            total += share.sum(1)
        loose = total <= 0
        blend[loose], total[loose] = joints[0], 1.0
        return (np.einsum("nij,nj->ni", blend[:, :, :3], points) + blend[:, :, 3]) / total[:, None]

    def _joints(self, number: int) -> Array:
        """Where each joint of a skin carries what hangs on it, float64 [J, 3, 4]."""
        skin = entry(self.gltf.document.skins, number, "skin")
        if not skin.joints or any(joint not in self.gltf.places for joint in skin.joints):
            raise InputError("The file is damaged: joints of a skin are not in the scene.")
        worlds = np.stack([self.gltf.places[joint].world for joint in skin.joints])
        if skin.inverse_bind_matrices is not None:
            bind = self._attribute(skin.inverse_bind_matrices, len(skin.joints), 16)
            worlds = worlds @ bind[: len(skin.joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
        return worlds[:, :3]

    def _attribute(self, number: int, count: int, *widths: int) -> Array:
        rows = self.gltf.rows(number, *widths)
        if len(rows) < count:
            raise InputError(f"The file is damaged: accessor {number} has {len(rows)} rows where {count} are needed.")
        return rows[:count]

    def _look(self, primitive: Primitive, material: Material | None, count: int, moved: bool) -> dict[str, Array]:
        """Normals, colours, and the UVs that the material's textures use."""
        columns, named = {}, primitive.attributes
        if "NORMAL" in named and not moved:
            columns["NORMAL"] = self._attribute(named["NORMAL"], count, 3)
        if "COLOR_0" in named:
            columns[COLORS] = self._attribute(named["COLOR_0"], count, 3, 4)
        layout = _uv_layout(material)
        if layout is None:
            return columns
        which, transform = layout
        if f"TEXCOORD_{which}" not in named:
            raise InputError(f"The file is damaged: a textured part of a mesh lacks its UV map {which}.")
        uvs = self._attribute(named[f"TEXCOORD_{which}"], count, 2)
        columns["TEXCOORD_0"] = uvs if transform is None else _transformed(uvs, transform)
        return columns

    def _material(self, number: int, material: Material) -> int:
        key = ("material", number)
        if key not in self.made:
            made = material.model_dump(by_alias=True, exclude_none=True, exclude={"pbr_metallic_roughness", "extensions"})
            made["pbrMetallicRoughness"] = self._textures(material.pbr_metallic_roughness)
            if (older := material.extensions.specular_glossiness) is not None:
                made["extensions"] = {"KHR_materials_pbrSpecularGlossiness": self._textures(older)}
            self.made[key] = self._append("materials", made)
        return self.made[key]

    def _textures(self, part: gltf_document.Part) -> dict[str, Any]:
        """The part as JSON, its textures in the new document's numbers."""
        made = part.model_dump(by_alias=True, exclude_none=True)
        for name, value in part:
            if isinstance(value, TextureInfo):
                alias = type(part).model_fields[name].alias
                made[alias] = {"index": self._texture(value.index)}
        return made

    def _texture(self, number: int) -> int:
        texture = entry(self.gltf.document.textures, number, "texture")
        others = (texture.extensions.webp, texture.extensions.avif)
        source = next((found.source for found in others if found is not None), texture.source)
        if source is None:
            raise InputError("A texture of the file is in a format that is not read (such as KTX2): save it with PNG or JPEG.")
        key = ("picture", source)
        if key not in self.made:
            data = self.gltf.image(source)
            check_picture(data, f"Picture {source} of the file")
            image = self._append("images", {"bufferView": self._bytes(data)})
            self.made[key] = self._append("textures", {"source": image})
        return self.made[key]


def triangles(corners: Array, mode: int) -> Array:
    """Faces int64 [F, 3] of the corners [N] of a list, strip or fan of triangles, all wound alike.

    Strips and fans lose the triangles without area that join their parts.
    """
    corners = corners.astype(np.int64)
    if mode == TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    a, b, c = corners[:-2], corners[1:-1], corners[2:]
    if mode == FAN:
        faces = np.stack([np.full_like(b, corners[0]), b, c], 1)
    else:
        assert mode == STRIP
        odd = np.arange(len(a)) % 2 == 1
        faces = np.stack([a, np.where(odd, c, b), np.where(odd, b, c)], 1)
    return faces[(faces != faces[:, [1, 2, 0]]).all(1)]


def _compact(columns: dict[str, Array], faces: Array) -> tuple[dict[str, Array], Array]:
    """Without the vertices that no face uses: parts of a mesh often share one long list."""
    count = len(columns["POSITION"])
    used = np.zeros(count, bool)
    used[faces] = True
    if used.all():
        return columns, faces
    number = np.cumsum(used) - 1
    return {name: rows[used] for name, rows in columns.items()}, number[faces]


def _uv_layout(material: Material | None) -> tuple[int, TextureTransform | None] | None:
    """The UV map of a material's textures and what moves it; None without textures."""
    if material is None:
        return None
    parts = [material.pbr_metallic_roughness, material.extensions.specular_glossiness]
    uses = [value for part in parts if part is not None for _, value in part if isinstance(value, TextureInfo)]
    layouts = set()
    for use in uses:
        transform = use.extensions.transform
        which = use.tex_coord if transform is None or transform.tex_coord is None else transform.tex_coord
        plain = transform is None or (transform.offset, transform.rotation, transform.scale) == ((0, 0), 0, (1, 1))
        layouts.add((which, None if plain else transform.model_copy(update={"tex_coord": None})))
    if len(layouts) > 1:
        raise InputError("The textures of a material lie on different UV maps, which is not read: bake them onto one.")
    return layouts.pop() if layouts else None


def _transformed(uvs: Array, transform: TextureTransform) -> Array:
    """KHR_texture_transform: scaled, then turned counter-clockwise in the picture, then moved."""
    sine, cosine = np.sin(transform.rotation), np.cos(transform.rotation)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return (uvs * np.array(transform.scale)) @ turn.T + np.array(transform.offset)
