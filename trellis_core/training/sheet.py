"""A contact sheet of what a family makes of pictures: each picture beside two views of its finished asset.

    python -m trellis_core.training.sheet --objects 12 --out sheet.jpg examples/icon_duck.png ...

The first rows show the first held-out objects of the evaluation, unselected, the last ones the pictures given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import stages
from ..asset.asset import Asset
from ..family import Family, load_family
from ..image.reading import open_picture
from ..mesh.frames import z_up_to_y_up
from ..preview import Camera, Surface, contact_sheet, render
from ..settings import GenerationSettings
from .evaluate import FIRST_SEED, make_truth

AZIMUTHS = (35.0, 215.0)
ACROSS = 4
"""Objects a row."""
BACKGROUND = (236, 236, 238)


def draw(asset: Asset, azimuth: float, size: int) -> np.ndarray:
    """uint8 [size, size, 3] picture of a finished asset."""
    vertices, normals = (z_up_to_y_up(v).numpy() for v in (asset.vertices, asset.normals))
    surface = Surface(asset.base_color.numpy(), asset.metallic_roughness.numpy())
    look = {"surface": surface, "camera": Camera(azimuth=azimuth), "size": size, "background": BACKGROUND}
    return render(vertices, asset.faces.numpy(), normals=normals, uvs=asset.uvs.numpy(), **look)


Cell = Image.Image | np.ndarray


def picture_and_views(family: Family, picture: Image.Image, settings: GenerationSettings, size: int) -> list[Cell]:
    """The picture on the sheet's background, then the views."""
    asset = stages.generate(family, picture, settings)
    flat = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
    flat.alpha_composite(picture.convert("RGBA"))
    return [flat, *(draw(asset, azimuth, size) for azimuth in AZIMUTHS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.sheet", description=main.__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, help="pictures with a transparent background")
    parser.add_argument("--weights", default="mini", help='"mini" or a family folder')
    parser.add_argument("--objects", type=int, default=12, help="held-out objects")
    parser.add_argument("--resolution", type=int, default=512, choices=(512, 1024))
    parser.add_argument("--size", type=int, default=128, help="pixels a picture")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    family = load_family(args.weights)
    settings = GenerationSettings(resolution=args.resolution, seed=0, texture_size=1024)
    pictures = [make_truth(FIRST_SEED + i, 8).picture for i in range(args.objects)] + [open_picture(p) for p in args.pictures]
    shown = [picture_and_views(family, picture, settings, args.size) for picture in pictures]
    rows = [sum(shown[i : i + ACROSS], []) for i in range(0, len(shown), ACROSS)]
    contact_sheet(rows, cell=args.size).convert("RGB").save(args.out, quality=88)


if __name__ == "__main__":
    main()
