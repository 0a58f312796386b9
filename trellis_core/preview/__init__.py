"""Pictures of a finished mesh, drawn in software: no GPU, no window, no extra package, the same bytes on every run.

Everything here is in the glTF frame: y up, the front of the object towards +z, texture v down.
"""

from .draw import Camera, Material, render
from .sheet import contact_sheet

__all__ = ["Camera", "Material", "contact_sheet", "render"]
