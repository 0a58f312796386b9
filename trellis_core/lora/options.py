"""Command-line options about LoRAs; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

SLOTS = ("auto", "structure", "shape", "texture", "shape-512", "shape-1024", "texture-512", "texture-1024")
"""What a LoRA can be for: a stage, or one of its networks."""

FORMATS = ("peft", "comfy", "kohya")
DTYPES = ("fp16", "bf16", "fp32")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `lora` with its own commands."""
    lora = commands.add_parser("lora", help="look at LoRA files, and make new ones of them")
    actions = lora.add_subparsers(dest="action", required=True)
    info = actions.add_parser("info", help="say what a LoRA file is, and how it fits a family")
    info.add_argument("file", help="a .safetensors file, or a folder as PEFT saves it")
    info.add_argument("--weights", metavar="NAME|PATH", help="match it with this family, and measure its changes")
    info.add_argument("--stage", choices=SLOTS, default="auto", help="what it is for (default: as the file says)")
    for name, text in (
        ("convert", "write a LoRA in another format"),
        ("scale", "write a LoRA with a strength baked in, for programs and services that take none"),
        ("merge", "write several LoRAs, each with a strength, as one"),
    ):
        action = actions.add_parser(name, help=text)
        if name == "merge":
            action.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
        else:
            action.add_argument("file")
        if name == "scale":
            action.add_argument("strength", type=float)
        action.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors")
        action.add_argument("--format", choices=FORMATS, default="peft", help="keys of the new file (default: peft)")
        action.add_argument("--dtype", choices=DTYPES, default="fp16", help="numbers of the new file (default: fp16)")
        action.add_argument("--rank", type=int, metavar="R", help="press it to this rank; left out, nothing is lost")


def add_generate_options(generate: argparse.ArgumentParser) -> None:
    """Add `--lora` and the folders in which settings may name LoRAs."""
    generate.add_argument(
        "--lora", action="append", default=[], metavar="STAGE=FILE[:STRENGTH]",
        help=f"use a LoRA, may be given several times. STAGE is one of {', '.join(SLOTS)}; FILE a path, the name of a "
        "bundled one, or a web address; STRENGTH 1 if left out, may be negative",
    )  # fmt: skip
    generate.add_argument(
        "--lora-folder", action="append", type=Path, default=[], metavar="FOLDER",
        help="where --lora and the lora settings look for names (default: ./loras)",
    )  # fmt: skip
