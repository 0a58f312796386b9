"""Socket types, and what older hosts lack: everything is found by looking, nothing by version numbers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import Types, io

Family = io.Custom("TRELLISCORE_FAMILY")
Condition = io.Custom("TRELLISCORE_CONDITION")
Structure = io.Custom("TRELLISCORE_STRUCTURE")
Shape = io.Custom("TRELLISCORE_SHAPE")
Texture = io.Custom("TRELLISCORE_TEXTURE")
Loras = io.Custom("TRELLISCORE_LORAS")
PbrVoxels = io.Custom("TRELLISCORE_PBR_VOXELS")
Asset = io.Custom("TRELLISCORE_ASSET")

File3D = getattr(io, "File3DGLB", None) or io.Custom("FILE_3D_GLB")
AnyFile3D = getattr(io, "File3DAny", None) or io.Custom("FILE_3D")

_SCHEMA_FIELDS = frozenset(io.Schema.__dataclass_fields__)

CATEGORY = "3d/TRELLIS.2"


def schema(node_id: str, display_name: str, description: str, **more: Any) -> io.Schema:
    """An `io.Schema` in our category, without the fields that this host does not know."""
    known = {key: value for key, value in more.items() if key in _SCHEMA_FIELDS}
    return io.Schema(
        node_id=f"TrellisCore{node_id}",
        display_name=display_name,
        category=CATEGORY,
        description=description,
        **known,
    )


def advanced(widget: Any) -> Any:
    """The same input, folded away by hosts that can fold."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


class _MemoryFile:
    """What nodes use of the host's File3D, for hosts that have none."""

    def __init__(self, data: bytes, file_format: str) -> None:
        self._data, self.format = data, file_format

    def get_bytes(self) -> bytes:
        return self._data

    def save_to(self, path: str) -> str:
        with open(path, "wb") as file:
            file.write(self._data)
        return path


def glb_file(data: bytes) -> Any:
    """A GLB in memory as the host's 3D file."""
    if hasattr(Types, "File3D"):
        from io import BytesIO

        return Types.File3D(BytesIO(data), "glb")
    return _MemoryFile(data, "glb")


def model_outputs() -> list[Any]:
    """What every node gives that makes whole models, wherever they are made."""
    return [
        File3D.Output("glb", display_name="glb", is_output_list=True),
        io.Image.Output("base_color", display_name="base_color", is_output_list=True),
        io.String.Output(
            "path", display_name="path", is_output_list=True, tooltip="The files, in the host's temporary folder."
        ),
        io.Int.Output("seed_out", display_name="seed"),
        io.String.Output("report", display_name="report", tooltip="What was made, and how good it is."),
    ]
