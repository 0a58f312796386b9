"""Files out and in: models, and stages between runs and machines."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from comfy_api.latest import io

from ..trellis_core.errors import InputError
from . import host, meshes
from .mesh import clay_glb
from .sockets import File3D, Shape, Structure, Texture, glb_file, schema

PREFIX = "3d/TRELLIS2"

_HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]


def glb_bytes(model: Any) -> bytes:
    """Of a 3D file in GLB format, or of a mesh.

    Raises:
        InputError: it is another format.
    """
    if hasattr(model, "vertices"):
        return clay_glb(meshes.from_host(model))
    if model.format.lower() != "glb":
        raise InputError(f"The file is a .{model.format}, not a GLB: connect a GLB, or load it as a mesh first.")
    return model.get_bytes()


def picture_of(model: Any) -> Any:
    """A picture of a 3D file or a mesh: the one that its maker drew, else of its bare surface; None of what is not read,
    such as compressed geometry, which can be saved all the same."""
    if getattr(model, "picture", None) is not None:
        return model.picture
    from PIL import Image

    from ..trellis_core.gltf.read import read_mesh
    from ..trellis_core.mesh.frames import z_up_to_y_up
    from ..trellis_core.preview.draw import render

    try:
        mesh = meshes.from_host(model) if hasattr(model, "vertices") else read_mesh(model.get_bytes(), model.format)
    except InputError:
        return None
    return Image.fromarray(render(z_up_to_y_up(mesh.vertices).numpy(), mesh.faces.numpy(), size=host.PICTURE_SIDE))


def keep_models(glbs: Sequence[bytes]) -> list[str]:
    """Names of new files in the host's temporary folder, one for each GLB, as the host's own nodes take them."""
    from ..trellis_core.files import write_whole

    paths = []
    for glb in glbs:
        path, entry = host.temporary_file("TRELLIS2", ".glb")
        write_whole(path, glb)
        paths.append(f"{host.below(entry)} [temp]")
    return paths


class SaveGLB(io.ComfyNode):
    """A model to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SaveGLB",
            "TRELLIS.2 Save GLB",
            "Writes a GLB to the output folder, where the history and the gallery find it. The workflow travels in the "
            "file: drop it onto the editor to open it.",
            search_aliases=["export glb", "save 3d"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("glb", types=[File3D, io.Mesh], tooltip="A finished model, or a bare mesh."),
                io.String.Input(
                    "filename_prefix",
                    default=PREFIX,
                    tooltip="Below the output folder; a number is put behind it. %date:yyyy-MM-dd% becomes the date.",
                ),
            ],
            outputs=[
                File3D.Output("glb_out", display_name="glb", tooltip="The file as it was written."),
                io.String.Output("path", display_name="path", tooltip="Below the output folder."),
            ],
            hidden=_HIDDEN,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str) -> bool | str:
        return host.check_prefix(filename_prefix)

    @classmethod
    def execute(cls, glb: Any, filename_prefix: str) -> io.NodeOutput:
        from ..trellis_core.files import write_whole
        from ..trellis_core.gltf.container import with_extras

        path, entry = host.output_file(filename_prefix, ".glb")
        data = with_extras(glb_bytes(glb), host.workflow_extras(cls))
        picture, shown = picture_of(glb), {"3d": [entry]}
        write_whole(path, data)
        if picture is not None:
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            write_whole(path.with_suffix(".png"), buffer.getvalue())
            shown["images"] = [{**entry, "filename": f"{path.stem}.png"}]
        return io.NodeOutput(glb_file(data, picture), host.below(entry), ui=shown)


class View3D(io.ComfyNode):
    """A model on the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "View3D",
            "TRELLIS.2 View 3D",
            "Shows a model on the node, without saving it.",
            search_aliases=["preview 3d", "viewer"],
            is_output_node=True,
            inputs=[io.MultiType.Input("model", types=[File3D, io.Mesh], tooltip="A finished model, or a bare mesh.")],
            outputs=[],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        from ..trellis_core.files import write_whole

        path, entry = host.temporary_file("trellis2_view", ".glb")
        write_whole(path, glb_bytes(model))
        return io.NodeOutput(ui={"3d": [entry]})


class SaveStage(io.ComfyNode):
    """A stage to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SaveStage",
            "TRELLIS.2 Save Stage",
            "Writes a structure, shape or texture as safetensors: Load Stage goes on from it, on any machine.",
            is_output_node=True,
            inputs=[
                io.MultiType.Input("stage", types=[Structure, Shape, Texture], tooltip="What a sampler made."),
                io.String.Input("filename_prefix", default="trellis2/stage", tooltip="Below the output folder."),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="Below the output folder.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str) -> bool | str:
        return host.check_prefix(filename_prefix)

    @classmethod
    def execute(cls, stage: Any, filename_prefix: str) -> io.NodeOutput:
        from ..trellis_core.stage_files import save_stage

        path, entry = host.output_file(filename_prefix, ".safetensors")
        save_stage(stage, path)
        return io.NodeOutput(host.below(entry), ui={"text": [host.below(entry)]})


class LoadStage(io.ComfyNode):
    """A saved stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadStage",
            "TRELLIS.2 Load Stage",
            "Reads what Save Stage wrote. Use the output that fits: a file holds one stage.",
            inputs=[
                io.String.Input(
                    "file",
                    default="trellis2/stage_00001_.safetensors",
                    tooltip='A name below the output folder, as Save Stage gives it; or "name [input]" for the input folder.',
                )
            ],
            outputs=[
                Structure.Output("structure", display_name="structure", tooltip="Of a file that holds one."),
                Shape.Output("shape", display_name="shape", tooltip="Of a file that holds one."),
                Texture.Output("texture", display_name="texture", tooltip="Of a file that holds one."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return host.check_file(file)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return host.stamp(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..trellis_core.stage_files import STAGES, load_stage

        value = load_stage(host.user_file(file)[0])
        held = next(name for name, kind in STAGES.items() if isinstance(value, kind))
        empty = host.blocked(f"{file} holds a {held}: use that output of the Load Stage node.")
        return io.NodeOutput(*(value if name == held else empty for name in STAGES))


NODES = [SaveGLB, View3D, SaveStage, LoadStage]
