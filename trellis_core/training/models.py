"""Measure a family on real models: pictures drawn of them go in, and what comes out is held to the model itself.

    python -m trellis_core.training.evaluate models --models runs/models --weights mini

The models are those of Debian's package sweethome3d-furniture that no training may see (`is_held_out`). The frame is the
camera's: the truth is turned to the camera's side, and both surfaces are scaled to the front's outline before they are
compared. The baseline is what an outline alone gives: both sides raised by the distance to it, the best of three depths.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .. import stages
from ..asset.asset import refine_mesh
from ..asset.report import surface_facts
from ..errors import InputError, TrellisError
from ..family import Family
from ..gltf.beside import Beside
from ..gltf.read_textured import read_textured_mesh
from ..mesh.frames import z_up_to_y_up
from ..preview import Camera, Material, render
from ..settings import GenerationSettings
from .lora.data import corner_colours
from .mini import metrics
from .mini.data import kernels

PACKAGE = "sweethome3d-furniture"
LIST = Path(__file__).with_name("models.txt")
"""The models of the evaluation, one path in the unpacked package a line."""
AZIMUTHS = (-30.0, 0.0, 25.0)
"""Sides from which the models are drawn in turn, degrees."""
ELEVATION = 12.0
DEPTHS = (0.3, 0.6, 1.0)
"""Of the baseline: half thickness per distance to the outline."""
BASELINE_GRID = 96


def is_held_out(name: str) -> bool:
    """A fixed third of the models, by name: never trained on."""
    return zlib.crc32(name.encode()) % 3 == 0


def fetch_models(to: Path) -> Path:
    """Unpack the package's models into the folder `to`, with apt and dpkg themselves; one that is there stays as it is.

    Raises:
        InputError: this is no Debian, or apt could not fetch the package.
    """
    if to.exists():
        return to
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise InputError(f"The models come from the Debian package {PACKAGE}, and there is no apt-get here.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        archive = next(Path(folder).glob("*.deb"), None)
        if archive is None:
            raise InputError(f"apt-get could not fetch {PACKAGE}: {done.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        unpacked = Path(folder) / "unpacked"
        for shelf in Path(folder).rglob("*.sh3f"):
            with zipfile.ZipFile(shelf) as packed:
                packed.extractall(unpacked / shelf.stem)
        unpacked.rename(to)
    return to


def evaluated_models(folder: Path) -> list[Path]:
    """The models of the fixed list, in its order."""
    return [folder / name for name in LIST.read_text().split()]


def drawn(path: Path, azimuth: float, size: int = 384) -> tuple[Image.Image, np.ndarray]:
    """A picture of a model with alpha, and its triangles [F, 3, 3] in the camera's frame, z up."""
    mesh = read_textured_mesh(path.read_bytes(), path.suffix, Beside(path.parent))
    corners = mesh.triangles.flatten(0, 1)
    colours, rough = corner_colours(mesh)
    faces = np.arange(len(corners)).reshape(-1, 3)
    camera = Camera(azimuth, ELEVATION, 25.0)
    shown = z_up_to_y_up(corners).numpy()
    pixels = render(
        shown, faces, material=Material(roughness=rough), vertex_colors=colours, camera=camera, size=size, background=None
    )
    angle = np.deg2rad(-azimuth)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return Image.fromarray(_without_floor(pixels)), (corners.double().numpy() @ turn.T).reshape(-1, 3, 3)


def _without_floor(pixels: np.ndarray) -> np.ndarray:
    """Without the soft shadow below: only what is opaque."""
    opaque = pixels.copy()
    opaque[..., 3] = np.where(pixels[..., 3] > 200, 255, 0)
    return opaque


def in_front_square(points: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Points [N, 3] moved and scaled so that the front's (x, z) bounds of `like` fill the unit square."""
    like = points if like is None else like
    low, high = like.min(0), like.max(0)
    return (points - (low + high) / 2) / max(high[0] - low[0], high[2] - low[2])


def inflated(cover: np.ndarray, depth: float) -> np.ndarray:
    """Surface points of an outline bool [S, S] (rows from the top) raised on both sides by `depth` times the distance to it."""
    side = BASELINE_GRID
    mask = np.zeros((side + 1, side + 1), bool)
    inner = np.asarray(Image.fromarray(cover).resize((side - 8, side - 8)))[::-1].T
    mask[4 : 4 + side - 8, 4 : 4 + side - 8] = inner
    height = ndimage.distance_transform_edt(mask).astype(np.float32) / side
    outer = ndimage.distance_transform_edt(~mask).astype(np.float32) / side
    y = np.linspace(-0.5, 0.5, side + 1, dtype=np.float32)
    field = np.where(mask[:, None, :], np.abs(y)[None, :, None] - depth * height[:, None, :], outer[:, None, :] + 1e-3)
    coords, dual, _ = kernels.lattice_dual_grid(field.astype(np.float32), 0.1)
    return in_front_square((coords + dual) / side - 0.5)


def measure(family: Family, path: Path, settings: GenerationSettings, azimuth: float) -> dict[str, float]:
    """Distances of the result and of the baseline to the model, and facts about the surface."""
    picture, triangles = drawn(path, azimuth)
    flat = triangles.reshape(-1, 3)
    truth = in_front_square(metrics.surface_points(flat, np.arange(len(flat)).reshape(-1, 3), seed=1), flat)
    seen = stages.condition(family, picture, settings)
    structure = stages.sample_structure(family, seen, settings, seed=settings.seed or 0)
    shape = stages.sample_shape(family, seen, structure, settings)
    ((raw, _),) = stages.decode(family, shape, None)
    mesh = refine_mesh(raw, settings, shape_resolution(family, settings))
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    points = in_front_square(metrics.surface_points(vertices, faces), vertices)
    chamfer, (f05, _) = metrics.chamfer_and_f(points, truth)
    alpha = np.asarray(picture.getchannel("A")) > 128
    rows, columns = np.nonzero(alpha)
    half = max(np.ptp(rows), np.ptp(columns)) // 2 + 1
    middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    padded = np.pad(alpha, half)
    cover = padded[middle[0] : middle[0] + 2 * half, middle[1] : middle[1] + 2 * half]
    rng = np.random.default_rng(0)
    baseline = []
    for depth in DEPTHS:
        blown = inflated(cover, depth)
        baseline.append(metrics.chamfer_and_f(blown[rng.integers(len(blown), size=metrics.POINTS)], truth)[0])
    facts = surface_facts(vertices, faces)
    return {
        "chamfer": chamfer,
        "f_05": f05,
        "baseline": min(baseline),
        "better": float(chamfer < min(baseline)),
        "boundary_edges": float(facts["boundary_edges"]),
        "watertight": float(facts["watertight"]),
        "parts": float(facts["components"]),
    }


def shape_resolution(family: Family, settings: GenerationSettings) -> int:
    """Voxels a side of what the settings make."""
    return family.scales[family.route(settings.resolution, settings.cascade).target].output


def measure_all(family: Family, paths: Sequence[Path], settings: GenerationSettings) -> Iterator[tuple[str, dict[str, float]]]:
    """Measures by name; a model whose picture ends with a message is left out, and said."""
    for number, path in enumerate(paths):
        try:
            yield f"{path.parent.parent.name}/{path.stem}", measure(family, path, settings, AZIMUTHS[number % len(AZIMUTHS)])
        except TrellisError as error:
            print(f"{path}: {error}", flush=True)


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the models; `gain` is how much nearer than the baseline the results are, on average."""
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"models": len(rows), **means, "gain": 1 - means["chamfer"] / means["baseline"]}
