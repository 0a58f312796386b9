"""Measure a family on pictures from outside: drawings that no training has seen and that no generator made.

    python -m trellis_core.training.evaluate outside --pictures runs/pictures --weights mini

There is no true model to compare with, so the picture itself is the measure: seen from the front, the model must have its
outline and its colours; and whatever the picture, the surface must be closed, smooth and in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import stages
from ..asset.asset import refine_mesh
from ..asset.report import surface_facts
from ..errors import TrellisError
from ..family import Family
from ..image.reading import open_picture
from ..mesh.topology import edges, face_components, face_normals, manifold_pairs
from ..ovoxel.attributes import sample_attributes
from ..settings import GenerationSettings
from .mini import metrics
from .mini.data.outlines import EVALUATED, cropped

SIZE = 96
"""Pixels a side at which outlines and colours are compared."""
POINTS = 120_000
ELEVATIONS = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
"""Heights of the camera that are tried: a picture does not say from how high it was taken."""


@dataclass(frozen=True)
class Front:
    """What is seen from a camera far away: cover bool [S, S] and colour float32 [S, S, 3], in the square of its outline."""

    cover: np.ndarray
    colour: np.ndarray


def evaluated_pictures(folder: Path) -> list[Path]:
    """The pictures of the fixed list, in its order."""
    return [folder / name for name in EVALUATED.read_text().split()]


def picture_front(picture: Image.Image) -> Front:
    """A cut-out picture in the square of its outline."""
    rgb, alpha = cropped(picture.convert("RGBA"), SIZE)
    straight = rgb.astype(np.float32) / 255 / np.maximum(alpha, 0.05)[..., None]
    return Front(alpha > 0.5, straight.clip(0, 1))


def model_front(points: np.ndarray, colours: np.ndarray, azimuth: float, elevation: float) -> Front:
    """Points [N, 3] of a surface with colours [N, 3], from in front (-y), turned by degrees."""
    a, e = np.deg2rad([azimuth, elevation])
    right = np.array([np.cos(a), np.sin(a), 0])
    away = np.array([-np.cos(e) * np.sin(a), np.cos(e) * np.cos(a), -np.sin(e)])
    up = np.cross(right, away)
    u, v, depth = points @ right, points @ up, points @ away
    half = max(np.ptp(u), np.ptp(v)) / 2 + 1e-9
    column = ((u - (u.min() + u.max()) / 2) / half * 0.5 + 0.5) * (SIZE - 1e-3)
    row = (0.5 - (v - (v.min() + v.max()) / 2) / half * 0.5) * (SIZE - 1e-3)
    pixel = row.astype(int) * SIZE + column.astype(int)
    order = np.argsort(-depth)  # the nearest is written last
    cover, colour = np.zeros(SIZE * SIZE, bool), np.zeros((SIZE * SIZE, 3), np.float32)
    cover[pixel], colour[pixel[order]] = True, colours[order]
    return Front(cover.reshape(SIZE, SIZE), colour.reshape(SIZE, SIZE, 3))


def agreement(seen: Front, wanted: Front) -> tuple[float, float]:
    """(intersection over union of the outlines, mean absolute colour error where both are)."""
    both = seen.cover & wanted.cover
    union = (seen.cover | wanted.cover).sum()
    error = np.abs(seen.colour - wanted.colour)[both].mean() if both.any() else 1.0
    return float(both.sum() / max(union, 1)), float(error)


def roughness(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Mean angle between neighbouring faces, degrees."""
    beside = manifold_pairs(edges(faces))[1] // 3
    normals = face_normals(vertices, faces)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    cosine = (normals[beside[:, 0]] * normals[beside[:, 1]]).sum(1)
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean())


def smallest_part(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Share of the volume that the smallest part has; 1 for a single part."""
    label = face_components(faces)
    corners = vertices[faces].astype(np.float64)
    volume = np.abs(np.bincount(label, np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6))
    return float(volume.min() / max(volume.sum(), 1e-12))


def measure(
    family: Family, picture: Image.Image, settings: GenerationSettings, azimuths: Sequence[float] = (0.0,)
) -> dict[str, float]:
    """All measures of what the pipeline makes of a cut-out picture."""
    seen = stages.condition(family, picture, settings)
    structure = stages.sample_structure(family, seen, settings, seed=settings.seed or 0)
    shape = stages.sample_shape(family, seen, structure, settings)
    texture = stages.sample_texture(family, seen, shape, settings)
    ((raw, voxels),) = stages.decode(family, shape, texture)
    mesh = refine_mesh(raw, settings, voxels.resolution)
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    points = metrics.surface_points(vertices, faces, POINTS)
    colours = sample_attributes(voxels, torch.from_numpy(points).float())[:, :3].clamp(0, 1).numpy()
    wanted = picture_front(picture)
    tried = [agreement(model_front(points, colours, a, e), wanted) for a in azimuths for e in ELEVATIONS]
    outline, colour = max(tried)
    facts = surface_facts(vertices, faces)
    return {
        "outline": outline,
        "colour": colour,
        "boundary_edges": float(facts["boundary_edges"]),
        "watertight": float(facts["watertight"]),
        "parts": float(facts["components"]),
        "smallest_part": smallest_part(vertices, faces),
        "roughness": roughness(vertices, faces),
        "raw_boundary": metrics.boundary_share(raw.faces.numpy()),
    }


def measure_all(
    family: Family, paths: Sequence[Path], settings: GenerationSettings, azimuths: Sequence[float] = (0.0,)
) -> Iterator[tuple[str, dict[str, float]]]:
    """Measures by file name; a picture that ends with a message instead of a model counts as outline 0."""
    for path in paths:
        try:
            yield path.name, measure(family, open_picture(path), settings, azimuths)
        except TrellisError as error:
            print(f"{path.name}: {error}", flush=True)
            yield path.name, {"outline": 0.0, "colour": 1.0}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures that stand in README."""
    made = [row for row in rows if "parts" in row]

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in (rows if name in ("outline", "colour") else made)])

    outline = np.sort(column("outline"))
    return {
        "pictures": len(rows),
        "outline": float(outline.mean()),
        "outline_worst_tenth": float(outline[: max(len(outline) // 10, 1)].mean()),
        "colour": float(column("colour").mean()),
        "watertight": float(column("watertight").mean()),
        "boundary_edges": float(column("boundary_edges").mean()),
        "parts_median": float(np.median(column("parts"))),
        "smallest_part_least": float(column("smallest_part").min()),
        "roughness": float(column("roughness").mean()),
        "raw_boundary": float(column("raw_boundary").mean()),
    }
