"""What the demonstration LoRAs do, as one picture: rows of strengths 0, 0.5 and 1 for each.

    python -m trellis_core.lora.demo_pictures --out examples/loras.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .. import stages
from ..family import Family, load_family
from ..image.preprocess import open_picture
from ..settings import GenerationSettings
from ..values import Mesh, PbrVoxels
from .samples import draw_model
from .source import BUNDLED
from .stack import Lora, place

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = (("tall-and-thin", "structure", "icon_tree.png"), ("blocky", "shape", "icon_duck.png"), ("polished-gold", "texture", "icon_duck.png"))
STRENGTHS = (0.0, 0.5, 1.0)
SIDE, LABEL = 300, 22


def made(family: Family, picture: Image.Image, lora: Lora, settings: GenerationSettings) -> tuple[Mesh, PbrVoxels]:
    """The decoded, unfinished model of a picture with one LoRA."""
    family, _ = place(family, [lora], family.route(settings.resolution))
    seen = stages.condition(family, picture, settings)
    structure = stages.sample_structure(family, seen, settings)
    shape = stages.sample_shape(family, seen, structure, settings)
    ((mesh, voxels),) = stages.decode(family, shape, stages.sample_texture(family, seen, shape, settings))
    return mesh, voxels


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.lora.demo_pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=EXAMPLES / "loras.jpg")
    parser.add_argument("--loras", type=Path, default=BUNDLED)
    args = parser.parse_args(argv)
    family, settings = load_family("mini"), GenerationSettings(resolution=512, seed=1)
    sheet = Image.new("RGB", (SIDE * len(STRENGTHS), (SIDE + LABEL) * len(SHOWN)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, (name, stage, picture) in enumerate(SHOWN):
        source = open_picture(EXAMPLES / picture)
        for column, strength in enumerate(STRENGTHS):
            lora = Lora(args.loras / f"{name}.safetensors", strength, stage)
            corner = column * SIDE, row * (SIDE + LABEL)
            sheet.paste(draw_model(*made(family, source, lora, settings), SIDE), (corner[0], corner[1] + LABEL))
            canvas.text((corner[0] + 8, corner[1] + 5), f"{name} ({stage}), strength {strength:g}", fill=(40, 42, 48))
    sheet.save(args.out, quality=88)
    print(args.out)


if __name__ == "__main__":
    main()
