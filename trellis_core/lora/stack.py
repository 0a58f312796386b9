"""A stack of LoRAs on a family: which file changes which network, checked on headers before any network is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path

import torch

from ..errors import InputError, WeightsError
from ..family import Family, Route
from ..roles import STRUCTURE_FLOW, flow_roles
from ..settings import STAGES
from ..weights.network_file import NetworkFile
from .apply import Use
from .deltas import Delta
from .detect import GUESSED, Origin, by_magnitude, magnitude_names, origin_of
from .read import Adapter, LoraFile, read_lora
from .report import MatchReport

V1_WIDTH = 1024
MAX_STRENGTH = 100


@dataclass(frozen=True)
class Lora:
    """One entry of a stack.

    Attributes:
        path: a safetensors file, or a folder as PEFT saves it.
        strength: 0 leaves it out, 1 is as trained, negative turns its effect around.
        stage: what it is for; None takes that from the file, and all of its stages where it holds several.
        resolution: 512 or 1024 for that network of the stage only; None for what the file says, else the finest.
    """

    path: Path
    strength: float = 1.0
    stage: str | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        if not abs(self.strength) <= MAX_STRENGTH:
            limits = f"between {-MAX_STRENGTH} and {MAX_STRENGTH}"
            raise InputError(f"The strength of {self.path.name} must be a number {limits}, not {self.strength}.")


def place(family: Family, loras: Sequence[Lora], route: Route, measured: bool = False) -> tuple[Family, list[MatchReport]]:
    """The family with a stack of LoRAs on its networks. Reads the LoRAs, and of the networks the headers.

    Args:
        route: what will be made; a stage's LoRA goes to the network that makes its result.
        measured: also read the changed weights, to tell how large the changes are against them.

    Raises:
        WeightsError: a file is unusable, or does not fit the network it is meant for.
        InputError: it is not known for which stage a LoRA is.
    """
    uses: dict[str, list[Use]] = {}
    reports = []
    for lora in loras:
        file = read_cached(lora.path)
        for adapter, origin in _chosen(family, file, lora):
            roles, warnings = _roles(family, lora, origin, route)
            fitted, skipped = _fitted(family.networks[roles[0]], adapter, lora)
            for role in roles:
                uses.setdefault(role, []).append(Use(fitted, float(lora.strength), _name(lora.path)))
            share = mean_share(family.networks[roles[0]], fitted) if measured else None
            applied = tuple(fitted.deltas)
            reports.append(
                MatchReport(
                    _name(lora.path), origin.stage, tuple(roles), applied, (*skipped, *file.skipped), fitted,
                    origin, float(lora.strength), share, tuple(warnings),
                )
            )  # fmt: skip
    return replace(family, loras={role: tuple(stack) for role, stack in uses.items()}), reports


def match(family: Family, lora: Lora) -> list[MatchReport]:
    """How a LoRA fits a family, on the way to the resolution that it was made for; measured."""
    file = read_cached(lora.path)
    known = [lora.resolution, *(origin_of(file, adapter).resolution for adapter in file.adapters)]
    resolution = next((r for r in known if r in family.resolutions), family.resolutions[0])
    return place(family, [lora], family.route(resolution), measured=True)[1]


def mean_share(network: NetworkFile, adapter: Adapter) -> float:
    """Mean of |difference| / |weight| over the parameters that an adapter changes, one weight in memory at a time."""
    shares = []
    with network.opened() as read:
        for name, delta in adapter.deltas.items():
            weight = read(name).float()
            shares.append(delta.norm(weight) / max(weight.norm().item(), 1e-12))
    return sum(shares) / len(shares)


def stages_that_fit(family: Family, adapter: Adapter) -> list[str]:
    """Stages with a network in which every parameter that the adapter changes is there, in its shape."""
    return [s for s in STAGES if any(not _misfits(family.networks[r], adapter) for r in _roles_of(family, s).values())]


def read_cached(path: Path) -> LoraFile:
    """`read_lora`, remembering the last few files."""
    path = path.expanduser()
    stat = path.stat() if path.exists() else None
    return _read_unchanged(path, stat and (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)
def _read_unchanged(path: Path, _stamp: object) -> LoraFile:
    return read_lora(path)


def _name(path: Path) -> str:
    return path.parent.name if path.name == "adapter_model.safetensors" else path.name


def _chosen(family: Family, file: LoraFile, lora: Lora) -> list[tuple[Adapter, Origin]]:
    """The parts of a file that the user means, each with one stage."""
    named = [a for a in file.adapters if a.stage]
    if lora.stage and named and len(file.adapters) > 1:
        mine = [a for a in file.adapters if a.stage == lora.stage]
        if not mine:
            stages = ", ".join(sorted({str(a.stage) for a in named}))
            raise WeightsError(f"{_name(lora.path)} holds LoRAs for {stages}, but none for the {lora.stage} stage.")
    else:
        mine = list(file.adapters)
    return [(adapter, _known_stage(family, file, adapter, lora)) for adapter in mine]


def _known_stage(family: Family, file: LoraFile, adapter: Adapter, lora: Lora) -> Origin:
    origin = origin_of(file, adapter, stages_that_fit(family, adapter) or STAGES)
    if lora.stage is not None:
        return origin if origin.stage == lora.stage else replace(origin, evidence=_doubt(origin, lora), stages=(lora.stage,))
    if origin.stage is None or origin.certainty == GUESSED:
        if network := by_magnitude(adapter, _row_norms(family, adapter, origin.stages)):
            stage, resolution = next((s, k) for s in STAGES for k, r in _roles_of(family, s).items() if r == network)
            return Origin(
                (stage,), resolution or origin.resolution, "certain", "its magnitudes are those of this network's weights"
            )
    if origin.stage is None:
        raise InputError(
            f"It is not known for which stage {_name(lora.path)} is: {origin.evidence}. Choose one of "
            f"{', '.join(origin.stages)}."
        )
    return origin


def _doubt(origin: Origin, lora: Lora) -> str:
    return origin.evidence if origin.stage is None else f"although it is for {origin.stage}: {origin.evidence}"


def _roles_of(family: Family, stage: str) -> dict[int | None, str]:
    """Resolution -> role of a stage's networks; None for the structure, which has one for all."""
    return {key: role for key, role in flow_roles(stage).items() if role in family.networks}


def _roles(family: Family, lora: Lora, origin: Origin, route: Route) -> tuple[list[str], list[str]]:
    """Networks that a LoRA goes to, and what to warn of."""
    stage, warnings = str(origin.stage), []
    if "although" in origin.evidence:
        warnings.append(f"it is used for {stage} {origin.evidence}")
    elif origin.certainty == GUESSED and lora.stage is None:
        warnings.append(f"the stage is {origin.evidence}; choose it if that is wrong")
    if stage == "structure":
        return [STRUCTURE_FLOW], warnings
    passes = [key for key in ((route.low, route.model) if stage == "shape" else (route.model,)) if key]
    wanted = lora.resolution or origin.resolution or route.model
    chosen = wanted if wanted in passes else route.model
    roles = _roles_of(family, stage)
    if chosen != wanted and family.networks.get(roles.get(wanted, "")) != family.networks[roles[chosen]]:
        warnings.append(f"it was made for the {wanted} network; this run uses the {chosen} one")
    same = [roles[key] for key in passes if family.networks[roles[key]] == family.networks[roles[chosen]]]
    if route.model not in passes[:1] and roles[route.model] not in same:
        warnings.append(f"it acts in the {chosen} pass only; the {route.model} pass refines without it")
    return same, warnings


def _fitted(network: NetworkFile, adapter: Adapter, lora: Lora) -> tuple[Adapter, list[str]]:
    """The adapter without what the network lacks; raises where it cannot be meant for this network."""
    misfits = _misfits(network, adapter)
    wrong = {name: text for name, text in misfits.items() if text}
    if wrong or len(misfits) == len(adapter.deltas):
        name, text = next(iter((wrong or {next(iter(misfits)): "the network has no such parameter"}).items()))
        raise WeightsError(f"{_name(lora.path)} does not fit the network {network.file.stem}: {name}: {text}.{_who(adapter)}")
    kept = {name: delta for name, delta in adapter.deltas.items() if name not in misfits}
    return replace(adapter, deltas=kept), [f"{name}: the network has no such parameter" for name in misfits]


def _misfits(network: NetworkFile, adapter: Adapter) -> dict[str, str]:
    """Parameters that a network lacks ("") or has in another shape (what differs)."""
    header = network.header()
    blocks = network.args.get("num_blocks")
    found = {}
    for name, delta in adapter.deltas.items():
        if name in header:
            if not _same_shape(delta, header[name].shape):
                found[name] = f"the LoRA is for {list(delta.shape)}, the network has {list(header[name].shape)}"
        elif name.startswith("blocks.") and isinstance(blocks, int) and int(name.split(".")[1]) >= blocks:
            found[name] = f"the network has {blocks} blocks"
        else:
            found[name] = ""
    return found


def _same_shape(delta: Delta, shape: tuple[int, ...]) -> bool:
    return delta.shape == shape or (len(shape) != 2 and prod(delta.shape) == prod(shape))


def _who(adapter: Adapter) -> str:
    widths = {d.shape[1] for n, d in adapter.deltas.items() if n.endswith(("self_attn.to_qkv.weight", "mlp.mlp.0.weight"))}
    return " It has the width of TRELLIS 1, whose LoRAs do not fit TRELLIS.2." if widths == {V1_WIDTH} else ""


def _row_norms(family: Family, adapter: Adapter, stages: Sequence[str]) -> Mapping[str, Mapping[str, torch.Tensor]]:
    names = magnitude_names(adapter)
    norms = {}
    for role in dict.fromkeys(role for stage in stages for role in _roles_of(family, stage).values()):
        network = family.networks[role]
        if names and not _misfits(network, adapter):
            with network.opened() as read:
                norms[role] = {name: read(name).float().norm(dim=1) for name in names}
    return norms
