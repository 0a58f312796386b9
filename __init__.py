"""TRELLIS.2 Core: the folder that ComfyUI loads as a node pack. The library is `trellis_core`."""
