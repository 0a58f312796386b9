"""TRELLIS.2 Core: the folder that ComfyUI loads as a node pack. The library is `trellis_core`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks here for the nodes. Imports wait until then, so that this file can be imported anywhere."""
    from .nodes import extension

    return extension()
