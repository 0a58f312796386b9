"""How strongly an adapter acts by itself: alpha, and where it is written (spec E 3.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..weights.network_file import read_json

ASSUMED = "assumed equal to the rank: the file does not say"


@dataclass(frozen=True)
class Config:
    """What is known about an adapter beside its tensors, under PEFT's names, and from where."""

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def is_peft(self) -> bool:
        return "peft_type" in self.values or "target_modules" in self.values

    def alpha(self, target: str, rank: int) -> tuple[float, str]:
        """Alpha of a layer, and its source."""
        for pattern, value in (self.values.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", target):
                return _number(value, "alpha"), self.source
        if self.values.get("lora_alpha") is not None:
            return _number(self.values["lora_alpha"], "alpha"), self.source
        if self.values.get("alpha") is not None:  # PEFT's LoKr and LoHa call it so
            return _number(self.values["alpha"], "alpha"), self.source
        return float(rank), ASSUMED

    def rank(self, target: str) -> int | None:
        """Rank of a layer, for forms that do not show it."""
        for pattern, value in (self.values.get("rank_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", target):
                return int(_number(value, "rank"))
        return None if self.values.get("r") is None else int(_number(self.values["r"], "rank"))


def read_config(file: Path, metadata: Mapping[str, str]) -> Config:
    """The file's own metadata if it tells the scale, else the JSON file beside it, else nothing."""
    for key in ("adapter_config", "lora_adapter_metadata"):
        if key in metadata:
            try:
                values = json.loads(metadata[key])
                if isinstance(values, dict):
                    return Config({k.removeprefix("transformer."): v for k, v in values.items()}, f"metadata {key}")
            except json.JSONDecodeError as error:
                raise WeightsError(f'{file}: its metadata "{key}" is not JSON: {error}.') from error
    for rank, alpha in (("r", "lora_alpha"), ("ss_network_dim", "ss_network_alpha")):
        if metadata.get(alpha) not in (None, "", "None"):
            return Config({"lora_alpha": metadata[alpha], "r": metadata.get(rank)}, f"metadata {alpha}")
    for beside in _beside(file):
        if beside.is_file():
            values = read_json(beside)
            if "lora_alpha" in values or "peft_type" in values:
                return Config(values, beside.name)
    return Config()


def _beside(file: Path) -> list[Path]:
    """PEFT's folder has one adapter; in a folder with several files a config must carry the file's name."""
    own = [file.with_suffix(".json")]
    alone = file.stem == "adapter_model" or len(list(file.parent.glob("*.safetensors"))) == 1
    return [*own, file.with_name("adapter_config.json")] if alone else own


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise WeightsError(f'The adapter\'s {what} is "{value}", not a number.') from error
