"""Command-line options about LoRAs; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..lora.names import DTYPES, FORMATS
from ..settings import STAGES

SLOTS = ("auto", *STAGES, "shape-512", "shape-1024", "texture-512", "texture-1024")
"""What a LoRA can be for: a stage, or one of its networks."""


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


_TRAIN_EXAMPLES = """examples:
  train-lora --data models --out runs/style --stage texture
  train-lora --data models --out runs/style --stage shape --stage texture     two stages on the same data, one LoRA each
  train-lora --data models.zip --out runs/style --stage texture --weights weights/TRELLIS.2-4B --device cuda
"""


def add_train_command(commands: argparse._SubParsersAction) -> None:
    """Add `train-lora`. Rate, steps and views are the family's own unless given; ranges are the hosted trainer's
    (docs/method/fal.md)."""
    train = commands.add_parser(
        "train-lora",
        help="train LoRAs on your own models (needs the `lora` extra)",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER|ZIP", help="models, with pictures beside them or not"
    )
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the LoRAs go; the same folder goes on")
    train.add_argument("--weights", "--family", default="mini", metavar="NAME|PATH", help="weights to train on (default: mini)")
    train.add_argument(
        "--stage", action="append", choices=STAGES, required=True, help="may be given several times, one LoRA each"
    )
    own = "(default: what the weights recommend)"
    train.add_argument("--resolution", type=int, choices=(512, 1024), default=512, help="(default: 512)")
    train.add_argument("--rank", type=int, choices=(16, 32, 64), default=32, help="(default: 32)")
    train.add_argument("--learning-rate", type=float, help=f"1e-6 to 1e-2 {own}")
    train.add_argument("--steps", type=int, help=f"100 to 10000 {own}")
    train.add_argument(
        "--targets", choices=("attention", "all"), default="attention", help="layers that learn (default: attention)"
    )
    train.add_argument("--batch", type=int, default=8, help="objects of a step (default: 8)")
    train.add_argument("--views", type=int, help=f"pictures of each model {own}")
    train.add_argument(
        "--azimuth", type=float,
        help=f"models are drawn from this many degrees around their front {own}",
    )  # fmt: skip
    train.add_argument("--sample-every", type=int, default=200, help="steps between sample pictures (default: 200)")
    train.add_argument("--seed", type=int, default=0, help="(default: 0)")
    train.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
