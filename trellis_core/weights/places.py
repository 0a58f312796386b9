"""Where the files of a family lie: below its folder, beside it, where ComfyUI keeps them, or in the Hugging Face cache."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import WeightsError
from .network_file import is_network
from .official import COMFY_FOLDERS, GGUF_FOLDERS, SAME_ENCODER
from .pipeline import FILE

FETCH = "`python -m trellis_core download` fetches the official weights."


def network_place(root: Path, reference: str) -> Path:
    """The stem of a network that `pipeline.json` in `root` refers to.

    Raises:
        WeightsError: it is nowhere; says where was looked.
    """
    return _first(root, reference, _network_places(root, reference), is_network)


def is_there(root: Path, reference: str) -> bool:
    """Whether a network that a pipeline in `root` refers to is there, with its weights."""
    stems = _network_places(root, reference)
    return any(is_network(stem) and any(stem.parent.glob(f"{glob.escape(stem.name)}*.[gs]*")) for stem in stems)


def _network_places(root: Path, reference: str) -> list[Path]:
    name = reference.rpartition("/")[2]
    return [*_places(root, reference), *(root / folder / name for folder in GGUF_FOLDERS)]


def encoder_place(root: Path, reference: str) -> Path:
    """The folder of the picture encoder that `pipeline.json` in `root` refers to, or of the same one under another name."""
    places = [place for name in (reference, *SAME_ENCODER.get(reference, ())) for place in _places(root, name)]
    return _first(root, reference, places, lambda folder: (folder / "config.json").is_file())


def candidates(path: Path) -> list[Path]:
    """The file itself, then every file of weights in its folder and where ComfyUI keeps the parts that go with it."""
    root = path if path.is_dir() else path.parent
    homes = [root, *(base / sub for base in (root, root.parent) for sub in COMFY_FOLDERS)]
    around = {file for home in homes if home.is_dir() for end in ("safetensors", "gguf") for file in home.glob(f"*.{end}")}
    return [path] * path.is_file() + sorted(around - {path})


def cached_snapshots(repository: str) -> list[Path]:
    """Snapshots of `owner/repository` in the local Hugging Face cache, the one that `main` names first."""
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repository):
        return []
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    base = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{repository.replace('/', '--')}"
    main = base / "refs" / "main"
    name = main.read_text(errors="replace").strip() if main.is_file() else ""
    named = [base / "snapshots" / name] if re.fullmatch(r"[\w-]{1,64}", name) else []
    return [s for s in dict.fromkeys([*named, *sorted(base.glob("snapshots/*"))]) if s.is_dir()]


def _places(root: Path, reference: str) -> list[Path]:
    """Where `reference`, owner/repository/path or a path below the folder, may be."""
    owner, _, rest = reference.partition("/")
    repository, _, inner = rest.partition("/")
    if not repository:
        return [root / reference]
    near = [base / part for base in (root, root.parent) for part in (f"{repository}/{inner}", reference)]
    return [root / reference, *near, *(snapshot / inner for snapshot in cached_snapshots(f"{owner}/{repository}"))]


def _first(root: Path, reference: str, places: Sequence[Path], is_there: Callable[[Path], bool]) -> Path:
    if found := next((place for place in places if is_there(place)), None):
        return found
    looked = ", ".join(map(str, dict.fromkeys(places)))
    raise WeightsError(f'{root / FILE} refers to "{reference}", which is not there. Looked at: {looked}. {FETCH}')
