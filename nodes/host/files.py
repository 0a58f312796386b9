"""Files in the host's folders, and what a saved file says of its workflow."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args as command_line

from ...trellis_core.errors import InputError
from ...trellis_core.file_names import spelled_out

EXAMPLES = {
    "trellis2_toadstool.png": "photo_toadstool_cut.png",
    "trellis2_duck.png": "icon_duck.png",
    "trellis2_tree.png": "icon_tree.png",
}
"""Pictures of the example workflows: name in the input folder, name in the pack."""


def offer_examples() -> None:
    """Put the pictures of the example workflows where Load Image finds them, so that a template runs as it is."""
    for name, picture in EXAMPLES.items():
        target = Path(folder_paths.get_input_directory()) / name
        with suppress(OSError):  # an input folder that cannot be written to is the user's choice
            if not target.exists():
                shutil.copyfile(Path(__file__).parents[2] / "examples" / picture, target)


def output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A new numbered file below the output folder, and how the host's clients find it.

    Raises:
        InputError: no file can be called so, the prefix leaves the output folder, or that cannot be written to.
    """
    return _new_file(prefix, suffix, folder_paths.get_output_directory(), "output")


def temporary_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """The same below the folder that the host empties at every start."""
    return _new_file(prefix, suffix, folder_paths.get_temp_directory(), "temp")


def _new_file(prefix: str, suffix: str, home: str, kind: str) -> tuple[Path, dict[str, str]]:
    prefix = spelled_out(prefix)
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
