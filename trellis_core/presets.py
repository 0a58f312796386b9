"""Presets: settings that go together for a purpose. Whoever starts a run may take one, and change single values of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError
from .settings import GenerationSettings

RECOMMENDED = "recommended"
"""The preset that sets nothing: what the weights recommend holds, and our defaults."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    RECOMMENDED: {},
    "draft": {"resolution": 512, "decimation_target": 20_000, "texture_size": 1024},
    "balanced": {"resolution": 1024, "decimation_target": 200_000, "texture_size": 2048},
    "fine": {"resolution": 1536, "decimation_target": 1_000_000, "texture_size": 4096},
    "game, low poly": {
        "resolution": 1024, "faces": 8_000, "texture_size": 2048, "normal_map": True, "occlusion_map": True, "pivot": "ground",
    },
    "3D print": {
        "resolution": 1024, "remesh": True, "decimation_target": 500_000, "texture_size": 1024, "pivot": "ground",
        "size_meters": 0.1,
    },
    "web, up to 5 MB": {
        "resolution": 1024, "decimation_target": 50_000, "texture_size": 2048, "image_format": "jpeg", "max_file_mb": 5.0,
    },
}  # fmt: skip
"""Name -> settings by name."""


def preset(name: str, resolutions: Sequence[int] = ()) -> GenerationSettings:
    """The settings of a preset.

    Args:
        resolutions: those that the weights can make. A preset's resolution is lowered to the next of them.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f'There is no preset "{name}". Choose one of: {", ".join(PRESETS)}.')
    values = dict(PRESETS[name])
    if "resolution" in values and resolutions:
        values["resolution"] = max((r for r in resolutions if r <= values["resolution"]), default=min(resolutions))
    return GenerationSettings(**values)
