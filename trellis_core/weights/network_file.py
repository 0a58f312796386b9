"""Reading networks from disk: safetensors only, every tensor accounted for (docs/method/networks.md).

A network lies as `stem.json` ({"name": class, "args": {...}}) beside `stem.safetensors`. Stored tensors may be half
precision throughout; they are copied into parameters of the dtype that the network's own policy asks for.
"""

from __future__ import annotations

import glob
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..context import QUIET, RunContext
from ..errors import WeightsError
from ..outside import checked, parse_object, read_object
from . import gguf
from .encoder_names import Part, is_timm, parts_of, read_args
from .header import DTYPES, PICKLES, Stored, read_header, refuse_pickle
from .low_precision import lower, rounded
from .quantised import CODES, COMPANION, decode

IMAGE_ENCODER = "DinoV3Encoder"
GGUF_CONFIG = "trellis.config_json"
"""Fact of a GGUF file that holds its network's config as published."""

NETWORKS = {
    "SparseStructureFlowModel": ("flow.structure", "SparseStructureFlowParams"),
    "SLatFlowModel": ("flow.slat", "SLatFlowParams"),
    "SparseStructureEncoder": ("vae.structure", "SparseStructureEncoderParams"),
    "SparseStructureDecoder": ("vae.structure", "SparseStructureDecoderParams"),
    "SparseUnetVaeEncoder": ("vae.sparse_unet", "SparseUnetVaeEncoderParams"),
    "SparseUnetVaeDecoder": ("vae.sparse_unet", "SparseUnetVaeDecoderParams"),
    "FlexiDualGridVaeEncoder": ("vae.sparse_unet", "FlexiDualGridVaeEncoderParams"),
    "FlexiDualGridVaeDecoder": ("vae.sparse_unet", "FlexiDualGridVaeDecoderParams"),
    IMAGE_ENCODER: ("image.dino", "DinoV3Params"),
}
"""Class name -> (module below trellis_core, class of its parameters)."""

ALIASES = {"ElasticSLatFlowModel": "SLatFlowModel"}
"""Published names of classes that differ from ours only in how they are trained."""

MAX_PARAMETERS = 16 * 10**9
"""Of one network; the largest published one has 1.3 billion."""

RECOMPUTED = re.compile(r"(.*\.)?(rope_phases|pos_emb)")
"""Buffers that a file may hold and that networks compute from their config."""

UNUSED = re.compile(r"embeddings\.mask_token|norm\.(weight|bias)")
"""Parameters of the image encoder that a file may lack: nothing here reads them."""

READABLE = tuple(dict.fromkeys((*DTYPES, *CODES, *(kind.name for kind in gguf.KINDS.values()))))
"""What tensors may be stored as."""


@dataclass(frozen=True)
class NetworkFile:
    """A network on disk, not yet read.

    Attributes:
        name: class, a key of `NETWORKS`.
        args: what the class's parameters are made from.
        file: the safetensors file.
        prefix: in front of the names of its tensors, for files that hold several networks.
        precision: None, or what the layers of a flow transformer are rounded to (see `lowbit`).
    """

    name: str
    args: Mapping[str, Any] = field(hash=False)
    file: Path
    prefix: str = ""
    precision: str | None = None

    def header(self) -> dict[str, Stored]:
        """Its tensors by our names for them."""
        return {key: part.stored for key, part in self._parts().items()}

    def _parts(self) -> dict[str, Part]:
        """Our name of every tensor -> where it lies, by its name without the prefix."""
        own = {k.removeprefix(self.prefix): v for k, v in read_header(self.file).items() if k.startswith(self.prefix)}
        return parts_of(own) if self.name == IMAGE_ENCODER else {key: Part(key, stored) for key, stored in own.items()}

    def build(self, ctx: RunContext = QUIET, ops: Any = nn) -> nn.Module:
        """The network on the meta device, its layers taken from the namespace `ops`: shapes and dtypes, no memory."""
        model = self._build(ctx, ops)
        if self.precision:
            lower(model, self.precision)
        return model

    def _build(self, ctx: RunContext = QUIET, ops: Any = nn) -> nn.Module:
        module, params = NETWORKS[self.name]
        home = importlib.import_module(f"..{module}", __package__)
        dtype = None if self.name == IMAGE_ENCODER else torso_dtype(ctx, self.args.get("dtype"))
        known = getattr(home, params).from_args(
            dict(self.args), f"The config of {self.file.stem} does not describe a {self.name}"
        )
        return getattr(home, self.name)(known, ops=ops, device="meta", dtype=dtype)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """Its file, as a function from a tensor's name to the tensor; codes of fewer bits come decoded, in float32."""
        parts = self._parts()
        if self.file.suffix == ".gguf":
            table = gguf.read_table(self.file)
            yield lambda key: parts[key].of(gguf.read_tensor(self.file, table[self.prefix + parts[key].key]))
            return
        stored = {part.key: part.stored for part in parts.values()}
        with _opened(self.file) as file:

            def read(key: str) -> Tensor:
                tensor = file.get_tensor(self.prefix + parts[key].key)
                if parts[key].stored.dtype in CODES:
                    tensor = self._decoded(tensor, parts[key].key, stored, file)
                return parts[key].of(tensor)

            yield read

    def _decoded(self, codes: Tensor, key: str, stored: Mapping[str, Stored], file: Any) -> Tensor:
        try:
            return decode(codes, key, stored.__contains__, lambda name: file.get_tensor(self.prefix + name))
        except ValueError as error:
            raise WeightsError(f'{self.file}: tensor "{key}" cannot be decoded: {error}.') from error

    def memory(self, ctx: RunContext = QUIET) -> int:
        """Bytes that its parameters take once loaded."""
        return sum(t.numel() * t.element_size() for t in self.build(ctx).state_dict().values())

    def check(self) -> Any:
        """The network's params, after holding the file's table of contents against it; reads no tensor."""
        model = self._build()
        _match(self, model)
        return model.params

    def load(self, ctx: RunContext = QUIET, ops: Any = nn) -> nn.Module:
        """The network in eval mode on the context's device, with gradients off.

        Raises:
            WeightsError: the file is damaged, or a tensor is missing, unexpected, misshapen or not finite.
        """
        model = self._build(ctx, ops)
        wanted = _match(self, model)
        lowered = lower(model, self.precision) if self.precision else {}
        unused = [k for k in model.state_dict() if UNUSED.fullmatch(k) and k not in wanted]
        state: dict[str, Tensor] = {k: torch.zeros_like(model.state_dict()[k], device=ctx.device) for k in unused}
        with self.opened() as read:
            for done, (key, blank) in enumerate(wanted.items()):
                tensor = _finite(self.file, key, read(key)).reshape(blank.shape)
                if self.precision and key in lowered:
                    state |= rounded(key, tensor.to(ctx.device), self.precision)
                    continue
                # A copy even where nothing changes: a view into the mapped file would change if the file does.
                state[key] = tensor.to(ctx.device, blank.dtype, copy=True)
                ctx.report((done + 1) / len(wanted))
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)


def torso_dtype(ctx: RunContext, configured: str | None = None) -> torch.dtype | None:
    """What the context asks for; else float32 on CPUs, where half precision is slow, and None, for the config's, elsewhere.

    GPUs without bfloat16 get float32 in its place: float16 has not its range.
    """
    if ctx.dtype is not None or ctx.device.type == "cpu":
        return ctx.dtype or torch.float32
    return torch.float32 if configured == "bfloat16" and not _has_bfloat16(ctx.device) else None


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True)
class _Config:
    name: Annotated[str, Field(max_length=100)]
    args: dict[str, Any]


def network_file(stem: Path) -> NetworkFile:
    """The network of `stem.json` and `stem.safetensors`, or else a GGUF file of that stem, which may hold its config."""
    stem = Path(stem)
    refuse_pickle(stem)
    config, file = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")
    if not file.is_file():
        file = _gguf_beside(stem) or file
    if file.suffix == ".gguf" and not config.is_file() and (inside := gguf_network(file)):
        return inside
    for path in (config, file):
        if not path.is_file():
            raise WeightsError(f"There is no file {path}.{_pickle_beside(stem)}")
    return described(read_object(config, raising=WeightsError), str(config), file)


def is_network(stem: Path) -> bool:
    """Whether there is something at `stem` that `network_file` would read."""
    return stem.with_name(stem.name + ".json").is_file() or _gguf_beside(stem) is not None


def gguf_network(file: Path) -> NetworkFile | None:
    """The network of a GGUF file with its config inside; None if there is none, or it is of another kind of network."""
    text = gguf.read_file(file)[0].get(GGUF_CONFIG)
    if not isinstance(text, str):
        return None
    where = f'{file}: its "{GGUF_CONFIG}"'
    config = parse_object(text, where, raising=WeightsError)
    return described(config, where, file) if "args" in config else None


def described(config: Any, where: str, file: Path) -> NetworkFile:
    """The network of `file` by its config as published, {"name": class, "args": {...}}, which was found at `where`."""
    content = checked(_Config, config, f"{where} does not name a network", raising=WeightsError)
    name = ALIASES.get(content.name, content.name)
    if name not in NETWORKS:
        raise WeightsError(f'{where} does not name a network of this family: "{name}". Known: {", ".join(NETWORKS)}.')
    return NetworkFile(name, content.args, file)


def image_encoder_file(folder: Path) -> NetworkFile:
    """The DINOv3 encoder of a folder with `config.json` and `model.safetensors`, as Hugging Face or timm name its tensors."""
    config, file = folder / "config.json", folder / "model.safetensors"
    for path in (config, file):
        if not path.is_file():
            raise WeightsError(f"There is no file {path}.{_pickle_beside(folder / 'pytorch_model')}")
    return (
        encoder_of_shapes(file)
        if is_timm(read_header(file))
        else NetworkFile(IMAGE_ENCODER, read_object(config, raising=WeightsError), file)
    )


def encoder_of_shapes(file: Path) -> NetworkFile:
    """An encoder whose config is read off the shapes of its tensors."""
    try:
        return NetworkFile(IMAGE_ENCODER, read_args(read_header(file)), file)
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{file} lacks a tensor that says how large the picture encoder is: {error}.") from error


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged: {error}. Download or copy it again.") from error


def _match(network: NetworkFile, model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters that the file must fill, after naming everything that does not fit."""
    stored, blanks = network.header(), model.state_dict()
    problems = []
    if missing := [k for k in blanks if k not in stored and not UNUSED.fullmatch(k)]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [k for k in stored if k not in blanks and not (RECOMPUTED.fullmatch(k) or COMPANION.fullmatch(k))]:
        problems.append(f"unexpected {_some(unexpected)}")
    wanted = {k: v for k, v in blanks.items() if k in stored}
    for key, blank in wanted.items():
        if not _holds(network.file, stored[key].shape, tuple(blank.shape)):
            problems.append(f'"{key}" is {list(stored[key].shape)}, the config says {list(blank.shape)}')
        elif stored[key].dtype not in READABLE:
            problems.append(f'"{key}" is stored as {stored[key].dtype}; only {", ".join(READABLE)} can be read')
        elif stored[key].dtype == "I8" and not {key + "_scale", key.removesuffix("weight") + "scale_weight"} & stored.keys():
            problems.append(f'"{key}" is int8 and has no scale')
    if (total := sum(blank.numel() for blank in blanks.values())) > MAX_PARAMETERS:
        problems.append(
            f"the config asks for {total / 1e9:,.0f} billion parameters, at most {MAX_PARAMETERS / 1e9:.0f} are read"
        )
    if problems:
        raise WeightsError(f"{network.file} does not fit a {network.name}: {'; '.join(problems[:8])}.")
    return wanted


def _holds(file: Path, stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a stored tensor is one of `shape`. GGUF knows four axes at most, so files of that kind join neighbouring ones."""
    if stored == shape or file.suffix != ".gguf":
        return stored == shape
    sizes = list(shape)
    for axis in stored:
        joined = 1
        while sizes and (joined < axis or joined * sizes[0] == axis):
            joined *= sizes.pop(0)
        if joined != axis:
            return False
    return prod(sizes) == 1


def _some(keys: list[str]) -> str:
    shown = ", ".join(f'"{k}"' for k in keys[:6])
    return f"{len(keys)} tensors ({shown}{', ...' if len(keys) > 6 else ''})"


def _finite(file: Path, key: str, tensor: Tensor) -> Tensor:
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise WeightsError(f'{file}: tensor "{key}" holds NaN or infinite numbers. Download or copy it again.')
    return tensor


def _gguf_beside(stem: Path) -> Path | None:
    """`stem.gguf`, or `stem_KIND.gguf`, as repackagings call theirs."""
    found = sorted({stem.with_name(stem.name + ".gguf"), *stem.parent.glob(f"{glob.escape(stem.name)}_*.gguf")})
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise WeightsError(f"There are several files for {stem.name}: {', '.join(p.name for p in found)}. Keep one of them.")
    return found[0] if found else None


def _pickle_beside(stem: Path) -> str:
    for suffix in PICKLES:
        if stem.with_name(stem.name + suffix).exists():
            return f" {stem.name + suffix} beside it is a Python pickle, which this program does not open."
    return ""
