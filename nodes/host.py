"""Everything that is ComfyUI's: devices, memory, progress, the Stop button, folders. No other file imports its modules."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.utils
import comfy.weight_adapter
import folder_paths
import torch
from comfy.cli_args import args as command_line
from PIL import Image
from torch import nn

from ..trellis_core.errors import InputError, WeightsError
from ..trellis_core.family import BUNDLED, Family, load_family
from ..trellis_core.lora.apply import Use, applied, change_of, collect
from ..trellis_core.lora.source import BUNDLED as BUNDLED_LORAS
from ..trellis_core.run import RunContext
from ..trellis_core.weights import NetworkFile

WEIGHTS = "trellis2"
"""Our folder in models/, and our key in extra_model_paths.yaml."""

PRECISIONS = ("int8", "fp8")
"""What flow networks can be rounded to; as `trellis_core.lowbit` has them."""

NATIVE = ("diffusion_models", "vae", "clip_vision")
"""Where the host's own TRELLIS.2 files lie; the family's name is that of the first's file."""

BAR = 1000
"""Length of a progress bar."""

PREVIEW_SIDE = 512

EXAMPLES = {
    "trellis2_toadstool.png": "photo_toadstool_cut.png",
    "trellis2_duck.png": "icon_duck.png",
    "trellis2_tree.png": "icon_tree.png",
}
"""Pictures of the example workflows: name in the input folder, name in the pack."""


def add_weights_folder() -> None:
    """Tell the host of models/trellis2; places named in extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(WEIGHTS, os.path.join(folder_paths.models_dir, WEIGHTS), is_default=True)


def offer_examples() -> None:
    """Put the pictures of the example workflows where Load Image finds them, so that a template runs as it is."""
    for name, picture in EXAMPLES.items():
        target = Path(folder_paths.get_input_directory()) / name
        with suppress(OSError):  # an input folder that cannot be written to is the user's choice
            if not target.exists():
                shutil.copyfile(Path(__file__).parents[1] / "examples" / picture, target)


# Weights


def family_names() -> list[str]:
    """Bundled families, then folders and files of weights that the host's folders hold."""
    return list(_families())


def _families() -> dict[str, Path]:
    found = {name: path for name, path in BUNDLED.items()}
    for home in map(Path, folder_paths.get_folder_paths(WEIGHTS)):
        places = [home, *sorted(home.glob("*/")), *sorted(home.glob("*/*/"))] if home.is_dir() else []
        for place in places:
            if (place / "pipeline.json").is_file():
                name = place.relative_to(home).as_posix() if place != home else home.name
                found.setdefault(name, place)
        for file in sorted(home.glob("*.safetensors")):
            found.setdefault(file.name, file)
    for name in folder_paths.get_filename_list(NATIVE[0]):
        if "trellis" in name.lower() and name.endswith(".safetensors"):
            found.setdefault(name, Path(folder_paths.get_full_path_or_raise(NATIVE[0], name)))
    return found


def open_family(name: str, precision: str | None = None) -> Family:
    """Find and check a family of `family_names`; its networks will live under the host's memory manager.

    `precision` is one of PRECISIONS, to round flow networks to, or None.

    Raises:
        WeightsError: it is not there (any more), damaged or incomplete.
    """
    path = _families().get(name)
    if path is None:
        raise WeightsError(
            f'There are no weights "{name}". Put a folder with pipeline.json into {folder_paths.get_folder_paths(WEIGHTS)[0]}, '
            "or the host's own TRELLIS.2 files into diffusion_models, vae and clip_vision; or choose "
            f"{', '.join(BUNDLED)}, which is always there."
        )
    family = load_family(path, also=_native_parts() if path.is_file() else (), precision=precision)
    return replace(family, name=name, hold=_networks)


def family_stamp(name: str) -> str:
    """Changes when a file of the weights changes."""
    path = _families().get(name)
    if path is None:
        return "missing"
    files = [path, *_native_parts()] if path.is_file() else sorted(path.rglob("*.*"))
    facts = [f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files if file.is_file()]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()  # a digest: some hosts store this with the prompt


def _native_parts() -> list[Path]:
    names = [(kind, name) for kind in NATIVE for name in folder_paths.get_filename_list(kind)]
    parts = [folder_paths.get_full_path(kind, name) for kind, name in names if name.endswith(".safetensors")]
    return [Path(part) for part in parts if part]


def lora_names() -> list[str]:
    """LoRA files that the host knows, then those that ship with this pack."""
    known = [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]
    return [*known, *(name for name in _bundled_loras() if name not in known)]


def lora_path(name: str) -> Path:
    """Where a file of `lora_names` lies."""
    found = folder_paths.get_full_path("loras", name)
    return Path(found) if found else _bundled_loras().get(name) or Path(folder_paths.get_full_path_or_raise("loras", name))


def lora_stamp(name: str) -> str:
    """Changes when the file does."""
    stat = lora_path(name).stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _bundled_loras() -> dict[str, Path]:
    return {file.name: file for file in sorted(BUNDLED_LORAS.glob("*.safetensors"))}


def shown(node: type, text: str) -> dict[str, tuple[str]]:
    """What puts text into the history; it also is put on the node of the user who runs it."""
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, node.hidden.unique_id, PromptServer.instance.client_id)
    return {"text": (text,)}


# Memory


class Networks:
    """Holds networks for families: each in a patcher of the host, which moves it to the device and away again.

    Patchers are kept between runs as long as together they take less than a quarter of the machine's memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[NetworkFile, int], Any] = {}
        self._clones: dict[tuple[NetworkFile, int], tuple[Any, Any]] = {}
        self._held: list[Any] = []

    @contextmanager
    def __call__(self, network: NetworkFile, ctx: RunContext, rows: int, loras: Sequence[Use] = ()) -> Iterator[nn.Module]:
        key = network, network.file.stat().st_mtime_ns
        patcher = self._kept.get(key) or _read(network, ctx)
        self._keep(key, patcher)
        beside = network.precision is not None  # no weight of rounded layers is there to be patched
        patcher = self._changed(key, patcher, () if beside else loras)
        self._held.append(patcher)
        try:
            model = patcher.model
            # All that are in use, lest one drives another out.
            mm.load_models_gpu(list(self._held), memory_required=_needed(model, rows, ctx.device))
            _bring_along(model, ctx.device)
            ctx.report(1.0)
            with applied(model, loras if beside else ()):
                yield model
        finally:
            self._held.remove(patcher)

    def _changed(self, key: tuple[NetworkFile, int], patcher: Any, loras: Sequence[Use]) -> Any:
        """The patcher with LoRAs; the last stack on a network is kept, so that the host need not patch it anew."""
        stack = [(use.adapter.digest, use.strength, tuple(use.adapter.deltas)) for use in loras if use.strength]
        if not stack:
            return patcher
        known, clone = self._clones.get(key, (None, None))
        if known != stack or not clone.is_clone(patcher):
            clone = _patched(patcher, loras)
            self._clones[key] = stack, clone
        return clone

    def _keep(self, key: tuple[NetworkFile, int], patcher: Any) -> None:
        self._kept.pop(key, None)
        while self._kept and sum(p.model_size() for p in (patcher, *self._kept.values())) > mm.total_ram * 2**20 / 4:
            oldest = next(iter(self._kept))  # the one that was used longest ago
            self._kept.pop(oldest)
            self._clones.pop(oldest, None)  # it shares the weights
        self._kept[key] = patcher


_networks = Networks()


def _needed(model: nn.Module, rows: int, device: torch.device) -> int:
    """Bytes that the host should keep free beside the weights."""
    if device.type == "cpu":
        return 0  # where it frees none
    from ..trellis_core.footprint import activation_bytes  # knows every kind of network: not at the host's start

    step = 1 << max(0, rows.bit_length() - 4)  # rounded up, so that what is found once serves the next objects too
    return activation_bytes(model.params, -(-rows // step) * step, getattr(model, "dtype", torch.float32))


def _patched(patcher: Any, loras: Sequence[Use]) -> Any:
    """A clone that shares the weights and that the host changes by these LoRAs while it is loaded."""
    clone = patcher.clone()
    clone.add_patches({name: _Change(weighted) for name, weighted in collect(loras).items()})
    return clone


class _Change(comfy.weight_adapter.WeightAdapterBase):
    """All LoRAs on one parameter, as the host's patches want them: our sum on the host's copy, device and rounding."""

    name = "trellis-core"

    def __init__(self, weighted: list[Any]) -> None:
        self.weighted, self.weights, self.loaded_keys = weighted, [], set()

    def calculate_weight(self, weight: torch.Tensor, *_args: Any, **_more: Any) -> torch.Tensor:
        return weight.copy_(weight.float() + change_of(weight, self.weighted))


def _read(network: NetworkFile, ctx: RunContext) -> Any:
    offload = mm.unet_offload_device()
    model = network.load(replace(ctx, device=offload, dtype=_torso_dtype(ctx.device)), comfy.ops.manual_cast)
    # Looked up now and not at import: hosts put a patcher with other abilities in this place when they start.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=ctx.device, offload_device=offload)


def _torso_dtype(device: torch.device) -> torch.dtype | None:
    """The host's choice; None, the checkpoint's own mixture of half precisions, where the device is good at bfloat16."""
    known = [torch.bfloat16, torch.float16, torch.float32]
    stored = mm.unet_dtype(device=device, supported_dtypes=known)
    computed = mm.unet_manual_cast(stored, device, known) or stored
    return None if computed == torch.bfloat16 else computed


def _bring_along(model: nn.Module, device: torch.device) -> None:
    """Parameters that no layer of the host owns are not moved under partial loading; they are few, so they all go."""
    for module in model.modules():
        if not hasattr(module, "comfy_cast_weights"):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(device)


# Runs


class Run:
    """One execution of a node: its context for the core, and its progress bar with pictures."""

    def __init__(self, node: type) -> None:
        self._bar = comfy.utils.ProgressBar(BAR, node_id=node.hidden.unique_id)
        self._last = -1
        device = mm.get_torch_device()
        attention = "torch" if device.type == "cpu" else _attend  # the host's choices are made for GPUs
        self.ctx = RunContext(device, attention=attention, on_progress=self._progress, is_cancelled=_stop_if_asked)

    def _progress(self, fraction: float, _name: str) -> None:
        done = round(fraction * BAR)
        if done != self._last:
            self._last = done
            self._bar.update_absolute(done, BAR)

    def show(self, picture: Image.Image) -> None:
        """Put a picture on the node."""
        self._bar.update_absolute(max(self._last, 0), BAR, ("JPEG", picture, PREVIEW_SIDE))

    def watch(self, family: Family) -> Callable[[Any], None]:
        """For samplers: puts pictures of what comes about on the node."""
        from ..trellis_core.glimpse import glimpse

        quiet = RunContext(device=self.ctx.device, is_cancelled=_stop_if_asked)

        def look(estimate: Any) -> None:
            picture = glimpse(family, estimate, quiet)
            if picture is not None:
                self.show(picture)

        return look


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The attention that the host was started with; q [B, Tq, H, d], k and v [B, Tk, H, d] -> [B, Tq, H, d]."""
    from comfy.ldm.modules.attention import optimized_attention

    heads = (x.transpose(1, 2) for x in (q, k, v))
    return optimized_attention(*heads, q.shape[2], skip_reshape=True, skip_output_reshape=True).transpose(1, 2)


def _stop_if_asked() -> bool:
    mm.throw_exception_if_processing_interrupted()  # not an Exception: goes through everything of ours up to the host
    return False


# Files


def output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A new numbered file below the output folder, and how the host's clients find it.

    Raises:
        InputError: the prefix leaves the output folder, or the folder cannot be written to.
    """
    return _new_file(prefix, suffix, folder_paths.get_output_directory(), "output")


def temporary_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """The same below the folder that the host empties at every start."""
    return _new_file(prefix, suffix, folder_paths.get_temp_directory(), "temp")


def _new_file(prefix: str, suffix: str, home: str, kind: str) -> tuple[Path, dict[str, str]]:
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, home)
    except OSError as error:
        raise InputError(f"{prefix} cannot be written below the {kind} folder: {error.strerror or error}.") from error
    except Exception as error:  # the host raises a bare Exception
        raise InputError(f'The name "{prefix}" leaves the {kind} folder: choose one below it, without "..".') from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written to: change its permissions, or the start of the name.")
    entry = {"filename": f"{name}_{counter:05}_{suffix}", "subfolder": subfolder, "type": kind}
    return Path(folder) / entry["filename"], entry


def check_prefix(prefix: str | None) -> bool | str:
    """For the host's check before a run: True, or why nothing can be written there. A linked prefix is None."""
    return _said(output_file, prefix, "")


def check_file(text: str | None) -> bool | str:
    """For the host's check before a run: True, or why this file cannot be read. A linked name is None."""
    return _said(user_file, text)


def _said(action: Callable[..., Any], text: str | None, *more: str) -> bool | str:
    if text is None:
        return True
    try:
        action(text, *more)
    except InputError as error:
        return str(error)
    return True


def below(entry: dict[str, str]) -> str:
    """The file of `output_file` as a path below its folder."""
    return f"{entry['subfolder']}/{entry['filename']}" if entry["subfolder"] else entry["filename"]


def blocked(why: str) -> Any:
    """An output that stops whoever uses it with a sentence, and nobody else."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(why)


def user_file(text: str) -> tuple[Path, dict[str, str]]:
    """A file that exists, named below the output folder, or below another with " [input]" or " [temp]" behind its name.

    Raises:
        InputError: it is not there, or outside of these folders.
    """
    name, home = folder_paths.annotated_filepath(text.strip())
    kinds = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    kinds["temp"] = folder_paths.get_temp_directory()
    home = os.path.realpath(home or kinds["output"])
    path = os.path.realpath(os.path.join(home, name))
    if not name or os.path.isabs(name) or os.path.commonpath((home, path)) != home:
        raise InputError(f'"{text}" is not a name below the output, input or temp folder. Absolute paths and ".." are refused.')
    if not os.path.isfile(path):
        raise InputError(f'There is no file "{name}" in {home}. Write " [input]" behind the name for the input folder.')
    kind = next(key for key, value in kinds.items() if os.path.realpath(value) == home)
    folder, file = os.path.split(os.path.relpath(path, home))
    return Path(path), {"filename": file, "subfolder": folder.replace(os.sep, "/"), "type": kind}


def stamp(text: str) -> str:
    """Changes when the named file does."""
    path = user_file(text)[0]
    return f"{path.stat().st_size}:{path.stat().st_mtime_ns}"


def workflow_extras(node: type) -> Mapping[str, str]:
    """What a saved file should carry so that it can be opened as a workflow; empty if the user forbids that."""
    if command_line.disable_metadata:
        return {}
    hidden = node.hidden
    notes = {} if hidden.prompt is None else {"prompt": {key: _as_posted(value) for key, value in hidden.prompt.items()}}
    return {key: json.dumps(value) for key, value in (notes | (hidden.extra_pnginfo or {})).items()}


def _as_posted(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a prompt without the "is_changed" that hosts of 2025 write into it."""
    return {key: value for key, value in entry.items() if key != "is_changed"}
