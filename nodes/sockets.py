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
Settings = io.Custom("TRELLISCORE_SETTINGS")
PbrVoxels = io.Custom("TRELLISCORE_PBR_VOXELS")
Asset = io.Custom("TRELLISCORE_ASSET")

File3D = getattr(io, "File3DGLB", None) or io.Custom("FILE_3D_GLB")
AnyFile3D = getattr(io, "File3DAny", None) or io.Custom("FILE_3D")


class _Listed(io.Combo.Input):
    """A combo in the form that hosts of 2025 check: they let any text pass for the newer form."""

    def get_io_type(self) -> Any:
        return self.options


Choice = io.Combo.Input if hasattr(io, "DynamicCombo") else _Listed
"""The widget of one choice out of several. A prompt with anything else is refused before it runs."""

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


def settings_input() -> Any:
    """Of nodes that settings nodes can be connected to."""
    return Settings.Input(
        "settings", optional=True, tooltip="From one of the settings nodes. Unconnected: what the weights recommend."
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


def glb_file(data: bytes, picture: Any = None) -> Any:
    """A GLB in memory as the host's 3D file. A picture of it stays on the object, for those who save it."""
    file: Any
    if hasattr(Types, "File3D"):
        from io import BytesIO

        file = Types.File3D(BytesIO(data), "glb")
    else:
        file = _MemoryFile(data, "glb")
    file.picture = picture
    return file


def model_outputs() -> list[Any]:
    """What every node gives that makes whole models, wherever they are made."""
    return [
        File3D.Output(
            "glb", display_name="glb", is_output_list=True, tooltip="The models as files in memory, textures inside."
        ),
        io.Image.Output("base_color", display_name="base_color", is_output_list=True, tooltip="The colour textures."),
        io.Int.Output("seed_out", display_name="seed", tooltip="The seed of the first; each next one's is larger by 1."),
        io.String.Output("report", display_name="report", tooltip="What was made, with what, and how good it is."),
    ]
