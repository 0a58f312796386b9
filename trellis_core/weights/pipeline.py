"""`pipeline.json`: which networks a family has, and how to sample with them (docs/method/networks.md), as a checked model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..errors import WeightsError
from ..network_params import needs
from ..outside import checked, read_object
from ..settings import RescaleT, Steps, Strength, Unit
from .official import Scale

FILE, TEXTURING = "pipeline.json", "texturing_pipeline.json"
"""Of the pipeline that makes a model of a picture, and, beside it, of the one that textures a given mesh."""


def _is_path(text: str) -> str:
    needs("\0" not in text and all(len(part.encode()) <= 200 for part in text.split("/")), "this is no path of a file")
    return text


Reference = Annotated[str, Field(max_length=1000), AfterValidator(_is_path)]
"""Where a network lies: below the folder, or as owner/repository/path."""


@dataclass(frozen=True)
class Spread:
    """A latent's normalisation: mean and standard deviation of every channel."""

    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=4096)]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    def __post_init__(self) -> None:
        needs(len(self.mean) == len(self.std), f"there are {len(self.mean)} means and {len(self.std)} spreads")


class SamplerDefaults(BaseModel):
    """A sampler's parameters in a family, all optional, within the ranges of the settings that they stand in for."""

    model_config = ConfigDict(frozen=True)

    steps: Steps | None = None
    guidance_strength: Strength | None = None
    guidance_rescale: Unit | None = None
    guidance_interval: Annotated[tuple[Unit, Unit], AfterValidator(lambda ends: _in_order(*ends))] | None = None
    rescale_t: RescaleT | None = None


def _in_order(start: float, end: float) -> tuple[float, float]:
    needs(start <= end, f"the interval ends at {end}, before it begins at {start}")
    return start, end


@dataclass(frozen=True)
class SamplerNoise:
    sigma_min: Annotated[float, Field(ge=0, lt=1)] = 1e-5


@dataclass(frozen=True)
class SamplerEntry:
    args: SamplerNoise = field(default_factory=SamplerNoise)
    params: SamplerDefaults = field(default_factory=SamplerDefaults)


@dataclass(frozen=True)
class EncoderName:
    model_name: Reference


@dataclass(frozen=True)
class EncoderEntry:
    args: EncoderName


@dataclass(frozen=True)
class LoraTraining:
    """How LoRAs for a family are trained well; where its file does not say, as the hosted trainer does it (docs/method/fal.md).

    Attributes:
        views: pictures that are drawn of a model which has none, from `azimuth` degrees around its front.
    """

    learning_rate: Annotated[float, Field(ge=1e-6, le=1e-2)] = 1e-4
    steps: Annotated[int, Field(ge=100, le=10_000)] = 1000
    views: Annotated[int, Field(ge=1, le=64)] = 4
    azimuth: Annotated[float, Field(ge=0, le=180)] = 180.0


@dataclass(frozen=True)
class Pipeline:
    """What `args` of pipeline.json holds.

    Attributes:
        models: role -> where its network lies.
        resolutions: None where they are those of the published family, whose file does not name them.
    """

    models: dict[str, Reference | None]
    image_cond_model: EncoderEntry
    shape_slat_normalization: Spread
    tex_slat_normalization: Spread
    sparse_structure_sampler: SamplerEntry | None = None
    shape_slat_sampler: SamplerEntry | None = None
    tex_slat_sampler: SamplerEntry | None = None
    resolutions: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}$")], Scale] | None = None
    default_pipeline_type: str = ""
    lora_training: LoraTraining = field(default_factory=LoraTraining)

    @property
    def image_encoder(self) -> str:
        return self.image_cond_model.args.model_name


@dataclass(frozen=True)
class _Document:
    args: Pipeline


def read_pipeline(folder: Path) -> Pipeline:
    """The pipeline of a weights folder.

    Raises:
        WeightsError: no such file, or it does not describe a pipeline; says what is wrong where.
    """
    content: dict[str, Any] = read_object(folder / FILE, raising=WeightsError)
    return checked(_Document, content, f"{folder / FILE} does not describe a pipeline", raising=WeightsError).args


@dataclass(frozen=True)
class _Models:
    models: dict[str, Reference | None]


@dataclass(frozen=True)
class Texturing:
    """What is known of texturing_pipeline.json: its name, and where its networks lie."""

    args: _Models
    name: str = "a pipeline without a name"


def read_texturing(folder: Path) -> Texturing:
    """The texturing pipeline of a weights folder; see `read_pipeline`."""
    content = read_object(folder / TEXTURING, raising=WeightsError)
    return checked(Texturing, content, f"{folder / TEXTURING} does not describe a pipeline", raising=WeightsError)
