"""From latents to a finished model: decode, remesh, bake, look into it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..trellis_core.errors import InputError
from ..trellis_core.settings import JUDGED_MESH_GRID, MESH_GRID
from ..trellis_core.values import Mesh
from . import fields, host, meshes
from .memo import remembered
from .sockets import AnyFile3D, Asset, Family, File3D, PbrVoxels, Shape, Texture, advanced, glb_file, schema, settings_input

FLAT = (128, 128, 255)
"""Texel of a normal map that changes nothing."""


_FIRST = ("decimation_target", "remesh", "remesh_band", "remesh_project")
"""Widgets that stood on Remesh & Decimate before others: saved workflows go by their places."""


class Decode(io.ComfyNode):
    """Latents to raw triangles and voxels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Decode",
            "TRELLIS.2 Decode",
            "Turns the latents into the raw mesh, with every triangle that was found, and into voxels of colour and "
            "material. A batch comes out one by one. Without a texture there is only the mesh.",
            inputs=[
                Family.Input("family", tooltip="The networks, from Load TRELLIS.2."),
                Shape.Input("shape", tooltip="The surface as a latent, from Sample Shape."),
                Texture.Input("texture", optional=True, tooltip="Colour and material, from Sample Texture, on this shape."),
            ],
            outputs=[
                io.Mesh.Output("mesh", display_name="mesh", is_output_list=True, tooltip="Raw triangles, one mesh an object."),
                PbrVoxels.Output(
                    "voxels", display_name="voxels", is_output_list=True, tooltip="Colour and material, for Bake Textures."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, family: Any, shape: Any, texture: Any = None) -> io.NodeOutput:
        from ..trellis_core import stages

        if texture is not None and len(texture.feats) != len(shape.feats):
            raise InputError("This texture was painted on another shape: connect the one that Sample Texture was given.")
        run = host.Run(cls, "decode")
        pairs = stages.decode(family, shape, texture, ctx=run.ctx)
        if texture is not None:
            run.show_voxels(pairs[0][1])
        # The mesh does not depend on the texture: another one on the same shape leaves what follows the mesh as it is.
        made = remembered(
            (cls.hidden.unique_id, "mesh"), family.name, (shape,), lambda: [meshes.to_host(mesh) for mesh, _ in pairs]
        )
        return io.NodeOutput(made, [voxels for _, voxels in pairs])


class Remesh(io.ComfyNode):
    """Raw triangles to a clean surface of few."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Remesh",
            "TRELLIS.2 Remesh & Decimate",
            "Cleans the mesh, makes it one outer wall, closes small holes, and reduces it to a target.",
            search_aliases=["decimate", "simplify", "watertight"],
            inputs=[
                io.Mesh.Input("mesh", tooltip="From Decode, Load Mesh, or another node of meshes."),
                *fields.widgets(*_FIRST),
                PbrVoxels.Input("voxels", optional=True, tooltip="Says how fine the mesh was decoded; else it is judged."),
                *fields.widgets(*(name for name in fields.SURFACE if name not in _FIRST)),
                advanced(
                    io.Int.Input(
                        "grid",
                        default=0,
                        min=0,
                        max=MESH_GRID[1],
                        optional=True,
                        tooltip="For a mesh that was not made here: voxels along its longest side, whatever its unit. 0 judges "
                        f"by its triangles, from {JUDGED_MESH_GRID[0]} to {JUDGED_MESH_GRID[1]}.",
                    )
                ),
            ],
            outputs=[io.Mesh.Output("mesh_out", display_name="mesh", tooltip="The clean mesh.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, remesh: Any = None) -> bool | str:
        return fields.check_finishing(remesh=remesh)

    @classmethod
    def execute(cls, mesh: Any, voxels: Any = None, grid: int = 0, **values: Any) -> io.NodeOutput:
        from ..trellis_core.asset.asset import refine_loaded, refine_mesh

        raw, settings, ctx = meshes.from_host(mesh), fields.settings(values), host.Run(cls, "remesh").ctx
        fine = grid if voxels is None else voxels.resolution
        refine = refine_loaded if voxels is None else refine_mesh
        key = voxels is None, fine, settings
        who = cls.hidden.unique_id, "refined"
        return io.NodeOutput(remembered(who, key, (mesh,), lambda: meshes.to_host(refine(raw, settings, fine, ctx))))


class BakeTextures(io.ComfyNode):
    """Mesh and voxels to a textured model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Bake",
            "TRELLIS.2 Bake Textures",
            "Unwraps the mesh, bakes the voxels into textures, and makes a GLB of it. Give it a mesh from Remesh & "
            "Decimate: a raw one takes very long to unwrap.",
            search_aliases=["uv unwrap", "pbr", "texture"],
            inputs=[*baking_inputs(), detail_input(), *fields.widgets(*fields.BAKE), settings_input()],
            outputs=baked_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, rasterizer: Any = None, unwrap: Any = None) -> bool | str:
        return fields.check_finishing(rasterizer=rasterizer, unwrap=unwrap)

    @classmethod
    def execute(cls, mesh: Any, voxels: Any, detail: Any = None, settings: Any = None, **values: Any) -> io.NodeOutput:
        return bake(cls, mesh, voxels, detail, fields.settings(values, settings))


def baking_inputs() -> list[Any]:
    return [
        io.Mesh.Input("mesh", tooltip="The surface, from Remesh & Decimate."),
        PbrVoxels.Input("voxels", tooltip="Colour and material, from Decode."),
    ]


def detail_input() -> Any:
    return io.Mesh.Input(
        "detail",
        optional=True,
        tooltip="The mesh before it was reduced: normal map and occlusion are baked from it.",
    )


def baked_outputs() -> list[Any]:
    return [
        File3D.Output("glb", display_name="glb", tooltip="The model as a file in memory, textures inside."),
        io.Image.Output("base_color", display_name="base_color", tooltip="The colour texture."),
        io.Mask.Output("alpha", display_name="alpha", tooltip="Opacity: white is solid."),
        io.Mask.Output("metallic", display_name="metallic", tooltip="White is metal."),
        io.Mask.Output("roughness", display_name="roughness", tooltip="White is rough."),
        Asset.Output("asset", display_name="asset", tooltip="For Asset Report."),
        io.Image.Output("material", display_name="material", tooltip="Red occlusion, green roughness, blue metalness."),
        io.Image.Output("normal", display_name="normal", tooltip="The normal map; flat where none was asked for."),
    ]


def bake(node: type, mesh: Any, voxels: Any, detail: Any, settings: Any) -> io.NodeOutput:
    """What `baked_outputs` names."""
    from ..trellis_core.asset.asset import make_asset

    if voxels is None:
        raise InputError("There are no colours to bake: connect a texture to the Decode node.")
    raw = None if detail is None else meshes.from_host(detail)
    run = host.Run(node)
    asset = make_asset(meshes.from_host(mesh), voxels, settings, run.ctx, refined=True, detail=raw)
    *apart, material, normal = maps_of(asset)
    return io.NodeOutput(glb_file(asset.to_glb_bytes(), run.show_asset(asset)), *apart, asset, material, normal)


def color_of(asset: Any) -> torch.Tensor:
    """Base colour and opacity, float32 [1, S, S, 4]."""
    return asset.base_color[None].float() / 255


def maps_of(asset: Any) -> tuple[torch.Tensor, ...]:
    """Base colour as IMAGE; alpha, metallic and roughness as MASK; material as the GLB packs it, and normals, as IMAGE."""
    color, material = color_of(asset), asset.metallic_roughness[None].float() / 255
    normal = torch.tensor(FLAT, dtype=torch.uint8).expand_as(asset.metallic_roughness)
    normal = (normal if asset.normal_map is None else asset.normal_map)[None].float() / 255
    return color[..., :3], color[..., 3], material[..., 2], material[..., 1], material, normal


class LoadMesh(io.ComfyNode):
    """A file to triangles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadMesh",
            "TRELLIS.2 Load Mesh",
            "Reads the triangles of a mesh file: GLB, glTF, OBJ, PLY, STL, 3MF or OFF.",
            search_aliases=["import mesh", "load glb"],
            inputs=[
                io.String.Input(
                    "file",
                    default="",
                    tooltip='A name below the output folder, as Save GLB gives it; or "name [input]" for the input folder.',
                ),
                AnyFile3D.Input("model", optional=True, tooltip="A 3D file from another node, instead of a name."),
            ],
            outputs=[io.Mesh.Output("mesh", display_name="mesh", tooltip="The triangles of the file.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return host.check_file(file) if file else True

    @classmethod
    def fingerprint_inputs(cls, file: str, model: Any = None) -> str:
        return host.stamp(file) if file.strip() else ""

    @classmethod
    def execute(cls, file: str, model: Any = None) -> io.NodeOutput:
        from ..trellis_core.gltf.read import read_mesh, read_mesh_file

        if model is not None:
            return io.NodeOutput(meshes.to_host(read_mesh(model.get_bytes(), model.format)))
        if not file.strip():
            raise InputError("Give the name of a mesh file, or connect a model.")
        return io.NodeOutput(meshes.to_host(read_mesh_file(host.user_file(file)[0])))


class AssetReport(io.ComfyNode):
    """A model in numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AssetReport",
            "TRELLIS.2 Asset Report",
            "Says what the finished model is like: triangles, holes, charts, texels, file size, time; and what to change.",
            is_output_node=True,
            inputs=[Asset.Input("asset", tooltip="From Bake Textures or Image to 3D.")],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="For people."),
                io.String.Output("json", display_name="json", tooltip="For programs."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, asset: Any) -> io.NodeOutput:
        text = asset.report.to_text()
        return io.NodeOutput(text, asset.report.to_json(), ui=host.shown(cls, text))


def clay_glb(mesh: Mesh) -> bytes:
    """An untextured GLB."""
    import numpy as np

    from ..trellis_core.gltf.glb import Part, glb_bytes
    from ..trellis_core.mesh.topology import vertex_normals

    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    return glb_bytes(Part(vertices, faces, np.ascontiguousarray(vertex_normals(vertices, faces)), double_sided=True))


NODES = [Decode, Remesh, BakeTextures, LoadMesh, AssetReport]
