"""`python -m trellis_core download`: the official weights, only when asked, sizes first, going on where it stopped."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError


@dataclass(frozen=True)
class Source:
    """Files of one repository that the pipeline needs; `folder` is where they go below the weights folder."""

    repository: str
    patterns: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> str:
        return self.repository.split("/")[1]


PARTS = (
    Source("microsoft/TRELLIS.2-4B", ("pipeline.json", "ckpts/*_flow_*", "ckpts/*_dec_*"), "MIT"),
    Source("microsoft/TRELLIS-image-large", ("ckpts/ss_dec_conv3d_16l8_fp16.*",), "MIT"),
    Source("timm/vit_large_patch16_dinov3.lvd1689m", ("config.json", "model.safetensors"), "DINOv3 License"),
)


def run(options: argparse.Namespace) -> None:
    """List what is to be downloaded, ask, and download it into `options.to`."""
    hub = _hub()
    wanted = [(source, _files(hub, source)) for source in PARTS]
    total = 0
    for source, files in wanted:
        size = sum(files.values())
        total += size
        print(f"{source.repository} ({source.licence}): {len(files)} files, {size / 1e9:.2f} GB")
    print(f"Together {total / 1e9:.2f} GB, into {options.to.resolve()}. Files that are there already are kept.")
    _check_space(options.to, wanted)
    if not options.yes and not _agreed():
        print("Nothing was downloaded.")
        return
    for source, files in wanted:
        with _network_errors(source):
            hub.snapshot_download(source.repository, allow_patterns=sorted(files), local_dir=options.to / source.folder)
    print(f"Done. Use it with --weights {options.to / PARTS[0].folder}")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("Downloading needs the package huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


@contextmanager
def _network_errors(source: Source) -> Iterator[None]:
    """Say in words what keeps a source from being fetched."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError)  # what the hub's own errors derive from
    if httpx := sys.modules.get("httpx"):  # the hub may speak through it, and lets its errors pass
        kinds += (httpx.HTTPError,)
    try:
        yield
    except kinds as error:
        raise WeightsError(
            f"{source.repository} cannot be fetched: {error}. What has arrived is kept: run the command again to go on. If "
            "the repository asks for a licence, accept it on its page and log in with `hf auth login`."
        ) from error


def _check_space(folder: Path, wanted: Sequence[tuple[Source, Mapping[str, int]]]) -> None:
    """Raise `InputError` if what is still missing does not fit on the disk of `folder`."""
    places = ((folder / source.folder / name, size) for source, files in wanted for name, size in files.items())
    needed = sum(size for path, size in places if not path.is_file())
    home = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise InputError(f"{needed / 1e9:.2f} GB are to come, {home} has room for {free / 1e9:.2f} GB: choose another --to.")


def _files(hub: Any, source: Source) -> dict[str, int]:
    """Names and bytes of a source's files."""
    with _network_errors(source):
        listed = hub.HfApi().model_info(source.repository, files_metadata=True).siblings
    return {f.rfilename: f.size or 0 for f in listed if any(fnmatch(f.rfilename, p) for p in source.patterns)}


def _agreed() -> bool:
    try:
        return input("Download? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
