"""How strongly an adapter acts by itself: alpha, and where it is written (docs/method/lora.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import WeightsError
from ..outside import checked, parse_object, read_object

ASSUMED = "assumed equal to the rank: the file does not say"
MAX_ALPHA = 1e5

_LITERAL = re.compile(r"[\w.]+")
_WRITTEN = ("adapter_config", "lora_adapter_metadata")
"""Keys of a file's metadata that hold a whole config."""


def _from_text(value: Any) -> Any:
    """Metadata holds texts only: those that are numbers."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if isfinite(number) else value


def _whole(value: Any) -> Any:
    value = _from_text(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_pattern(text: str) -> str:
    """Regular expressions come from strangers: only those that cannot take long."""
    if not _LITERAL.fullmatch(text):
        if len(re.findall(r"[*+?{]", text)) > 3 or re.search(r"\)\s*[*+?{]", text):
            raise ValueError("this pattern repeats too much")
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"this is no pattern: {error}") from None
    return text


Alpha = Annotated[float, BeforeValidator(_from_text), Field(ge=-MAX_ALPHA, le=MAX_ALPHA)]
Rank = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1 << 20)]
Pattern = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_is_pattern)]


class AdapterConfig(BaseModel):
    """What is known about an adapter beside its tensors, under PEFT's names.

    Attributes:
        alpha: PEFT's LoKr and LoHa call it so.
        alpha_pattern, rank_pattern: by the end of a layer's name.
    """

    model_config = ConfigDict(frozen=True)

    peft_type: str | None = None
    target_modules: str | list[str] | None = None
    r: Rank | None = None
    lora_alpha: Alpha | None = None
    alpha: Alpha | None = None
    use_rslora: bool | None = None
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=4096)] | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=4096)] | None = None
    base_model_name_or_path: str | None = None
    stage: str | None = None
    denoiser: str | None = None
    auto_mapping: dict[str, str | None] | None = None


@dataclass(frozen=True)
class Config:
    """An adapter's config and where it was found."""

    values: AdapterConfig = field(default_factory=AdapterConfig)
    source: str = ""

    @property
    def is_peft(self) -> bool:
        return self.values.peft_type is not None or self.values.target_modules is not None

    def alpha(self, target: str, rank: int) -> tuple[float, str]:
        """Alpha of a layer, and its source."""
        for alpha in (_of_layer(self.values.alpha_pattern, target), self.values.lora_alpha, self.values.alpha):
            if alpha is not None:
                return alpha, self.source
        return float(rank), ASSUMED

    def rank(self, target: str) -> int | None:
        """Rank of a layer, for forms that do not show it."""
        rank = _of_layer(self.values.rank_pattern, target)
        return self.values.r if rank is None else rank


def read_config(file: Path, metadata: Mapping[str, str]) -> Config:
    """The file's own metadata if it tells the scale, else the JSON file beside it, else nothing.

    Raises:
        WeightsError: what is written there is no config.
    """
    for key in _WRITTEN:
        if key in metadata:
            where = f'{file}: its metadata "{key}"'
            values = parse_object(metadata[key], where, raising=WeightsError)
            return _config({k.removeprefix("transformer."): v for k, v in values.items()}, where, f"metadata {key}")
    for rank, alpha in (("r", "lora_alpha"), ("ss_network_dim", "ss_network_alpha")):
        if metadata.get(alpha) not in (None, "", "None"):
            values = {"lora_alpha": metadata[alpha], "r": metadata.get(rank)}
            return _config(values, f"{file}: its metadata", f"metadata {alpha}")
    for beside in _beside(file):
        if beside.is_file():
            values = read_object(beside, raising=WeightsError)
            if "lora_alpha" in values or "peft_type" in values:
                return _config(values, str(beside), beside.name)
    return Config()


def _config(values: Mapping[str, Any], where: str, source: str) -> Config:
    return Config(checked(AdapterConfig, values, f"{where} is no adapter's config", raising=WeightsError), source)


def _beside(file: Path) -> list[Path]:
    """PEFT's folder has one adapter; in a folder with several files a config must carry the file's name."""
    own = [file.with_suffix(".json")]
    alone = file.stem == "adapter_model" or len(list(file.parent.glob("*.safetensors"))) == 1
    return [*own, file.with_name("adapter_config.json")] if alone else own


def _of_layer(patterns: Mapping[str, Any] | None, target: str) -> Any:
    """The value of the first pattern that is the layer's name, or its end after a dot; None if there is none."""
    parts = target.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))}
    for pattern, value in (patterns or {}).items():
        if pattern in ends or (not _LITERAL.fullmatch(pattern) and re.fullmatch(rf"(.*\.)?({pattern})", target)):
            return value
    return None
