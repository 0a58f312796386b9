"""TRELLIS.2 Core: one picture to a textured 3D model, in plain PyTorch.

`load_family`, `stages`, `GenerationSettings` and `Asset` are the way in; they are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import stages
    from .asset.asset import Asset
    from .family import load_family
    from .settings import GenerationSettings

__version__ = "0.1.0"
__all__ = ["Asset", "GenerationSettings", "__version__", "load_family", "stages"]

_HOMES = {"Asset": "asset.asset", "GenerationSettings": "settings", "load_family": "family"}


def __getattr__(name: str) -> Any:
    if name == "stages":
        return importlib.import_module(".stages", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
