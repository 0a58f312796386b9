"""Stage values as safetensors files: what one machine sampled, another can go on from.

A file holds one value. One entry of its metadata, JSON, says which (`stage`) and holds its plain numbers; tensors go by
their field's name.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import InputError
from .files import write_whole
from .values import Shape, Structure, Texture

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
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a stage file: {error}.") from error
    if text is None:
        raise InputError(f"{path} is not a stage file of this program. Save Stage writes them.")
    try:
        notes = json.loads(text)
        kind = STAGES[notes["stage"]]
        used = dict(notes.get("made_with", {}))  # files of version 0.1 have none
        numbers = {f.name: int(notes[f.name]) for f in fields(kind) if f.name not in (*tensors, "made_with")}
        value = kind(**tensors, **numbers, made_with=used)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} lacks a part of a stage: {type(error).__name__} {error}.") from error
    _check(value, path)
    return value


def _check(value: Stage, path: Path) -> None:
    feats, coords = getattr(value, "feats", None), getattr(value, "coords", None)
    good = True
    if feats is not None:
        good = feats.ndim == 2 and feats.dtype == torch.float32 and bool(feats.isfinite().all())
    if coords is not None:
        side = getattr(value, "grid", None) or value.resolution
        good = good and coords.ndim == 2 and coords.shape[1] == 4 and coords.dtype == torch.int32 and len(coords) > 0
        good = good and bool((coords >= 0).all() and (coords[:, 1:] < side).all() and value.samples == coords[:, 0].max() + 1)
        good = good and (feats is None or len(feats) == len(coords))
    if not good:
        raise InputError(f"{path} holds numbers that do not fit together. Save the stage again.")
