"""The weights and LoRAs that the host's folders hold."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import folder_paths

from ...trellis_core.errors import WeightsError
from ...trellis_core.family import BUNDLED, Family, load_family
from ...trellis_core.lora.source import BUNDLED as BUNDLED_LORAS
from .memory import networks

WEIGHTS = "trellis2"
"""Our folder in models/, and our key in extra_model_paths.yaml."""

PRECISIONS = ("int8", "fp8")
"""What flow networks can be rounded to; as `trellis_core.weights.low_precision` has them."""

NATIVE = ("diffusion_models", "vae", "clip_vision")
"""Where the host's own TRELLIS.2 files lie; the family's name is that of the first's file."""


def add_weights_folder() -> None:
    """Tell the host of models/trellis2; places named in extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(WEIGHTS, os.path.join(folder_paths.models_dir, WEIGHTS), is_default=True)


def family_names() -> list[str]:
    """Bundled families, then folders and files of weights that the host's folders hold."""
    return list(_families())


def _families() -> dict[str, Path]:
    found = {name: path for name, path in BUNDLED.items()}
    for home in map(Path, folder_paths.get_folder_paths(WEIGHTS)):
        places = [home, *sorted(home.glob("*/")), *sorted(home.glob("*/*/"))] if home.is_dir() else []
        for place in places:
            if (place / "pipeline.json").is_file():
                name = place.relative_to(home).as_posix() if place != home else home.name
                found.setdefault(name, place)
        for file in sorted(home.glob("*.safetensors")):
            found.setdefault(file.name, file)
    for name in folder_paths.get_filename_list(NATIVE[0]):
        if "trellis" in name.lower() and name.endswith(".safetensors"):
            found.setdefault(name, Path(folder_paths.get_full_path_or_raise(NATIVE[0], name)))
    return found


def open_family(name: str, precision: str | None = None) -> Family:
    """Find and check a family of `family_names`; its networks will live under the host's memory manager.

    `precision` is one of PRECISIONS, to round flow networks to, or None.

    Raises:
        WeightsError: it is not there (any more), damaged or incomplete.
    """
    path = _families().get(name)
    if path is None:
        raise WeightsError(
            f'There are no weights "{name}". Put a folder with pipeline.json into {folder_paths.get_folder_paths(WEIGHTS)[0]}, '
            "or the host's own TRELLIS.2 files into diffusion_models, vae and clip_vision; or choose "
            f"{', '.join(BUNDLED)}, which is always there."
        )
    family = load_family(path, also=_native_parts() if path.is_file() else (), precision=precision)
    return replace(family, name=name, hold=networks)


def family_stamp(name: str) -> str:
    """Changes when a file of the weights changes."""
    path = _families().get(name)
    if path is None:
        return "missing"
    files = [path, *_native_parts()] if path.is_file() else sorted(path.rglob("*.*"))
    facts = [f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files if file.is_file()]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()  # a digest: some hosts store this with the prompt


def _native_parts() -> list[Path]:
    names = [(kind, name) for kind in NATIVE for name in folder_paths.get_filename_list(kind)]
    parts = [folder_paths.get_full_path(kind, name) for kind, name in names if name.endswith(".safetensors")]
    return [Path(part) for part in parts if part]


def lora_names() -> list[str]:
    """LoRA files that the host knows, then those that ship with this pack."""
    known = [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]
    return [*known, *(name for name in _bundled_loras() if name not in known)]


def lora_path(name: str) -> Path:
    """Where a file of `lora_names` lies."""
    found = folder_paths.get_full_path("loras", name)
    return Path(found) if found else _bundled_loras().get(name) or Path(folder_paths.get_full_path_or_raise("loras", name))


def lora_stamp(name: str) -> str:
    """Changes when the file does."""
    stat = lora_path(name).stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _bundled_loras() -> dict[str, Path]:
    return {file.name: file for file in sorted(BUNDLED_LORAS.glob("*.safetensors"))}
