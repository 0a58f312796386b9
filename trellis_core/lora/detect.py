"""Which stage, and which resolution, a LoRA was made for (docs/method/lora.md).

What the user says wins; this fills in what was left open, and finds contradictions. All five official flow transformers
have the same blocks, so a LoRA of blocks alone can only be told apart by what is written about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..settings import STAGES
from .deltas import Decomposed
from .read import Adapter, LoraFile

CERTAIN, TOLD, GUESSED = "certain", "told", "guessed"
OFFICIAL_WIDTH = 1536
OFFICIAL_INPUTS = {8: "structure", 32: "shape", 64: "texture"}

_NAMES = (  # texture first: a file may be called imgshape2tex
    ("structure", re.compile(r"(?<![a-z])(ss|sparse)(?![a-z])|sparse_?structure|structure")),
    ("texture", re.compile(r"tex|pbr")),
    ("shape", re.compile(r"geo|shape")),
)
_RESOLUTION = re.compile(r"(?<!\d)(512|1024)(?!\d)")
_NOTES = ("denoiser", "stage", "modelspec.architecture", "base_model", "base_model_name_or_path", "ss_base_model_version")


@dataclass(frozen=True)
class Origin:
    """What a LoRA was made for, and how that is known.

    Attributes:
        stages: possible ones; one where it is known.
        resolution: 512, 1024, or None where unknown.
        certainty: `CERTAIN` from names of sub-models or shapes, `TOLD` by metadata, `GUESSED` from the file's name; "" if open.
        evidence: in words.
    """

    stages: tuple[str, ...]
    resolution: int | None
    certainty: str
    evidence: str

    @property
    def stage(self) -> str | None:
        return self.stages[0] if len(self.stages) == 1 else None


def origin_of(file: LoraFile, adapter: Adapter, fitting: Sequence[str] = STAGES) -> Origin:
    """What an adapter of a file was made for.

    Args:
        fitting: the stages whose networks have all its parameters in its shapes, where the networks are known.
    """
    told_stages, told_resolution = _told(file)
    name = file.path.parent.name if file.path.name == "adapter_model.safetensors" else file.path.stem
    guess, guessed_resolution = _guess(name.lower())
    resolution = adapter.resolution or told_resolution or guessed_resolution
    if adapter.stage:
        return Origin((adapter.stage,), resolution, CERTAIN, "named in its keys")
    if by_shape := _by_shape(adapter):
        return Origin((by_shape,), resolution, CERTAIN, "known from the width of its input or output layer")
    if len(fitting) == 1:
        return Origin(tuple(fitting), resolution, CERTAIN, "the only network that it fits")
    told = [s for s in told_stages if s in fitting] or list(told_stages)
    if len(told) == 1:
        return Origin(tuple(told), resolution, TOLD, "told by its metadata")
    open_stages = told or list(fitting)
    if guess in open_stages:
        return Origin((guess,), resolution, GUESSED, f'guessed from the name "{name}"')
    return Origin(tuple(open_stages), resolution, "", "it changes blocks only, which look alike in all stages")


def _by_shape(adapter: Adapter) -> str | None:
    """Only at the official width: there the ends of the networks have widths of their own."""
    ends = {end: adapter.deltas.get(f"{end}.weight") for end in ("input_layer", "out_layer")}
    if (layer := ends["input_layer"]) is not None and layer.shape[0] == OFFICIAL_WIDTH:
        return OFFICIAL_INPUTS.get(layer.shape[1])
    if (layer := ends["out_layer"]) is not None and layer.shape == (8, OFFICIAL_WIDTH):
        return "structure"
    return None


def _told(file: LoraFile) -> tuple[tuple[str, ...], int | None]:
    """Stages and resolution that metadata or the config speak of."""
    notes = {key: file.metadata[key] for key in _NOTES if key in file.metadata}
    config = file.config.values
    for key in ("base_model_name_or_path", "stage", "denoiser"):
        if text := getattr(config, key):
            notes.setdefault(key, text)
    resolution = next(
        (int(r) for r in _RESOLUTION.findall(" ".join([file.metadata.get("resolution", ""), *notes.values()]))), None
    )
    for text in notes.values():
        stage, _ = _guess(text.lower())
        if stage:
            return (stage,), resolution
    classes = " ".join(map(str, (config.auto_mapping or {}).values()))
    if "SparseStructureFlowModel" in classes:
        return ("structure",), resolution
    if "SLatFlowModel" in classes:
        return ("shape", "texture"), resolution
    return (), resolution


def _guess(text: str) -> tuple[str | None, int | None]:
    resolution = _RESOLUTION.search(text)
    stage = next((stage for stage, pattern in _NAMES if pattern.search(text)), None)
    return stage, int(resolution[0]) if resolution else None


def by_magnitude(adapter: Adapter, row_norms: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Which network a DoRA was trained on: its magnitudes started as the row norms of that network's weights.

    Args:
        row_norms: network -> parameter -> float32 [out] of `magnitude_names`.

    Returns:
        The network whose norms are nearest, None where there is no magnitude or no clear winner (half the distance).
    """
    distances = {}
    for network, norms in row_norms.items():
        found = ((getattr(adapter.deltas[name], "magnitude", None), norm) for name, norm in norms.items())
        pairs = [(magnitude.float(), norm) for magnitude, norm in found if magnitude is not None]
        distances[network] = sum(((m - n).norm() / n.norm()).item() for m, n in pairs) / max(len(pairs), 1)
    best, *others = sorted(distances, key=lambda network: distances[network]) or [None]
    return best if best and (not others or distances[best] < 0.5 * distances[others[0]]) else None


def magnitude_names(adapter: Adapter, count: int = 4) -> list[str]:
    """A few parameters of the adapter that carry magnitudes."""
    return [n for n, d in adapter.deltas.items() if isinstance(d, Decomposed) and not d.over_inputs][:count]
