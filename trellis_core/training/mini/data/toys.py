"""The thirteen kinds of procedural toys by name; the order is part of what a seed means."""

from __future__ import annotations

from collections.abc import Callable

from .objects import Sketch
from .toys_indoor import blocks, bottle, chair, lamp, mug, table
from .toys_outdoor import car, duck, house, mushroom, rocket, snowman, tree

BUILDERS: dict[str, Callable[[Sketch], None]] = {
    "blocks": blocks, "chair": chair, "table": table, "mug": mug, "lamp": lamp, "snowman": snowman, "car": car, "house": house,
    "tree": tree, "bottle": bottle, "mushroom": mushroom, "duck": duck, "rocket": rocket,
}  # fmt: skip
HELD_OUT_CATEGORY = "rocket"
CATEGORIES = tuple(name for name in BUILDERS if name != HELD_OUT_CATEGORY)
