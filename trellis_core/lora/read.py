"""Any LoRA file to the normal form: for every network in it, changes by parameter name (docs/method/lora.md).

The table of contents is judged before a tensor is read; a file is understood as a whole or refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod, sqrt
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from ..weights.header import DTYPES, Stored, read_header, refuse_pickle
from .deltas import Delta, Difference, Hadamard, Kronecker, LowRank, Replacement
from .names import Place, find_place, stranger
from .scales import MAX_ALPHA, Config, read_config

MAX_BYTES = 1 << 30
MAX_RANK = 512
MAX_VALUE = 1e6
"""Largest number: products of any of them, and of an alpha, stay finite in float32."""
MAX_NUMBERS = 1 << 26
"""Of one parameter, multiplied out; the largest of the official networks has 14 million."""

_OF = r"(?:\.(?!weight$|bias$)[^.]+)?"  # a PEFT adapter's name
TENSORS = {
    "down": rf"lora[._]?(?:A|down){_OF}(?:\.weight)?",
    "up": rf"lora[._]?(?:B|up){_OF}(?:\.weight)?",
    "up_bias": rf"lora_(?:B|up){_OF}\.bias",
    "alpha": r"alpha",
    "magnitude": rf"lora_magnitude_vector{_OF}(?:\.weight)?|dora_scale",
    **{part: rf"{part}{_OF}" for w in "12" for part in (f"lokr_w{w}", f"lokr_w{w}_a", f"lokr_w{w}_b")},
    **{part: rf"{part}{_OF}" for w in "12" for part in (f"hada_w{w}_a", f"hada_w{w}_b")},
    "difference": r"diff|w_norm",
    "bias_difference": r"diff_b|b_norm",
    "replacement": r"set_weight|(?:modules_to_save\.[^.]+\.)?weight",
    "bias_replacement": r"(?:modules_to_save\.[^.]+\.)?bias",
    "unsupported": r"oft_\w+|boft_\w+|[ab][12]\.weight|lora_mid\.weight|lokr_t2|hada_t[12]|vera_\w+|reshape_weight",
}
"""What a tensor of an adapter is -> how its key ends."""

_KEY = re.compile(r"(?P<name>.+?)[._](?:" + "|".join(f"(?P<{part}>{end})" for part, end in TENSORS.items()) + ")")

FACTORS = {
    **dict.fromkeys(("down", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"), 0),
    **dict.fromkeys(("up", "hada_w1_a", "hada_w2_a", "lokr_w1_a", "lokr_w2_a"), 1),
    **dict.fromkeys(("lokr_w1", "lokr_w2")),
}
"""Tensors that are matrices -> which of their axes is the rank, if one is."""

BIASES = ("bias_difference", "bias_replacement")
FORMS = {
    "LoRA": ({"down", "up"}, {"up_bias", "alpha", "magnitude", *BIASES}),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"alpha", *BIASES}),
    "full difference": (set(), {"difference", "replacement", *BIASES}),
}
"""Kind of a layer's adapter -> the tensors it must have, and those it may have; LoKr has many forms of its own."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one file does to one network.

    Attributes:
        deltas: by parameter name.
        stage, resolution: as the keys say it, None where they do not.
        kinds: e.g. {"LoRA"}, {"DoRA"}.
        alphas: every alpha with its source.
        digest: of the file; stacks are put in its order, so that sums do not depend on the user's.
    """

    deltas: Mapping[str, Delta]
    stage: str | None
    resolution: int | None
    kinds: frozenset[str]
    alphas: frozenset[tuple[float, str]]
    digest: str

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({d.rank for d in self.deltas.values() if d.rank is not None}))


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file in normal form.

    Attributes:
        adapters: one for every network that its keys tell apart.
        skipped: layer names that no flow transformer has, or whose form is not supported, with the reason.
        metadata: the file's own notes.
        config: what was found beside the tensors.
    """

    path: Path
    adapters: tuple[Adapter, ...]
    skipped: tuple[str, ...]
    metadata: Mapping[str, str]
    config: Config


@dataclass
class _Layer:
    """Tensors of one layer, by what they are."""

    place: Place
    keys: dict[str, str] = field(default_factory=dict)


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA: a safetensors file, or a folder as PEFT saves it.

    Raises:
        WeightsError: missing, a pickle, damaged, empty, too large, made for another model, of rank 0 or above
            `MAX_RANK`, or with numbers that are not finite; says which.
    """
    file = _file(Path(path).expanduser())
    header = read_header(file)
    groups, skipped = _sort(file, header)
    keys = [key for layers in groups.values() for layer in layers.values() for key in layer.keys.values()]
    metadata, tensors = _tensors(file, keys)
    config = read_config(file, metadata)
    digest = _digest(file)
    adapters = []
    for (stage, resolution), layers in sorted(groups.items(), key=str):
        deltas: dict[str, Delta] = {}
        kinds, alphas = set(), set()
        for layer in layers.values():
            made = _Maker(file, layer, {part: tensors[key] for part, key in layer.keys.items()}, config)
            deltas |= made.deltas()
            kinds.add(made.kind)
            alphas |= made.alphas
        adapters.append(Adapter(deltas, stage, resolution, frozenset(kinds), frozenset(alphas), digest))
    return LoraFile(file, tuple(adapters), tuple(skipped), metadata, config)


def _file(path: Path) -> Path:
    refuse_pickle(path)
    if path.is_dir():
        if not (path / "adapter_model.safetensors").is_file():
            if (path / "adapter_model.bin").exists():
                refuse_pickle(path / "adapter_model.bin")
            raise WeightsError(f"The folder {path} holds no adapter_model.safetensors, which PEFT saves a LoRA as.")
        path = path / "adapter_model.safetensors"
    if not path.is_file():
        raise WeightsError(f"There is no LoRA {path}.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise WeightsError(f"{path} has {size / 1e9:.1f} GB; LoRAs of more than {MAX_BYTES / 1e9:.1f} GB are not read.")
    if size == 0:
        raise WeightsError(f"{path} is empty (0 bytes). Download or copy it again.")
    return path


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sort(file: Path, header: Mapping[str, Stored]) -> tuple[dict[tuple, dict[str, _Layer]], list[str]]:
    """Keys by network and layer; and what cannot be used. Raises where nothing can."""
    groups: dict[tuple, dict[str, _Layer]] = defaultdict(dict)
    skipped: dict[str, None] = {}
    for key, stored in header.items():
        match = _KEY.fullmatch(key)
        place = find_place(match["name"]) if match else find_place(key)
        if place is None or match is None:
            skipped[f"{match['name'] if match else key}: no such layer"] = None
            continue
        part = str(match.lastgroup)
        if part == "unsupported":
            skipped[f"{place.target}: {key.removeprefix(match['name'])[1:]} adapters are not supported"] = None
            continue
        _check_stored(file, key, part, stored)
        layer = groups[place.stage, place.resolution].setdefault(place.target, _Layer(place))
        if part in layer.keys:
            raise WeightsError(
                f'{file} holds two adapters for {place.target} ("{layer.keys[part]}" and "{key}"): '
                "save each in a file of its own."
            )
        layer.keys[part] = key
    adapted = any(layer.keys.keys() - {"replacement", "bias_replacement"} for g in groups.values() for layer in g.values())
    if not adapted:
        raise _nothing_usable(file, header, bool(groups), list(skipped))
    return groups, list(skipped)


def _nothing_usable(file: Path, header: Mapping[str, Stored], whole: bool, skipped: list[str]) -> WeightsError:
    if not header:
        return WeightsError(f"{file} holds no tensors: it is empty.")
    if whole:
        return WeightsError(f"{file} holds a whole network, not a LoRA for one. Weights are loaded as a family.")
    if any("not supported" in reason for reason in skipped):
        return WeightsError(f"{file} holds only adapters of a kind that is not supported: {skipped[0]}.")
    model = stranger(list(header))
    made_for = f" It seems to be made for {model}." if model else ""
    return WeightsError(
        f'{file} fits no TRELLIS.2 network: not one known layer, its first key is "{next(iter(header))}".{made_for}'
    )


def _check_stored(file: Path, key: str, part: str, stored: Stored) -> None:
    if stored.dtype not in DTYPES:
        raise WeightsError(f'{file}: tensor "{key}" is stored as {stored.dtype}; LoRAs hold {", ".join(DTYPES)}.')
    if part in FACTORS and len(stored.shape) != 2:
        raise WeightsError(f'{file}: tensor "{key}" should have two axes, not the shape {list(stored.shape)}.')
    axis = FACTORS.get(part)
    if axis is not None and not 1 <= stored.shape[axis] <= MAX_RANK:
        raise WeightsError(f'{file}: tensor "{key}" has rank {stored.shape[axis]}; ranks from 1 to {MAX_RANK} are read.')


def _tensors(file: Path, keys: list[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            # Copies: views into the mapped file would change if the file does.
            tensors = {key: opened.get_tensor(key).clone() for key in keys}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{file} is damaged: {error}. Download or copy it again.") from error
    for key, tensor in tensors.items():
        if tensor.numel() and not (largest := tensor.double().abs().max().item()) <= MAX_VALUE:
            what = f"numbers as large as {largest:.0e}" if isfinite(largest) else "NaN or infinite numbers"
            raise WeightsError(f'{file}: tensor "{key}" holds {what}: the LoRA is broken.')
    return metadata, tensors


class _Maker:
    """Makes the deltas of one layer."""

    def __init__(self, file: Path, layer: _Layer, parts: dict[str, Tensor], config: Config) -> None:
        self.file, self.place, self.parts, self.config = file, layer.place, parts, config
        self.alphas: set[tuple[float, str]] = set()
        self.kind = self._kind()

    def _kind(self) -> str:
        have = set(self.parts)
        if any(part.startswith("lokr") for part in have):
            return "LoKr"
        for kind, (needed, allowed) in FORMS.items():
            if needed <= have <= needed | allowed:
                return "DoRA" if "magnitude" in have else kind
        raise WeightsError(
            f"{self.file}: the adapter of {self.place.target} is incomplete: it has only {', '.join(sorted(have))}."
        )

    def deltas(self) -> dict[str, Delta]:
        make = {"LoRA": self._lora, "DoRA": self._lora, "LoKr": self._lokr, "LoHa": self._loha}.get(self.kind, dict)
        try:
            deltas = make() | self._full()
            if large := next((name for name, delta in deltas.items() if prod(delta.shape) > MAX_NUMBERS), None):
                raise ValueError(f"{large} would have {prod(deltas[large].shape):,} numbers, more than {MAX_NUMBERS:,}")
            return deltas
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise WeightsError(f"{self.file}: the tensors of {self.place.target} do not fit each other: {error}") from error

    def _alpha(self, rank: int) -> float:
        if "alpha" in self.parts:
            alpha, source = float(self.parts["alpha"].item()), "alpha tensors"
            if abs(alpha) > MAX_ALPHA:
                raise ValueError(f"alpha is {alpha:g}, larger than {MAX_ALPHA:g}")
        else:
            alpha, source = self.config.alpha(self.place.target, rank)
        self.alphas.add((alpha, source))
        return alpha

    def _lora(self) -> dict[str, Delta]:
        down, up = self.parts["down"], self.parts["up"]
        rank = down.shape[0]
        if up.shape[1] != rank:
            raise ValueError(f"ranks {rank} and {up.shape[1]}")
        over = sqrt(rank) if self.config.values.use_rslora and "alpha" not in self.parts else rank
        scale = self._alpha(rank) / over
        magnitude = self.parts.get("magnitude")
        if magnitude is not None and magnitude.numel() != up.shape[0]:
            raise ValueError(f"{magnitude.numel()} magnitudes for {up.shape[0]} outputs")
        deltas: dict[str, Delta] = {
            self.place.weight: LowRank(down, up, scale, None if magnitude is None else magnitude.flatten())
        }
        if "up_bias" in self.parts:
            deltas[f"{self.place.target}.bias"] = Difference(scale * self.parts["up_bias"].float())
        return deltas

    def _lokr(self) -> dict[str, Delta]:
        factors, ranks = [], []
        for name in ("lokr_w1", "lokr_w2"):
            if name in self.parts:
                factors.append(self.parts[name])
            else:
                a, b = self.parts[f"{name}_a"], self.parts[f"{name}_b"]
                if a.shape[0] * b.shape[1] > MAX_NUMBERS:
                    raise ValueError(f"{name} would have {a.shape[0] * b.shape[1]:,} numbers, more than {MAX_NUMBERS:,}")
                ranks.append(b.shape[0])
                factors.append(a.float() @ b.float())
        rank = ranks[-1] if ranks else self.config.rank(self.place.target)
        # PEFT always divides alpha by the rank; the other programs only where a factor is a product.
        scale = self._alpha(rank) / rank if rank and (ranks or self.config.is_peft) else 1.0
        first, second = factors
        return {self.place.weight: Kronecker(first, second, scale, ranks[-1] if ranks else None)}

    def _loha(self) -> dict[str, Delta]:
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        up1, down1, up2, down2 = (self.parts[name] for name in names)
        rank = down1.shape[0]
        made = Hadamard(up1, down1, up2, down2, self._alpha(rank) / rank)
        if made.shape != (up2.shape[0], down2.shape[1]) or up1.shape[1] != rank or up2.shape[1] != down2.shape[0]:
            raise ValueError("the two products differ in shape")
        return {self.place.weight: made}

    def _full(self) -> dict[str, Delta]:
        bias = f"{self.place.target}.bias"
        makers = {"difference": (self.place.weight, Difference), "replacement": (self.place.weight, Replacement)}
        makers |= {"bias_difference": (bias, Difference), "bias_replacement": (bias, Replacement)}
        return {name: make(self.parts[part]) for part, (name, make) in makers.items() if part in self.parts}
