"""Data of the demonstration LoRAs: pictures of procedural toys, each beside the toy as a style wants it.

    python -m trellis_core.training.lora.demo_data --style tall --out data/tall

Styles: `tall` (twice as high), `blocky` (built of cubes), `gold` (everything polished gold).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes
from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from ...mesh.frames import z_up_to_y_up
from ...ovoxel.dual_grid import dual_grid_to_mesh
from ..mini.data.compiled import kernels
from ..mini.data.objects import Look, ProceduralObject
from ..mini.data.render import Lighting, front_camera, render_view
from ..mini.data.toys import make_object

FIRST_SEED = 7_000_000
GRID = 48
VIEWS = 3
GOLD = Look((1.0, 0.78, 0.34), 1.0, 0.12)
STRETCH = 1.8
BLOCKS = 8
"""Cubes along the longest side: every one is two of mini's structure voxels wide."""


def styled(obj: ProceduralObject, style: str) -> tuple[Tensor, Tensor, list[Look]]:
    """Vertices [V, 3] z up, faces [F, 3], and the look of every face."""
    coords, dual, intersected, part = kernels().dual_grid(obj.table, GRID, 0.1)
    rows = torch.from_numpy(coords.astype(np.int32))
    weights = torch.ones(len(rows), 1)
    mesh = dual_grid_to_mesh(rows, torch.from_numpy(dual), torch.from_numpy(intersected), weights, GRID)
    vertices, faces = mesh.vertices.clone(), mesh.faces.long()
    looks = [obj.parts[number].look for number in part[faces[:, 0].numpy()]]
    if style == "tall":
        vertices[:, 2] *= STRETCH
    elif style == "blocky":
        vertices = in_unit_cube(vertices)
        built, squares = blocks(vertices)
        nearest = cKDTree(vertices.numpy()).query(built[squares].mean(1).numpy())[1]
        owner = np.zeros(len(vertices), np.int64)
        owner[faces.numpy().ravel()] = np.repeat(np.arange(len(faces)), 3)
        return built, squares, [looks[owner[row]] for row in nearest]
    elif style == "gold":
        looks = [GOLD] * len(faces)
    return vertices, faces, looks


def in_unit_cube(vertices: Tensor) -> Tensor:
    """Scaled and moved into the middle of [0, 1]^3, as large as fits."""
    low, high = vertices.amin(0), vertices.amax(0)
    return (vertices - (low + high) / 2) / (high - low).max() + 0.5


def blocks(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """The cubes of the unit cube's grid that a dense closed surface in it fills: vertices [V, 3] and outer faces [F, 3].

    A surface in the middle of the unit cube gives blocks in its middle, so encoders see them on their own grid.
    """
    cells = (vertices * BLOCKS).long().clamp(0, BLOCKS - 1)
    filled = np.zeros((BLOCKS + 2,) * 3, bool)
    filled[tuple((cells + 1).T.numpy())] = True
    filled = torch.from_numpy(binary_fill_holes(filled))
    corners, faces = [], []
    for axis in range(3):
        for side in (0, 1):
            open_cells = (filled & ~filled.roll(1 - 2 * side, axis)).nonzero() - 1
            u, v = (axis + 1) % 3, (axis + 2) % 3
            square = torch.zeros(4, 3, dtype=torch.long)
            square[:, axis], square[1:3, u], square[2:, v] = side, 1, 1
            first = sum(map(len, corners)) + 4 * torch.arange(len(open_cells))[:, None]
            corners.append((open_cells[:, None] + (square if side else square.flip(0))).flatten(0, 1))
            faces += [first + torch.tensor([0, 1, 2]), first + torch.tensor([0, 2, 3])]
    points, row = torch.unique(torch.cat(corners), dim=0, return_inverse=True)
    return points.float() / BLOCKS, row[torch.cat(faces)]


def write_object(folder: Path, name: str, vertices: Tensor, faces: Tensor, looks: list[Look]) -> None:
    """An OBJ with its MTL, y up, one material for every look."""
    kinds = list(dict.fromkeys(looks))
    number = {look: index for index, look in enumerate(kinds)}
    lines = [f"mtllib {name}.mtl"]
    lines += ["v {:.5f} {:.5f} {:.5f}".format(*v) for v in z_up_to_y_up(vertices).tolist()]
    owner = np.array([number[look] for look in looks])
    for index in range(len(kinds)):
        lines.append(f"usemtl m{index}")
        lines += ["f {} {} {}".format(*f) for f in (faces[owner == index] + 1).tolist()]
    (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")
    materials = []
    for index, look in enumerate(kinds):
        colour = " ".join(f"{c:.4f}" for c in look.rgb)
        materials += [f"newmtl m{index}", f"Kd {colour}", f"Pm {look.metallic:.3f}", f"Pr {look.roughness:.3f}"]
    (folder / f"{name}.mtl").write_text("\n".join(materials) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.lora.demo_data", description=__doc__)
    parser.add_argument("--style", choices=("tall", "blocky", "gold"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.count):
        obj = make_object(FIRST_SEED + index)
        name = f"{obj.category}_{index:03}".replace("_", "-")
        write_object(args.out, name, *styled(obj, args.style))
        rng = np.random.default_rng([index, 3])
        for view in range(VIEWS):
            camera = front_camera(rng)
            pixels = render_view(obj, camera, 192, Lighting.random(rng, camera.azimuth))
            Image.fromarray(pixels).save(args.out / f"{name}_{view + 1}.png")
    print(f"{args.out}: {args.count} models, {args.count * VIEWS} pictures")


if __name__ == "__main__":
    main()
