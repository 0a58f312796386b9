"""`python -m trellis_core lora info | convert | scale | merge`, and the `--lora` option of `generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..family import load_family
from ..lora.combine import parts_of
from ..lora.detect import origin_of
from ..lora.report import describe
from ..lora.source import find_lora
from ..lora.stack import Lora, match, read_cached
from ..lora.write import save
from .lora_options import SLOTS


def parse_lora(text: str, folders: Sequence[Path] | None = None) -> Lora:
    """A LoRA of `STAGE=FILE[:STRENGTH]`; the stage may be left out."""
    slot, equals, rest = text.partition("=")
    if not equals or slot not in SLOTS:
        if equals and "/" not in slot and not Path(text).exists():
            raise InputError(f'--lora {text}: "{slot}" is not a stage. Choose one of {", ".join(SLOTS)}.')
        slot, rest = "auto", text
    file, strength = split_strength(rest)
    stage, _, resolution = slot.partition("-")
    path = Path(file).expanduser()
    found = path if path.exists() else find_lora(file, folders)
    return Lora(found, strength, None if stage == "auto" else stage, int(resolution) if resolution else None)


def split_strength(text: str) -> tuple[str, float]:
    """File and strength of `FILE[:STRENGTH]`; a colon that is part of a path or address stays."""
    file, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return file, float(number)
    except ValueError:
        return text, 1.0


def run(options: argparse.Namespace) -> None:
    """Run one of the `lora` commands."""
    if options.action == "info":
        print(_info(options))
        return
    if options.output.suffix == ".safetensors" and not options.output.parent.is_dir():
        raise InputError(f"The folder {options.output.parent} does not exist: create it, or choose another place.")
    if options.rank is not None and options.rank < 1:
        raise InputError(f"--rank must be 1 or more, not {options.rank}.")
    if options.action == "merge":
        loras = [Lora(Path(file), strength) for file, strength in map(split_strength, options.files)]
    else:
        loras = [Lora(Path(options.file), getattr(options, "strength", 1.0))]
    written = save(options.output, parts_of(loras, options.rank), options.format, options.dtype)
    print(f"Written  {written} ({written.stat().st_size / 1e6:.2f} MB)")


def _info(options: argparse.Namespace) -> str:
    path = Path(options.file).expanduser()
    path = path if path.exists() else find_lora(options.file)
    file = read_cached(path)
    if not options.weights:
        return describe(file, [origin_of(file, adapter) for adapter in file.adapters])
    family = load_family(options.weights)
    stage, _, resolution = options.stage.partition("-")
    lora = Lora(path, 1.0, None if stage == "auto" else stage, int(resolution) if resolution else None)
    return "\n".join(report.to_text() for report in match(family, lora))
