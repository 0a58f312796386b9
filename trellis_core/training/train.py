"""Train the mini family from nothing, or one stage of it.

    python -m trellis_core.training.train --out runs/mini --budget-minutes 180

A run is a folder: stages that are done are skipped, interrupted ones go on, so the same command resumes. To use two
cores, run single stages side by side with `--stage` once their inputs exist.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import cache
from .dataset import main as make_dataset
from .networks import make_image_encoder, make_network
from .stages import RECIPES, STAGES, Run, _auxiliary_heads

OBJECTS = 12000
VALIDATION_SEED = 1_000_000


def cache_tokens(run: Run) -> None:
    vit = make_image_encoder()
    run.load("encoder", vit=vit, **_auxiliary_heads())
    cache.cache_tokens(vit, run.objects, run.folder / "tokens.safetensors")


def cache_structure(run: Run) -> None:
    enc = make_network("ss_enc")
    run.load("ss_vae", enc=enc, dec=make_network("ss_dec"))
    cache.cache_structure_latents(enc, run.objects, run.folder / "latents_structure.safetensors")


def cache_shape(run: Run) -> None:
    enc = make_network("shape_enc")
    run.load("shape_vae", enc=enc, dec=make_network("shape_dec"))
    cache.cache_shape_latents(enc, run.objects, run.folder / "latents_shape.safetensors")


def cache_texture(run: Run) -> None:
    enc = make_network("tex_enc")
    run.load("tex_vae", enc=enc, dec=make_network("tex_dec"))
    cache.cache_texture_latents(enc, run.objects, run.folder / "latents_texture.safetensors")


CACHES: dict[str, tuple[Callable[[Run], None], str]] = {
    "tokens": (cache_tokens, "tokens.safetensors"),
    "structure": (cache_structure, "latents_structure.safetensors"),
    "shape": (cache_shape, "latents_shape.safetensors"),
    "texture": (cache_texture, "latents_texture.safetensors"),
}
ORDER = (
    "encoder", "tokens", "ss_vae", "structure", "shape_vae", "shape", "tex_vae", "texture",
    "ss_flow", "shape_flow", "tex_flow", "shape_dec", "tex_dec",
)  # fmt: skip


def make_data(run: Run, objects: int, workers: int) -> None:
    """Generate the training and the validation objects that are missing."""
    if not run.validation.exists():
        make_dataset(["--out", str(run.validation), "--first", str(VALIDATION_SEED), "--count", "128"])
    if not run.data.exists():
        make_dataset(["--out", str(run.data), "--count", str(objects), "--workers", str(workers)])


def run_step(run: Run, name: str, seconds: float | None = None, lr: float | None = None) -> None:
    """Train a stage or make a cache, unless it is there."""
    if name in CACHES:
        make, file = CACHES[name]
        if not (run.folder / file).exists():
            make(run)
        return
    recipe = RECIPES[name]
    if seconds is not None:
        recipe = dataclasses.replace(recipe, seconds=seconds)
    if lr is not None:
        recipe = dataclasses.replace(recipe, lr=lr)
    STAGES[name](run, recipe)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of the run")
    parser.add_argument("--budget-minutes", type=float, help="CPU-minutes of all training stages together")
    parser.add_argument("--stage", action="append", choices=ORDER, help="only this step, may be repeated (default: all, in order)")
    parser.add_argument("--seconds", type=float, help="CPU-seconds of the stages named by --stage")
    parser.add_argument("--lr", type=float, help="peak learning rate of the stages named by --stage")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="training objects to generate if there are none")
    parser.add_argument("--data", type=Path, help="folder of the training objects (default OUT/data)")
    parser.add_argument("--validation", type=Path, help="folder of the validation objects (default OUT/validation)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is the most efficient")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    run = Run(args.out, args.data or args.out / "data", args.validation or args.out / "validation")
    make_data(run, args.objects, args.threads)
    share = args.budget_minutes * 60 / sum(r.seconds for r in RECIPES.values()) if args.budget_minutes else None
    for name in args.stage or ORDER:
        seconds = args.seconds
        if seconds is None and share is not None and name in RECIPES:
            seconds = RECIPES[name].seconds * share
        run_step(run, name, seconds, args.lr)


if __name__ == "__main__":
    main()
