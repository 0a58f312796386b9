"""What the demonstration LoRAs do, as one picture: a row for each, the picture and finished models at strengths 0, 0.5, 1.

python -m trellis_core.training.lora.demo_pictures --out docs/loras.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ... import stages
from ...family import load_family
from ...image.reading import open_picture
from ...lora.source import BUNDLED
from ...lora.stack import Lora, place
from ...preview.asset import draw_asset
from ...settings import GenerationSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
SHOWN = (
    ("tall-and-thin", "structure", "icon_duck.png"),
    ("blocky", "shape", "icon_duck.png"),
    ("polished-gold", "texture", "photo_toadstool_cut.png"),
)
STRENGTHS = (0.0, 0.5, 1.0)
SIDE, LABEL = 300, 22
PAPER, INK = (236, 236, 238), (40, 42, 48)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.lora.demo_pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=EXAMPLES / "loras.jpg")
    parser.add_argument("--loras", type=Path, default=BUNDLED)
    args = parser.parse_args(argv)
    family, settings = load_family("mini"), GenerationSettings(resolution=512, texture_size=1024, seed=1)
    route = family.route(settings.resolution)
    sheet = Image.new("RGB", (SIDE * (1 + len(STRENGTHS)), (SIDE + LABEL) * len(SHOWN)), PAPER)
    canvas = ImageDraw.Draw(sheet)
    for row, (name, stage, picture) in enumerate(SHOWN):
        top = row * (SIDE + LABEL)
        source = open_picture(EXAMPLES / picture)
        small = source.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (0, top + LABEL), small)
        canvas.text((8, top + 5), f"{name} ({stage})", fill=INK)
        for column, strength in enumerate(STRENGTHS, 1):
            changed, _ = place(family, [Lora(args.loras / f"{name}.safetensors", strength, stage)], route)
            asset = stages.generate(changed, source, settings)
            sheet.paste(Image.fromarray(draw_asset(asset, size=SIDE)), (column * SIDE, top + LABEL))
            canvas.text((column * SIDE + 8, top + 5), f"strength {strength:g}", fill=INK)
    sheet.save(args.out, quality=88)
    print(args.out)


if __name__ == "__main__":
    main()
