"""Train the mini family from nothing or from another one, or one stage of it; a whole run ends with a family, OUT/family.

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

from .export import export
from .mini import cache
from .mini.data.dataset import ShardedObjects
from .mini.data.dataset import main as make_dataset
from .mini.data.fetch import fetch_pictures
from .mini.encoder import ColumnHead
from .mini.networks import TOKEN_WIDTH, make_image_encoder, make_network
from .mini.run import Run
from .mini.stages import RECIPES, STAGES

OBJECTS = 9000
VALIDATION_SEED = 1_000_000


def cache_tokens(run: Run, objects: ShardedObjects, path: Path) -> None:
    """Image tokens."""
    vit = make_image_encoder()
    run.load("encoder", vit=vit, head=ColumnHead(TOKEN_WIDTH))
    cache.cache_tokens(vit, objects, path, run.cached)


def cache_latents(kind: str) -> Callable[[Run, ShardedObjects, Path], None]:
    """What writes the latents of the "shape" or texture ("tex") autoencoder."""
    write = {"shape": cache.cache_shape_latents, "tex": cache.cache_texture_latents}[kind]

    def make(run: Run, objects: ShardedObjects, path: Path) -> None:
        enc = make_network(f"{kind}_enc")
        run.load(f"{kind}_vae", enc=enc, dec=make_network(f"{kind}_dec"))
        write(enc, objects, path, run.cached)

    return make


CACHES = {
    "tokens": (cache_tokens, "tokens"),
    "shape": (cache_latents("shape"), "latents_shape"),
    "texture": (cache_latents("tex"), "latents_texture"),
}
ORDER = (
    "encoder", "tokens", "shape_vae", "shape", "tex_vae", "texture",
    "ss_flow", "shape_flow", "tex_flow", "shape_polish", "tex_polish",
)  # fmt: skip
"""Steps of a full run."""


def make_data(run: Run, objects: int, workers: int, pictures: Path) -> None:
    """Fetch the pictures and generate the training and the validation objects that are missing."""
    if run.validation.exists() and run.data.exists():
        return
    source = ["--pictures", str(fetch_pictures(pictures))]
    if not run.validation.exists():
        make_dataset(["--out", str(run.validation), "--first", str(VALIDATION_SEED), "--count", "128", *source])
    if not run.data.exists():
        make_dataset(["--out", str(run.data), "--count", str(objects), "--workers", str(workers), *source])


def run_step(run: Run, name: str, share: float = 1.0, seconds: float | None = None, lr: float | None = None) -> None:
    """Train a stage or make a cache, unless it is there."""
    if name in CACHES:
        make, file = CACHES[name]
        path = cache.cache_file(run.folder, file)
        if not path.exists():
            make(run, run.objects, path)
        return
    recipe = RECIPES[name].scaled(share)
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
    parser.add_argument(
        "--stage", action="append", choices=ORDER, help="only this step, may be repeated (default: all, in order)"
    )
    parser.add_argument("--seconds", type=float, help="CPU-seconds of the stages named by --stage")
    parser.add_argument("--lr", type=float, help="peak learning rate of the stages named by --stage")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="training objects to generate if there are none")
    parser.add_argument("--data", type=Path, help="folder of the training objects (default OUT/data)")
    parser.add_argument("--validation", type=Path, help="folder of the validation objects (default OUT/validation)")
    parser.add_argument(
        "--pictures", type=Path, help="folder of cut-out pictures (default OUT/pictures; fetched if it is missing)"
    )
    parser.add_argument("--from", dest="warm", type=Path, help="family folder whose weights to start from, where they fit")
    parser.add_argument("--cached", type=int, default=16000, help="objects that the flows are trained on at most")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is the most efficient")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    data, validation = args.data or args.out / "data", args.validation or args.out / "validation"
    run = Run(args.out, data, validation, args.warm, args.cached)
    make_data(run, args.objects, args.threads, args.pictures or args.out / "pictures")
    share = args.budget_minutes * 60 / sum(r.seconds for r in RECIPES.values()) if args.budget_minutes else 1.0
    for name in args.stage or ORDER:
        run_step(run, name, share, args.seconds, args.lr)
    if not args.stage:
        print(f"{args.out / 'family'}: {export(args.out, args.out / 'family') / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
