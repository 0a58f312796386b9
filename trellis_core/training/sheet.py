"""A contact sheet of what a family makes of pictures: each picture beside three views of its finished asset.

    python -m trellis_core.training.sheet --weights mini --count 48 --out examples/outside.jpg

The pictures are the first ones of the evaluation's fixed list (`outside`), unselected, failures included; or those given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import stages
from ..asset.asset import Asset
from ..errors import TrellisError
from ..family import Family, load_family
from ..image.reading import open_picture
from ..mesh.frames import z_up_to_y_up
from ..preview import Camera, Material, contact_sheet, render
from ..settings import GenerationSettings
from .mini.data.fetch import fetch_pictures
from .outside import evaluated_pictures

CAMERAS = (Camera(0.0, 5.0), Camera(40.0, 15.0), Camera(180.0, 5.0))
"""Front, three-quarter, back."""
ACROSS = 4
"""Objects a row."""
BACKGROUND = (236, 236, 238)

Cell = Image.Image | np.ndarray


def draw(asset: Asset, camera: Camera, size: int) -> np.ndarray:
    """uint8 [size, size, 3] picture of a finished asset."""
    vertices, normals = (z_up_to_y_up(v).numpy() for v in (asset.vertices, asset.normals))
    material = Material(asset.base_color.numpy(), asset.metallic_roughness.numpy())
    look = {"material": material, "camera": camera, "size": size, "background": BACKGROUND}
    return render(vertices, asset.faces.numpy(), normals=normals, uvs=asset.uvs.numpy(), **look)


def picture_and_views(family: Family, picture: Image.Image, settings: GenerationSettings, size: int) -> list[Cell]:
    """The picture on the sheet's background, then the views; nothing beside a picture that ends with a message."""
    flat = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
    flat.alpha_composite(picture.convert("RGBA"))
    try:
        asset = stages.generate(family, picture, settings)
    except TrellisError as error:
        print(error, flush=True)
        return [flat, *[Image.new("RGB", (size, size), BACKGROUND)] * len(CAMERAS)]
    return [flat, *(draw(asset, camera, size) for camera in CAMERAS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.sheet", description=main.__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, help="pictures with a transparent background")
    parser.add_argument("--weights", default="mini", help='"mini" or a family folder')
    parser.add_argument("--count", type=int, default=48, help="pictures of the evaluation, where none are given")
    parser.add_argument("--folder", type=Path, default=Path("runs/pictures"), help="where these are; fetched if missing")
    parser.add_argument("--resolution", type=int, default=512, choices=(512, 1024))
    parser.add_argument("--size", type=int, default=112, help="pixels a picture")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    family = load_family(args.weights)
    settings = GenerationSettings(resolution=args.resolution, seed=0, texture_size=1024)
    paths = args.pictures or evaluated_pictures(fetch_pictures(args.folder))[: args.count]
    shown = [picture_and_views(family, open_picture(path), settings, args.size) for path in paths]
    rows = [sum(shown[i : i + ACROSS], []) for i in range(0, len(shown), ACROSS)]
    contact_sheet(rows, cell=args.size).convert("RGB").save(args.out, quality=88)


if __name__ == "__main__":
    main()
