"""Any LoRA file to the normal form: for every network in it, changes by parameter name (docs/method/lora.md).

The table of contents is judged before a tensor is read; a file is understood as a whole or refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod, sqrt
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from ..weights.header import DTYPES, Stored, read_header, refuse_pickle
from .deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank, Replacement
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

FORMS = {
    "LoRA": ("down", "up"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "full difference": ("difference",),
    "replacement": ("replacement",),
}
"""What a layer's weight is changed by -> the tensors that this takes; LoKr has many forms of its own."""
BIASES = {"bias_difference", "bias_replacement"}
ASIDE = {"alpha", "magnitude", "up_bias", *BIASES}
"""Tensors that only add to a form."""


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
            skipped += made.left_out()
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
    """Makes the deltas of one layer, and tells which of its tensors had no part in them."""

    def __init__(self, file: Path, layer: _Layer, parts: dict[str, Tensor], config: Config) -> None:
        self.file, self.place, self.keys, self.config = file, layer.place, layer.keys, config
        self.parts = _Used(parts)
        self.alphas: set[tuple[float, str]] = set()
        self.form = self._form()

    @property
    def kind(self) -> str:
        """The form's name for people."""
        if "magnitude" not in self.parts.taken:
            return self.form or "full difference"
        return "DoRA" if self.form == "LoRA" else f"{self.form} with DoRA"

    def deltas(self) -> dict[str, Delta]:
        """What changes, by parameter."""
        make: dict[str | None, Callable[[], Delta]] = {
            "LoRA": self._lora,
            "LoKr": self._lokr,
            "LoHa": self._loha,
            "full difference": lambda: Difference(self.parts["difference"]),
            "replacement": lambda: Replacement(self.parts["replacement"]),
        }
        try:
            deltas = {} if self.form is None else {self.place.weight: self._decomposed(make[self.form]())}
            deltas |= self._bias()
            if large := next((name for name, delta in deltas.items() if prod(delta.shape) > MAX_NUMBERS), None):
                raise ValueError(f"{large} would have {prod(deltas[large].shape):,} numbers, more than {MAX_NUMBERS:,}")
            return deltas
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise WeightsError(f"{self.file}: the tensors of {self.place.target} do not fit each other: {error}") from error

    def left_out(self) -> list[str]:
        """Tensors that were not used, with the reason."""
        rest = [key for part, key in self.keys.items() if part not in self.parts.taken]
        return [f"{key}: has no meaning beside a {self.kind}" for key in rest]

    def _form(self) -> str | None:
        """The one form in which the layer's weight is changed; None where only its bias is."""
        have = set(self.parts)
        found = [name for name, needed in FORMS.items() if have.issuperset(needed)]
        if all(w in have or have.issuperset({f"{w}_a", f"{w}_b"}) for w in ("lokr_w1", "lokr_w2")):
            found.append("LoKr")
        if len(found) > 1:
            both = " and ".join(found)
            raise WeightsError(f"{self.file} holds two adapters for {self.place.target} ({both}): save each in its own file.")
        if not found and (have - ASIDE or not have & BIASES):
            names = ", ".join(sorted(have))
            raise WeightsError(f"{self.file}: the adapter of {self.place.target} is incomplete: it has only {names}.")
        return found[0] if found else None

    def _decomposed(self, change: Delta) -> Delta:
        """With the lengths of rows or columns where they are written; their shape says which, [out, 1] or [1, in]."""
        if "magnitude" not in self.parts or self.form == "replacement":
            return change
        magnitude = self.parts["magnitude"]
        if len(change.shape) != 2:
            raise ValueError("magnitudes are for matrices")
        size, (outputs, inputs) = magnitude.numel(), change.shape
        standing, lying = (magnitude.ndim > 1 and magnitude.shape[0] == rows for rows in (size, 1))
        if size == inputs and not standing and (lying or size != outputs):
            return Decomposed(change, magnitude.flatten(), over_inputs=True)
        if size != outputs:
            raise ValueError(f"{size} magnitudes for {outputs} outputs and {inputs} inputs")
        return Decomposed(change, magnitude.flatten())

    def _alpha(self, rank: int) -> float:
        if "alpha" in self.parts:
            alpha, source = float(self.parts["alpha"].item()), "alpha tensors"
            if abs(alpha) > MAX_ALPHA:
                raise ValueError(f"alpha is {alpha:g}, larger than {MAX_ALPHA:g}")
        else:
            alpha, source = self.config.alpha(self.place.target, rank)
        self.alphas.add((alpha, source))
        return alpha

    def _lora(self) -> Delta:
        down, up = self.parts["down"], self.parts["up"]
        rank = down.shape[0]
        if up.shape[1] != rank:
            raise ValueError(f"ranks {rank} and {up.shape[1]}")
        return LowRank(down, up, self._lora_scale(rank))

    def _lora_scale(self, rank: int) -> float:
        over = sqrt(rank) if self.config.values.use_rslora and "alpha" not in self.parts else rank
        return self._alpha(rank) / over

    def _lokr(self) -> Delta:
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
        self.parts.taken.add("alpha")  # without a product the form has no rank, and its alpha says nothing
        first, second = factors
        return Kronecker(first, second, scale, ranks[-1] if ranks else None)

    def _loha(self) -> Delta:
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        up1, down1, up2, down2 = (self.parts[name] for name in names)
        rank = down1.shape[0]
        made = Hadamard(up1, down1, up2, down2, self._alpha(rank) / rank)
        if made.shape != (up2.shape[0], down2.shape[1]) or up1.shape[1] != rank or up2.shape[1] != down2.shape[0]:
            raise ValueError("the two products differ in shape")
        return made

    def _bias(self) -> dict[str, Delta]:
        """What is written of the bias: a LoRA's own share and a difference add up, a replacement stands alone."""
        added = []
        if self.form == "LoRA" and "up_bias" in self.parts:
            added.append(self._lora_scale(self.parts["down"].shape[0]) * self.parts["up_bias"].float())
        if "bias_difference" in self.parts:
            added.append(self.parts["bias_difference"])
        if "bias_replacement" in self.parts:
            if added:
                raise ValueError("the bias is both changed and replaced")
            return {f"{self.place.target}.bias": Replacement(self.parts["bias_replacement"])}
        return {f"{self.place.target}.bias": Difference(sum(added[1:], added[0]))} if added else {}


class _Used(dict[str, Tensor]):
    """Tensors by what they are; remembers which were asked for."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__(parts)
        self.taken: set[str] = set()

    def __getitem__(self, part: str) -> Tensor:
        self.taken.add(part)
        return super().__getitem__(part)
