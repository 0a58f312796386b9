"""The parts of a glTF 2.0 document that are read, as typed models (Khronos glTF 2.0, chapters 3 and 5).

What is not named here is left aside: names, extras, animations, cameras, lights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ..errors import InputError

Whole = Annotated[
    int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v), Field(ge=0, lt=2**40)
]
"""A count, an offset or the number of an entry; JSON may write 3.0 for 3."""
Real = Annotated[float, Field(allow_inf_nan=False)]
Triple = tuple[Real, Real, Real]
Quadruple = tuple[Real, Real, Real, Real]
Unit = Annotated[float, Field(ge=0, le=1)]

POINTS, LINES, LINE_LOOP, LINE_STRIP, TRIANGLES, STRIP, FAN = range(7)
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
NUMBERS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


class Part(BaseModel):
    """An object of the document; its fields are the names of the format in Python's spelling."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Asset(Part):
    """Which format the file has."""

    version: Annotated[str, Field(pattern=r"^2\.\d+$")]


class Buffer(Part):
    """Bytes: the GLB's own, of a file beside it, or written into the address."""

    byte_length: Whole
    uri: str | None = None


class BufferView(Part):
    """A stretch of a buffer."""

    buffer: Whole
    byte_length: Annotated[Whole, Field(ge=1)]
    byte_offset: Whole = 0
    byte_stride: Annotated[Whole, Field(ge=1, le=252)] | None = None
    extensions: dict[str, Any] = {}


class SparseIndices(Part):
    """Which rows an accessor replaces."""

    buffer_view: Whole
    byte_offset: Whole = 0
    component_type: Literal[5121, 5123, 5125]


class SparseValues(Part):
    """What it replaces them with."""

    buffer_view: Whole
    byte_offset: Whole = 0


class Sparse(Part):
    """Rows of an accessor that are replaced."""

    count: Annotated[Whole, Field(ge=1, lt=2**31)]
    indices: SparseIndices
    values: SparseValues


class Accessor(Part):
    """Rows of numbers in a buffer view, or zeros, with some of them replaced."""

    component_type: Literal[5120, 5121, 5122, 5123, 5125, 5126]
    count: Annotated[Whole, Field(ge=1, lt=2**31)]
    type: Literal["SCALAR", "VEC2", "VEC3", "VEC4", "MAT2", "MAT3", "MAT4"]
    buffer_view: Whole | None = None
    byte_offset: Whole = 0
    normalized: bool = False
    sparse: Sparse | None = None


class Primitive(Part):
    """Points, lines or triangles of one material."""

    attributes: dict[str, Whole]
    indices: Whole | None = None
    material: Whole | None = None
    mode: Annotated[Whole, Field(le=6)] = TRIANGLES
    targets: tuple[dict[str, Whole], ...] = ()
    extensions: dict[str, Any] = {}


class Mesh(Part):
    """Primitives, and how strongly each of their shapes (morph targets) acts."""

    primitives: tuple[Primitive, ...]
    weights: tuple[Real, ...] = ()


class Skin(Part):
    """Nodes that a mesh hangs on."""

    joints: tuple[Whole, ...]
    inverse_bind_matrices: Whole | None = None


class Visibility(Part):
    """Whether a node and all below it are shown."""

    visible: bool = True


class NodeExtensions(Part):
    """Of a node."""

    visibility: Annotated[Visibility | None, Field(alias="KHR_node_visibility")] = None
    instancing: Annotated[dict[str, Any] | None, Field(alias="EXT_mesh_gpu_instancing")] = None


class Node(Part):
    """A place in the scene."""

    children: tuple[Whole, ...] = ()
    mesh: Whole | None = None
    skin: Whole | None = None
    matrix: Annotated[tuple[Real, ...], Field(min_length=16, max_length=16)] | None = None
    translation: Triple = (0, 0, 0)
    rotation: Quadruple = (0, 0, 0, 1)
    scale: Triple = (1, 1, 1)
    weights: tuple[Real, ...] = ()
    extensions: NodeExtensions = NodeExtensions()


class Scene(Part):
    """The nodes at the root."""

    nodes: tuple[Whole, ...] = ()


class Image(Part):
    """A picture: in a buffer view, in a file beside, or written into the address."""

    uri: str | None = None
    buffer_view: Whole | None = None


class ImageSource(Part):
    """An extension's picture of a texture."""

    source: Whole


class TextureExtensions(Part):
    """Pictures in formats that the core of the format does not have."""

    webp: Annotated[ImageSource | None, Field(alias="EXT_texture_webp")] = None
    avif: Annotated[ImageSource | None, Field(alias="EXT_texture_avif")] = None


class Texture(Part):
    """A picture with its sampler."""

    source: Whole | None = None
    extensions: TextureExtensions = TextureExtensions()


class TextureTransform(Part):
    """How UV coordinates are moved before they are looked up."""

    offset: tuple[Real, Real] = (0, 0)
    rotation: Real = 0
    scale: tuple[Real, Real] = (1, 1)
    tex_coord: Whole | None = None


class TextureInfoExtensions(Part):
    """Of a material's use of a texture."""

    transform: Annotated[TextureTransform | None, Field(alias="KHR_texture_transform")] = None


class TextureInfo(Part):
    """A material's use of a texture."""

    index: Whole
    tex_coord: Whole = 0
    extensions: TextureInfoExtensions = TextureInfoExtensions()


class MetallicRoughness(Part):
    """Colour, metalness and roughness."""

    base_color_factor: tuple[Unit, Unit, Unit, Unit] = (1, 1, 1, 1)
    base_color_texture: TextureInfo | None = None
    metallic_factor: Unit = 1.0
    roughness_factor: Unit = 1.0
    metallic_roughness_texture: TextureInfo | None = None


class SpecularGlossiness(Part):
    """The older model of materials, which is converted."""

    diffuse_factor: tuple[Unit, Unit, Unit, Unit] = (1, 1, 1, 1)
    diffuse_texture: TextureInfo | None = None
    specular_factor: tuple[Unit, Unit, Unit] = (1, 1, 1)
    glossiness_factor: Unit = 1.0
    specular_glossiness_texture: TextureInfo | None = None


class MaterialExtensions(Part):
    """Of a material."""

    specular_glossiness: Annotated[SpecularGlossiness | None, Field(alias="KHR_materials_pbrSpecularGlossiness")] = None


class Material(Part):
    """What a primitive looks like."""

    pbr_metallic_roughness: MetallicRoughness = MetallicRoughness()
    alpha_mode: Literal["OPAQUE", "MASK", "BLEND"] = "OPAQUE"
    alpha_cutoff: Annotated[float, Field(ge=0)] = 0.5
    extensions: MaterialExtensions = MaterialExtensions()


class Document(Part):
    """A glTF 2.0 document."""

    asset: Asset
    extensions_required: tuple[str, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    buffer_views: tuple[BufferView, ...] = ()
    accessors: tuple[Accessor, ...] = ()
    meshes: tuple[Mesh, ...] = ()
    skins: tuple[Skin, ...] = ()
    nodes: tuple[Node, ...] = ()
    scenes: tuple[Scene, ...] = ()
    scene: Whole | None = None
    images: tuple[Image, ...] = ()
    textures: tuple[Texture, ...] = ()
    materials: tuple[Material, ...] = ()


T = TypeVar("T")


def entry(entries: Sequence[T], number: int, name: str) -> T:
    """`entries[number]`.

    Raises:
        InputError: there is no such entry.
    """
    if number >= len(entries):
        raise InputError(f"The file is damaged: it refers to {name} {number}, and has {len(entries)} of these.")
    return entries[number]
