"""The command line: `python -m trellis_core generate | info | download | serve | lora | train-lora`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from ..errors import Cancelled, TrellisError

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended."""


def build_parser() -> argparse.ArgumentParser:
    from ..fal.service.serve import add_arguments as add_serve_arguments
    from ..settings import GenerationSettings
    from . import lora_options as lora_options

    parser = argparse.ArgumentParser(
        prog="python -m trellis_core", description="One picture to a textured 3D model, with TRELLIS.2."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="make a GLB of a picture")
    generate.add_argument("picture", type=Path, help="PNG, JPEG or WebP; best with a transparent background")
    generate.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.glb", help="where the model goes")
    generate.add_argument(
        "--weights", default="mini", metavar="NAME|PATH",
        help='"mini" (bundled), a folder with pipeline.json, or ComfyUI\'s repackaged files (default: mini)',
    )  # fmt: skip
    generate.add_argument("--preview", type=Path, metavar="OUT.png", help="also draw the finished model here")
    generate.add_argument(
        "--report", nargs="?", const="-", metavar="OUT.json",
        help="print facts about the finished model, or write them to a file",
    )  # fmt: skip
    background = generate.add_mutually_exclusive_group()
    background.add_argument("--key-background", action="store_true", help="cut the subject out of a plain background")
    background.add_argument(
        "--matting", action="store_true", help="cut the subject out with the rembg package; fetches its network once"
    )
    generate.add_argument("--device", default="cpu", help="where networks compute: cpu, cuda, mps (default: cpu)")
    generate.add_argument(
        "--memory-budget",
        type=float,
        metavar="GB",
        help="make it fit into so much memory, or refuse (default: what is free on a GPU)",
    )
    generate.add_argument(
        "--attention", default="torch", metavar="NAME", help="attention library: torch, flash, flash3, sage (default: torch)"
    )
    generate.add_argument(
        "--convolution", default="ours", metavar="NAME", help="sparse convolution: ours, flex_gemm, spconv (default: ours)"
    )
    generate.add_argument(
        "--precision", choices=("int8", "fp8"), help="round the flow networks to 8 bits as they are read: half the memory"
    )
    generate.add_argument("--plan", action="store_true", help="say what memory this would take, and stop")
    lora_options.add_generate_options(generate)
    _add_settings(generate.add_argument_group("settings"), GenerationSettings)

    info = commands.add_parser("info", help="say what a weights file or folder is")
    info.add_argument("path", help="folder, .safetensors file, or name of a family")

    download = commands.add_parser("download", help="fetch the official weights from the Hugging Face Hub")
    download.add_argument("--to", type=Path, default=Path("weights"), metavar="FOLDER", help="default: ./weights")
    download.add_argument("--yes", action="store_true", help="do not ask before downloading")
    lora_options.add_commands(commands)
    lora_options.add_train_command(commands)

    serve = commands.add_parser("serve", help="answer the hosted endpoints' API from this machine")
    add_serve_arguments(serve)
    return parser


def _add_settings(group: argparse._ArgumentGroup, model: Any) -> None:
    """One flag for every setting; what is left out keeps the default of the weights or of the schema."""
    from ..settings import SOURCE_FIELDS

    for name, field in model.model_fields.items():
        if name in SOURCE_FIELDS:
            continue
        flag = "--" + name.replace("_", "-")
        default = {"seed": "random", "resolution": "what the weights recommend"}.get(name, field.default)
        text = f"{field.description} (default: {default})".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, metavar="N", help=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 could not be done, 2 wrong call, 130 stopped by Ctrl-C."""
    pressed: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        return _run(arguments)
    except (KeyboardInterrupt, Cancelled):
        return _stopped()
    except Exception as error:
        if pressed:  # an import that is interrupted may end in another error
            return _stopped()
        if not isinstance(error, TrellisError | OSError):
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _in_words(error: Exception) -> str:
    """Errors of the library are words already; one of the system says which file it is about."""
    if not isinstance(error, OSError) or isinstance(error, TrellisError) or not error.strerror:
        return str(error)
    name = str(error.filename or "")
    return f"{error.strerror}: {name[:60]}..." if len(name) > 80 else f"{error.strerror}: {name}" if name else error.strerror


def _stopped() -> int:
    print("Stopped. Nothing was written.", file=sys.stderr)
    return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    if options.command == "generate":
        from .generate import run
    elif options.command == "info":
        from .info import run
    elif options.command == "lora":
        from .lora import run
    elif options.command == "train-lora":
        from ..training.lora.train import run
    elif options.command == "serve":
        from ..fal.service.serve import run
    else:
        from ..weights.download import run
    run(options)
    return 0
