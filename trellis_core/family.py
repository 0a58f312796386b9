"""Which networks belong together, and how to sample with them: a family (docs/method/networks.md).

A family is known from configs and file headers alone. Its networks are read one at a time, when a stage needs one, and
let go after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .context import QUIET, RunContext
from .errors import EXHAUSTED, InputError, OutOfBudgetError, WeightsError, is_exhaustion
from .file_names import LONGEST_NAME
from .lora.apply import Use, applied
from .roles import (
    DECODER,
    FLOW_STAGE,
    IMAGE_ROLE,
    NEEDED,
    NORMALIZATION_KEY,
    SAMPLER_KEY,
    SHAPE_DECODER,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    TEXTURE_DECODER,
    Network,
    Role,
    flow_role,
)
from .settings import STAGES
from .threads import threads, threads_for
from .weights import official as published
from .weights.compatibility import check_together
from .weights.header import refuse_pickle
from .weights.low_precision import PRECISIONS
from .weights.network_file import NetworkFile, image_encoder_file, network_file
from .weights.official import Scale
from .weights.pipeline import FILE as PIPELINE
from .weights.pipeline import TEXTURING, LoraTraining, SamplerEntry, read_pipeline
from .weights.places import cached_snapshots, candidates, encoder_place, network_place
from .weights.repackaged import find_networks

if TYPE_CHECKING:
    from .settings import GenerationSettings

BUNDLED = {"mini": Path(__file__).parent / "mini"}
"""Families that ship with the program."""


@dataclass(frozen=True)
class Route:
    """How a resolution is reached: sample with `low`, refine with `model`, decode at `target`; keys of scales.

    `low` is None where `model` is sampled directly on the structure.
    """

    low: int | None
    model: int
    target: int

    @property
    def start(self) -> int:
        """The scale whose grid the structure is made for."""
        return self.low or self.model


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and spread of a latent, float32 [C]: networks sample in the normalised space."""

    mean: Tensor
    std: Tensor

    def apply(self, z: Tensor) -> Tensor:
        return (z - self.mean.to(z.device)) / self.std.to(z.device)

    def undo(self, z: Tensor) -> Tensor:
        return z * self.std.to(z.device) + self.mean.to(z.device)


@dataclass(frozen=True)
class Sampler:
    """A stage's sampler in a family: its noise floor, and the parameters that hold unless the user says otherwise."""

    sigma_min: float = 1e-5
    params: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def read_and_drop(network: NetworkFile, ctx: RunContext, rows: int, loras: Sequence[Use] = ()) -> Iterator[nn.Module]:
    """Hold a network in the simplest way: read it, and give its memory back at the end of the `with`."""
    try:
        model = network.load(ctx)
    except RuntimeError as error:
        if not is_exhaustion(error):
            raise
        raise OutOfBudgetError(f"The weights of {network.name} do not fit. {EXHAUSTED}") from error
    try:
        with applied(model, loras):
            yield model
    finally:
        model.to("meta")  # whoever still holds the network holds no memory
        if ctx.device.type == "cuda":
            torch.cuda.empty_cache()


Hold = Callable[[NetworkFile, RunContext, int, Sequence[Use]], AbstractContextManager[Any]]
"""Has a network, changed by LoRAs, on the context's device for as long as a `with` lasts; told how large its input is."""


@dataclass(frozen=True)
class Family:
    """Networks that were trained for each other. Made by `load_family`.

    Attributes:
        name: what to call it.
        networks: by role, named as in pipeline.json; nothing of them is in memory.
        scales: by resolution key, 512 always among them; see `resolutions` for those that the networks can make.
        samplers: by stage "structure", "shape", "texture".
        shape_norm, texture_norm: of the two structured latents.
        upscale: decoded voxels per latent voxel and axis.
        structure_side: voxels per axis that the structure decoder makes; grids it is pooled to divide it.
        hold: how its networks come to the device; a host with a memory manager puts its own way here.
        loras: by role, what changes its networks (see `lora.stack.place`).
        recommended: the resolution of its `default_pipeline_type`; None where that is not known.
        lora_training: how LoRAs for it are trained well.
    """

    name: str
    networks: Mapping[str, NetworkFile]
    scales: Mapping[int, Scale]
    samplers: Mapping[str, Sampler]
    shape_norm: Normalization
    texture_norm: Normalization
    upscale: int
    structure_side: int
    hold: Hold = read_and_drop
    loras: Mapping[str, Sequence[Use]] = field(default_factory=dict)
    recommended: int | None = None
    lora_training: LoraTraining = LoraTraining()

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Those that the networks at hand can make."""
        pairs = {key: [flow_role(stage, min(key, 1024)) for stage in ("shape", "texture")] for key in self.scales}
        return tuple(key for key, roles in pairs.items() if all(role in self.networks for role in roles))

    def route(self, resolution: int, cascade: bool = True) -> Route:
        """The way to `resolution`; raises `InputError` if this family has none."""
        if resolution not in self.resolutions:
            known = ", ".join(map(str, self.resolutions))
            raise InputError(f"The weights {self.name} cannot make resolution {resolution}. Choose one of: {known}.")
        if resolution == 512:
            return Route(None, 512, 512)
        if not cascade:
            if resolution != 1024:
                raise InputError(f"Resolution {resolution} is reached by a cascade only; direct sampling makes 1024.")
            if self.structure_side % self.scales[1024].structure_grid:
                raise InputError(f"The weights {self.name} reach resolution 1024 by the cascade only: leave it on.")
            return Route(None, 1024, 1024)
        if flow_role("shape", 512) not in self.networks:
            raise InputError(f"The weights {self.name} have no 512 shape network: turn the cascade off.")
        return Route(512, 1024, resolution)

    def advised(self, settings: GenerationSettings) -> GenerationSettings:
        """The settings, with the resolution that the weights recommend where none was given."""
        if self.recommended is None or "resolution" in settings.model_fields_set:
            return settings
        return settings.model_copy(update={"resolution": self.recommended})

    @contextmanager
    def network(self, role: Role[Network], ctx: RunContext = QUIET, rows: int = 0) -> Iterator[Network]:
        """The network of `role` on the context's device for as long as a `with` lasts; on a CPU with as many threads as it
        has work for.

        Args:
            rows: how large its input is, as `footprint.activation_bytes` counts.
        """
        with self.hold(self.networks[role], ctx, rows, self.loras.get(role, ())) as network:
            with threads(threads_for(network)) if ctx.device.type == "cpu" else nullcontext():
                yield network

    def roles(self, route: Route) -> tuple[str, ...]:
        """The networks that a run along `route` reads, in order."""
        shapes = [flow_role("shape", key) for key in (route.low, route.model) if key]
        texture = flow_role("texture", route.model)
        return (IMAGE_ROLE, STRUCTURE_FLOW, STRUCTURE_DECODER, *shapes, SHAPE_DECODER, texture, TEXTURE_DECODER)


def load_family(
    name_or_path: str | Path, ctx: RunContext = QUIET, *, also: Sequence[Path] = (), precision: str | None = None
) -> Family:
    """Find a family and check that its files are whole and belong together. Reads no tensor, downloads nothing.

    Args:
        name_or_path: "mini"; a folder with pipeline.json; a folder or file of ComfyUI's repackaged weights; or the
            name `owner/repository` of weights in the local Hugging Face cache.
        also: for repackaged weights, more files that may hold parts.
        precision: round the flow transformers to "int8" or "fp8" as they are read (see `lowbit`).

    Raises:
        WeightsError: something is missing, damaged, a pickle, or made for another family; says what and where.
    """
    path = _locate(name_or_path)
    ctx.check()
    official = path.is_dir() and (path / PIPELINE).is_file()
    family = _official(path) if official else _repackaged(path, also)
    return family if precision is None else _rounded(family, precision)


def _rounded(family: Family, precision: str) -> Family:
    if precision not in PRECISIONS:
        raise InputError(f'There is no precision "{precision}". Choose one of: {", ".join(PRECISIONS)}.')
    networks = {
        role: replace(network, precision=precision) if role in FLOW_STAGE else network
        for role, network in family.networks.items()
    }
    return replace(family, networks=networks)


def folder_of(family: Family) -> Path | None:
    """The folder with a family's pipeline.json; None for repackaged weights."""
    return next((p for p in family.networks[SHAPE_DECODER].file.parents if (p / PIPELINE).is_file()), None)


def find_encoder(family: Family, role: str) -> NetworkFile:
    """The encoder of `role`, a key of `published.ENCODERS`: what makes latents of models, for training and texturing.

    Raises:
        WeightsError: the family has none; repackaged weights never do.
    """
    root = folder_of(family)
    if root is None:
        raise WeightsError(f"The weights {family.name} have no encoders: use the official folder with pipeline.json.")
    network = network_file(network_place(root, read_pipeline(root).models.get(role) or published.ENCODERS[role]))
    network.check()
    return network


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text in BUNDLED:
        return BUNDLED[text]
    path = Path(text).expanduser()
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise WeightsError(f'The name "{text[:24]}..." is too long: names of files have at most {LONGEST_NAME} bytes.')
    if "\0" not in text and os.path.exists(path):
        refuse_pickle(path)
        return path.parent if path.name in (PIPELINE, TEXTURING) else path
    for snapshot in cached_snapshots(text):
        return snapshot
    raise WeightsError(
        f'There are no weights "{text}": no such file or folder, and no bundled family of that name '
        f"({', '.join(BUNDLED)}). `python -m trellis_core download` fetches the official ones."
    )


def _official(root: Path) -> Family:
    pipeline = read_pipeline(root)
    wanted = [role for role in (*DECODER.values(), *FLOW_STAGE) if pipeline.models.get(role)]
    networks: dict[str, NetworkFile] = {role: network_file(network_place(root, str(pipeline.models[role]))) for role in wanted}
    networks[IMAGE_ROLE] = image_encoder_file(encoder_place(root, pipeline.image_encoder))
    entries = {stage: getattr(pipeline, key) or SamplerEntry() for stage, key in SAMPLER_KEY.items()}
    samplers = {stage: Sampler(e.args.sigma_min, e.params.model_dump(exclude_none=True)) for stage, e in entries.items()}
    spreads = [getattr(pipeline, key) for key in NORMALIZATION_KEY.values()]
    norms = [Normalization(*(torch.tensor(values) for values in (s.mean, s.std))) for s in spreads]
    scales = published.SCALES if pipeline.resolutions is None else pipeline.resolutions
    family = _assemble(root.name, networks, scales, samplers, *norms)
    usual = pipeline.default_pipeline_type.partition("_")[0]
    recommended = next((r for r in family.resolutions if str(r) == usual), None)
    return replace(family, recommended=recommended, lora_training=pipeline.lora_training)


def _repackaged(path: Path, also: Sequence[Path]) -> Family:
    networks: dict[str, NetworkFile] = {}
    encoders, unread = [], []
    for file in dict.fromkeys([*candidates(path), *also]):
        try:
            found = find_networks(file)
        except WeightsError as error:
            if file == path:
                raise
            unread.append(str(error))
            continue
        encoders += [found.pop(IMAGE_ROLE)] if IMAGE_ROLE in found else []
        networks = found | networks
    if encoders:
        networks[IMAGE_ROLE] = _fitting(encoders, networks)
    if not networks:
        raise WeightsError(
            f"{path} holds no TRELLIS.2 weights: no pipeline.json, and no safetensors or GGUF file with known networks. "
            + " ".join(unread)
        )
    norms = [Normalization(*(torch.tensor(v) for v in pair)) for pair in (published.SHAPE_NORM, published.TEXTURE_NORM)]
    return _assemble(path.stem, networks, published.SCALES, {s: Sampler() for s in STAGES}, *norms)


def _fitting(encoders: Sequence[NetworkFile], networks: Mapping[str, NetworkFile]) -> NetworkFile:
    """Of several picture encoders, as ComfyUI's folder may hold, the first that the flow networks were trained with."""
    widths = {network.args.get("cond_channels") for role, network in networks.items() if role in FLOW_STAGE}
    return next((encoder for encoder in encoders if encoder.args.get("hidden_size") in widths), encoders[0])


def _assemble(
    name: str,
    networks: Mapping[str, NetworkFile],
    scales: Mapping[str, Scale],
    samplers: Mapping[str, Sampler],
    shape_norm: Normalization,
    texture_norm: Normalization,
) -> Family:
    if missing := [role for role in NEEDED if role not in networks]:
        raise WeightsError(f"The weights {name} are incomplete: no {', no '.join(missing)}.")
    known = {int(key): scale for key, scale in scales.items()}
    if 512 not in known:
        raise WeightsError(f'The "resolutions" of the weights {name} lack "512", the scale of the structure.')
    params = {role: network.check() for role, network in networks.items()}
    upscale = check_together(params, known, len(shape_norm.mean), len(texture_norm.mean))
    levels = len(params[STRUCTURE_DECODER].channels) - 1
    side = params[STRUCTURE_FLOW].resolution * 2**levels
    family = Family(name, networks, known, samplers, shape_norm, texture_norm, upscale, side)
    if not family.resolutions:
        raise WeightsError(f"The weights {name} have no pair of shape and texture flows for one resolution.")
    return family
