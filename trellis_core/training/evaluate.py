"""Measure a family, picture to asset: on fresh generated objects, on pictures and on models from outside.

    python -m trellis_core.training.evaluate inside --weights mini --objects 128
    python -m trellis_core.training.evaluate outside --weights mini --pictures runs/pictures
    python -m trellis_core.training.evaluate models --weights mini --models runs/models

Inside: every object is drawn at 512 pixels with its own random camera and light, cut out, and goes through the very stages
of the command line. Seeds from 2,000,000 on serve nothing else: no choice was ever made on them. Outside: see `outside`
and `models`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import stages
from ..asset.asset import refine_mesh
from ..asset.report import surface_facts
from ..family import Family, load_family
from ..ovoxel.attributes import sample_attributes
from ..ovoxel.dual_grid import dual_grid_to_mesh
from ..settings import GenerationSettings
from ..values import Mesh, PbrVoxels
from . import models, outside
from .mini import metrics
from .mini.data.compose import compose
from .mini.data.dataset import dual_grid_targets
from .mini.data.fetch import fetch_pictures
from .mini.data.objects import ProceduralObject
from .mini.data.render import Lighting, front_camera, render_view

FIRST_SEED = 2_000_000
TRUTH_GRID = 64
BATCH = 16


@dataclass(frozen=True)
class Truth:
    """A held-out object: its picture, surface points and vertices [N, 3] with attributes [N, 6], coarse voxels [N, 3]."""

    picture: Image.Image
    points: np.ndarray
    vertices: np.ndarray
    attrs: np.ndarray
    coarse: np.ndarray
    mean_colour: np.ndarray


def make_truth(seed: int, coarse_grid: int, make: Callable[[int], ProceduralObject] = compose) -> Truth:
    """Object `seed` of a generator, seen from its own random view."""
    obj, rng = make(seed), np.random.default_rng([seed, 11])
    camera = front_camera(rng)
    rgba = render_view(obj, camera, 512, Lighting.random(rng, camera.azimuth))
    fine = dual_grid_targets(obj, TRUTH_GRID)
    coords, dual, flags = map(torch.from_numpy, (fine.coords.astype(np.int32), fine.dual, fine.intersected))
    mesh = dual_grid_to_mesh(coords, dual, flags, None, TRUTH_GRID)
    vertices = mesh.vertices.numpy()
    cover = rgba[..., 3:] / 255
    mean = (rgba[..., :3] / 255 * cover).sum((0, 1)) / cover.sum()
    coarse = np.unique(dual_grid_targets(obj, 4 * coarse_grid).coords // 4, axis=0)
    points = metrics.surface_points(vertices, mesh.faces.numpy(), seed=1)
    return Truth(Image.fromarray(rgba), points, vertices, fine.attrs, coarse, mean)


@dataclass(frozen=True)
class Result:
    """What the pipeline made of a picture."""

    coarse: np.ndarray
    mesh: Mesh
    voxels: PbrVoxels

    def raw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vertices [V, 3], their attributes [V, 6] and faces [F, 3], as decoded."""
        return self.mesh.vertices.numpy(), self.voxels.attrs.numpy().clip(0, 1), self.mesh.faces.numpy()


def generate(family: Family, truths: Sequence[Truth], settings: GenerationSettings, seed: int) -> Iterator[Result]:
    """Run the stages on the truths' pictures, all at once."""
    seen = stages.condition(family, [t.picture for t in truths], settings)
    structure = stages.sample_structure(family, seen, settings, seed=seed)
    shape = stages.sample_shape(family, seen, structure, settings)
    texture = stages.sample_texture(family, seen, shape, settings)
    for i, (mesh, voxels) in enumerate(stages.decode(family, shape, texture)):
        rows = structure.coords[:, 0] == i
        yield Result(structure.coords[rows, 1:].numpy(), mesh, voxels)


def compare(vertices: np.ndarray, attrs: np.ndarray, faces: np.ndarray, truth: Truth) -> dict[str, float]:
    """Surface and attribute measures of one mesh against one truth."""
    points = metrics.surface_points(vertices, faces)
    chamfer, (f05, f03) = metrics.chamfer_and_f(points, truth.points)
    error = metrics.two_way_attribute_error(vertices, attrs, truth.vertices, truth.attrs)
    return {
        "chamfer": chamfer,
        "f_05": f05,
        "f_03": f03,
        "rgb": float(error[:3].mean()),
        "metallic": float(error[3]),
        "roughness": float(error[4]),
    }


def compare_raw(result: Result, truth: Truth) -> dict[str, float]:
    """All measures of a decoded mesh."""
    measures = {"structure_iou": metrics.grid_iou(result.coarse, truth.coarse), **compare(*result.raw(), truth)}
    return measures | {"boundary_edges": metrics.boundary_share(result.mesh.faces.numpy())}


def compare_finished(result: Result, truth: Truth, settings: GenerationSettings) -> dict[str, float]:
    """All measures of the asset's surface, cleaned up as it is written, painted by the voxels around its vertices."""
    mesh = refine_mesh(result.mesh, settings, result.voxels.resolution)
    attrs = sample_attributes(result.voxels, mesh.vertices).clamp(0, 1)
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    facts = surface_facts(vertices, faces)
    boundary = {"boundary_edges": metrics.boundary_share(faces), "watertight": float(facts["watertight"])}
    return compare(vertices, attrs.numpy(), faces, truth) | boundary


def painted_with_mean(result: Result, truth: Truth) -> float:
    """RGB error of the same shape, painted with the picture's mean colour."""
    vertices = result.mesh.vertices.numpy()
    flat = np.broadcast_to(truth.mean_colour, (len(vertices), 3))
    return float(metrics.two_way_attribute_error(vertices, flat, truth.vertices, truth.attrs[:, :3]).mean())


Measures = dict[str, dict[str, float]]
"""Of one object or their mean: `matched`; `mismatched`, against another object's truth; `mean_colour`, the painting
baseline; `finished`, the surface after clean-up."""


def evaluate_batch(
    family: Family,
    first: int,
    count: int,
    settings: GenerationSettings,
    assets: bool = True,
    make: Callable[[int], ProceduralObject] = compose,
) -> list[Measures]:
    """Measures of every object that `make` makes of the seeds `first` to `first + count - 1`."""
    grid = family.scales[family.route(settings.resolution, settings.cascade).start].structure_grid
    truths = [make_truth(first + i, grid, make) for i in range(count)]
    found = []
    for i, result in enumerate(generate(family, truths, settings, seed=first)):
        measures = {
            "matched": compare_raw(result, truths[i]),
            "mismatched": compare_raw(result, truths[i - 1]),
            "mean_colour": {"rgb": painted_with_mean(result, truths[i])},
        }
        found.append(measures | ({"finished": compare_finished(result, truths[i], settings)} if assets else {}))
    return found


def mean_of(rows: Sequence[Measures]) -> Measures:
    """Mean over objects of every measure."""
    return {
        group: {key: round(float(np.mean([row[group][key] for row in rows])), 4) for key in rows[0][group]} for group in rows[0]
    }


def _work(job: tuple[str, str | None, int, int, GenerationSettings, bool]) -> list[Measures]:
    weights, precision, first, count, settings, assets = job
    torch.set_num_threads(1)
    return evaluate_batch(load_family(weights, precision=precision), first, count, settings, assets)


def evaluate(
    weights: str, count: int, settings: GenerationSettings, first: int = FIRST_SEED, assets: bool = True, workers: int = 1,
    precision: str | None = None,
) -> list[Measures]:  # fmt: skip
    """Measures of `count` objects, batch by batch, in `workers` processes; their number changes no figure."""
    jobs = [(weights, precision, first + i, min(BATCH, count - i), settings, assets) for i in range(0, count, BATCH)]
    with get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
        return [row for rows in (pool.imap if pool else map)(_work, jobs) for row in rows]


def settings_of(args: argparse.Namespace) -> GenerationSettings:
    """The settings that the command line asks for."""
    return GenerationSettings(resolution=args.resolution, seed=0, **dict(item.split("=", 1) for item in args.set))


def evaluate_inside(args: argparse.Namespace) -> dict:
    """Means over generated objects."""
    every = evaluate(args.weights, args.objects, settings_of(args), args.first_seed, not args.raw, args.workers, args.precision)
    report = mean_of(every)
    for name, row in report.items():
        print(f"{name:12}", "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    return report


def evaluate_outside(args: argparse.Namespace) -> dict:
    """Every picture, and the summary."""
    torch.set_num_threads(1)
    family = load_family(args.weights, precision=args.precision)
    azimuths = np.arange(args.azimuths) * (360 / args.azimuths)
    paths = outside.evaluated_pictures(fetch_pictures(args.pictures))[: args.count]
    return _tell(outside.measure_all(family, paths, settings_of(args), azimuths), outside.summary)


def evaluate_models(args: argparse.Namespace) -> dict:
    """Every model, and the summary."""
    torch.set_num_threads(1)
    family = load_family(args.weights, precision=args.precision)
    paths = models.evaluated_models(models.fetch_models(args.models))[: args.count]
    return _tell(models.measure_all(family, paths, settings_of(args)), models.summary)


def _tell(measured: Iterator[tuple[str, dict[str, float]]], summary: Callable[[list[dict]], dict[str, float]]) -> dict:
    """Print every row as it comes, then the summary; both as one report."""
    rows = {}
    for name, row in measured:
        rows[name] = {key: round(value, 4) for key, value in row.items()}
        print(name, json.dumps(rows[name]), flush=True)
    report = {key: round(value, 4) for key, value in summary(list(rows.values())).items()}
    print("  ".join(f"{key} {value}" for key, value in report.items()))
    return {"summary": report, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--weights", default="mini", help='"mini" or a family folder')
    common.add_argument("--resolution", type=int, default=512, choices=(512, 1024))
    common.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a settings field, may be repeated")
    common.add_argument("--precision", choices=("int8", "fp8"), help="round the flow networks")
    common.add_argument("--json", type=Path, help="write the measures here too")
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.evaluate", description=main.__doc__)
    kinds = parser.add_subparsers(required=True)
    inside = kinds.add_parser("inside", parents=[common], help="fresh generated objects")
    inside.add_argument("--objects", type=int, default=128)
    inside.add_argument("--first-seed", type=int, default=FIRST_SEED)
    inside.add_argument("--raw", action="store_true", help="leave the clean-up out")
    inside.add_argument("--workers", type=int, default=2, help="processes")
    inside.set_defaults(run=evaluate_inside)
    drawings = kinds.add_parser("outside", parents=[common], help="pictures that no training has seen")
    drawings.add_argument("--pictures", type=Path, default=Path("runs/pictures"), help="their folder; fetched if missing")
    drawings.add_argument("--count", type=int, help="only the first ones of the list")
    drawings.add_argument(
        "--azimuths", type=int, default=1, help="directions tried; 1 is the front, what a model is to keep to"
    )
    drawings.set_defaults(run=evaluate_outside)
    solids = kinds.add_parser("models", parents=[common], help="real models that no training has seen")
    solids.add_argument("--models", type=Path, default=Path("runs/models"), help="their folder; fetched if it is missing")
    solids.add_argument("--count", type=int, help="only the first ones of the list")
    solids.set_defaults(run=evaluate_models)
    args = parser.parse_args(argv)
    report = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
