"""The thirteen kinds of procedural toys by name; the order is part of what a seed means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....errors import InputError
from .objects import ProceduralObject, Sketch
from .toys_indoor import blocks, bottle, chair, lamp, mug, table
from .toys_outdoor import car, duck, house, mushroom, rocket, snowman, tree

BUILDERS: dict[str, Callable[[Sketch], None]] = {
    "blocks": blocks, "chair": chair, "table": table, "mug": mug, "lamp": lamp, "snowman": snowman, "car": car, "house": house,
    "tree": tree, "bottle": bottle, "mushroom": mushroom, "duck": duck, "rocket": rocket,
}  # fmt: skip
HELD_OUT_CATEGORY = "rocket"
CATEGORIES = tuple(name for name in BUILDERS if name != HELD_OUT_CATEGORY)


def make_object(seed: int, category: str | None = None) -> ProceduralObject:
    """The object of a seed (any int >= 0): deterministic, of a training category unless `category` asks for another one.

    Raises:
        InputError: unknown category.
    """
    category = category or CATEGORIES[seed % len(CATEGORIES)]
    if category not in BUILDERS:
        raise InputError(f"No object category {category!r}; there are {', '.join(BUILDERS)}.")
    sketch = Sketch(np.random.default_rng([seed, list(BUILDERS).index(category)]))
    BUILDERS[category](sketch)
    return sketch.finish(seed, category)
