"""Stage values as safetensors files: what one machine sampled, another can go on from.

A file holds one value. One entry of its metadata, JSON, says which (`stage`) and holds its plain numbers; tensors go by
their field's name.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import InputError, WeightsError
from .files import write_whole
from .network_params import Side
from .noise import streams_at
from .outside import checked, parse_object
from .values import Shape, Structure, Texture
from .weights.header import read_header

FORMAT = "trellis_core.stage.1"
"""Key of the metadata entry. One entry only: safetensors keeps several in no order, and equal stages are equal files."""

STAGES = {"structure": Structure, "shape": Shape, "texture": Texture}

Stage = Structure | Shape | Texture


def save_stage(value: Stage, path: str | os.PathLike[str]) -> None:
    """Write a stage value, completely or not at all.

    Raises:
        InputError: the file cannot be written there.
    """
    name = next(stage for stage, kind in STAGES.items() if isinstance(value, kind))
    entries = {field.name: getattr(value, field.name) for field in fields(value)}
    tensors = {key: entry.contiguous() for key, entry in entries.items() if isinstance(entry, Tensor)}
    numbers = {key: entry for key, entry in entries.items() if not isinstance(entry, Tensor)}
    write_whole(path, save(tensors, {FORMAT: json.dumps({"stage": name, **numbers})}))


def load_stage(path: str | os.PathLike[str]) -> Stage:
    """Read a file of `save_stage` back.

    Raises:
        InputError: it is not there, damaged, something else, or its parts do not fit together.
    """
    path = Path(path)
    text, tensors = _read(path)
    where = f"{path} is not a whole stage file: its note"
    notes = checked(_Notes, parse_object(text, where), where)
    kind = STAGES[notes.stage]
    parts = {"made_with": notes.made_with, **tensors}
    names = [field.name for field in fields(kind)]
    parts |= {name: number for name in names if name not in parts and (number := getattr(notes, name, None)) is not None}
    if missing := sorted(set(names) - set(parts)) or sorted(set(parts) - set(names)):
        raise InputError(f"{path} lacks a part of a stage, or has one too many: {', '.join(missing)}. Save the stage again.")
    value = kind(**parts)
    _check(value, path)
    return value


class _Notes(BaseModel):
    """What is written beside a stage's tensors; files of version 0.1 do not say what they were made with."""

    stage: Literal["structure", "shape", "texture"]
    grid: Side | None = None
    resolution: Side | None = None
    samples: Annotated[int, Field(ge=1, le=1 << 12)] | None = None
    made_with: dict[str, Any] = {}


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The note of a stage file, and its tensors."""
    if not path.exists():
        raise InputError(f"There is no file {path}.")
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except WeightsError as error:
        raise InputError(str(error)) from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a stage file: {error}.") from error
    if text is None:
        raise InputError(f"{path} is not a stage file of this program. Save Stage writes them.")
    return text, tensors


def _check(value: Stage, path: Path) -> None:
    feats, coords, rng = (getattr(value, name, None) for name in ("feats", "coords", "rng"))
    samples = 1 if isinstance(value, Texture) else value.samples
    good = rng is None or (rng.dtype == torch.uint8 and rng.ndim in (1, 2))
    if feats is not None:
        good = good and feats.ndim == 2 and feats.dtype == torch.float32 and bool(feats.isfinite().all())
    if coords is not None and not isinstance(value, Texture):
        side = value.grid if isinstance(value, Structure) else value.resolution
        good = good and coords.ndim == 2 and coords.shape[1] == 4 and coords.dtype == torch.int32 and len(coords) > 0
        good = good and bool((coords >= 0).all() and (coords[:, 1:] < side).all() and samples == coords[:, 0].max() + 1)
        good = good and (feats is None or len(feats) == len(coords))
    if not good:
        raise InputError(f"{path} holds numbers that do not fit together. Save the stage again.")
    if rng is not None:
        streams_at(rng, samples)
