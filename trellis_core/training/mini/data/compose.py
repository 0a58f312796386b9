"""Random compositions of primitives: wide instead of real, so that no picture is the picture of a known thing.

Every builder draws with a `Sketch`; `compose` turns the result about the vertical by any angle, because the frame of
training is that of the camera: x to the right of the picture, z up, the camera at -y.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .objects import BALL, BOX, CONE, DOME, FINE_HALF, FRAME, ProceduralObject, Sketch, rotation
from .toys import CATEGORIES, make_object

TOYS = 0.15
"""Share of the old toys."""


def cluster(s: Sketch) -> None:
    """One to six primitives of any kind that overlap near the middle."""
    for _ in range(s.pick((1, 1, 2, 2, 3, 4, 5, 6))):
        _any_part(s, (s.u(-0.3, 0.3), s.u(-0.25, 0.25), s.u(-0.3, 0.3)), s.u(0.1, 0.35))


def _any_part(s: Sketch, at, size: float, look=None) -> None:
    look = look or s.look()
    turn = s.pick(((0, 0, 0), (0, 0, s.u(0, 90)), (s.u(-90, 90), s.u(-90, 90), s.u(0, 90))))
    a, b, c = (size * s.u(0.4, 1.3) for _ in range(3))
    kind = s.pick((BOX, BOX, BALL, BALL, CONE, DOME, "ring", "taper", "cup"))
    if kind == BOX:
        s.box(at, (a, b, c), look, s.u(0.0, 0.5) * min(a, b, c), turn)
    elif kind == BALL:
        s.ball(at, (a, b, c), look, turn)
    elif kind == CONE:
        s.cone(at, a, s.pick((a, b, 0.03)), c, look, s.u(0.0, 0.03), turn)
    elif kind == DOME:
        s.dome(at, (a, a, c), look, turn)
    elif kind == "ring":
        s.ring(at, max(a, 0.1), s.u(0.15, 0.4) * max(a, 0.1), look, turn)
    elif kind == "taper":
        s.taper(at, (a, b), (a * s.u(0, 1), b * s.u(0, 1)), c, look, turn)
    else:
        s.cup(at, a, max(b, 0.12), c, s.u(0.03, 0.06), look, turn)


def lathe(s: Sketch) -> None:
    """A turned body: cones end to end whose radii follow a smooth random profile."""
    rings = s.pick((3, 4, 5, 6, 7))
    radii = np.abs(np.cumsum([s.u(-0.16, 0.16) for _ in range(rings + 1)]) + s.u(0.15, 0.35)) + 0.04
    z, looks = 0.0, [s.look() for _ in range(s.pick((1, 2, 3)))]
    for i in range(rings):
        half = s.u(0.05, 0.16)
        s.cone((0, 0, z + half), radii[i], radii[i + 1], half + 0.004, looks[i % len(looks)], 0.004)
        z += 2 * half
    if s.chance(0.4):
        s.ball((0, 0, z), radii[-1] * s.u(0.8, 1.2), s.look())
    if s.chance(0.3):
        s.ring((radii.max() * s.u(0.9, 1.1), 0, z * s.u(0.4, 0.7)), s.u(0.1, 0.2), s.u(0.02, 0.04), s.look(), (90, 0, 0))


def stack(s: Sketch) -> None:
    """Bodies one on another, with things at their sides."""
    z = 0.0
    for _ in range(s.pick((2, 3, 4))):
        half, wide = s.u(0.08, 0.25), s.u(0.12, 0.35)
        kind = s.pick(("box", "ball", "cone", "dome", "taper"))
        look, at = s.look(), (s.u(-0.03, 0.03), 0, z + half)
        if kind == "box":
            s.box(at, (wide, wide * s.u(0.5, 1.1), half), look, s.u(0.01, 0.08))
        elif kind == "ball":
            s.ball(at, (wide, wide * s.u(0.6, 1), half * 1.15), look)
        elif kind == "cone":
            s.cone(at, wide, wide * s.u(0.2, 1), half, look)
        elif kind == "dome":
            s.dome((at[0], 0, z), (wide, wide, 2 * half), look)
        else:
            s.taper(at, (wide, wide), (wide * s.u(0, 0.9), wide * s.u(0, 0.9)), half, look)
        if s.chance(0.4):
            side = s.look()
            for sign in (-1, 1):
                s.ball((sign * wide, 0, at[2]), s.u(0.05, 0.12), side)
        z += 1.9 * half


def creature(s: Sketch) -> None:
    """Body, head and limbs, the left side like the right one."""
    body, skin = s.look(), s.look()
    upright = s.chance(0.5)
    if upright:
        bx, by, bz = s.u(0.15, 0.26), s.u(0.13, 0.2), s.u(0.2, 0.35)
    else:
        bx, by, bz = s.u(0.15, 0.24), s.u(0.25, 0.4), s.u(0.14, 0.22)
    leg = s.u(0.06, 0.3)
    z = 2 * leg + bz * 0.8
    s.ball((0, 0, z), (bx, by, bz), body)
    head = s.u(0.12, 0.24)
    at = np.array((0, 0, z + bz + 0.6 * head)) if upright else np.array((0, -by, z + bz * s.u(0.6, 1.6)))
    s.ball(at, (head * s.u(0.9, 1.2), head, head * s.u(0.85, 1.1)), s.pick((body, skin)))
    ear, eye, limb = s.look(), s.pick((s.look("dark"), s.look("white"))), s.pick((body, skin))
    long, thick, style = s.u(0.06, 0.2), s.u(0.035, 0.08), s.pick(("ball", "cone", "none"))
    for sign in (-1, 1):
        if style == "ball":
            s.ball(at + (sign * head * 0.6, 0, head * 0.9), (0.07, 0.04, long), ear, (0, sign * s.u(0, 40), 0))
        elif style == "cone":
            s.cone(at + (sign * head * 0.55, 0, head + 0.04), 0.07, 0.02, long / 1.5, ear)
        s.ball(at + (sign * head * 0.4, -head * 0.85, head * 0.25), s.u(0.03, 0.05), eye)
        for front in (-1, 1) if not upright else (0,):
            s.cone((sign * bx * 0.6, front * by * 0.6, leg + 0.03), thick, thick, leg + 0.05, limb)
        if upright:
            turn = s.u(10, 80)
            s.cone((sign * (bx + 0.1), 0, z + bz * s.u(0.1, 0.6)), thick, thick, s.u(0.1, 0.2), limb, 0.02, (0, sign * turn, 0))
    if s.chance(0.6):
        s.ball(at + (0, -head, -0.02), (0.05, 0.08, 0.04), s.look())
    if s.chance(0.6):
        s.cone((0, by, z), 0.05, 0.03, s.u(0.08, 0.2), body, 0.01, (s.u(-70, -20), 0, 0))


def vessel(s: Sketch) -> None:
    """Cups, bowls and pots with handles, feet and what is in them."""
    low, high, half, look = s.u(0.12, 0.32), s.u(0.18, 0.38), s.u(0.12, 0.38), s.look()
    s.cup((0, 0, half), low, high, half, s.u(0.035, 0.06), look)
    if s.chance(0.6):
        handle = s.pick((look, s.look()))
        for sign in s.pick(((1,), (-1, 1))):
            middle = (low + high) / 2
            s.ring((sign * (middle + 0.06), 0, half), s.u(0.09, 0.16), s.u(0.02, 0.035), handle, (90, 0, 0))
    if s.chance(0.3):
        s.ball((0, 0, 2 * half), (0.85 * high, 0.85 * high, s.u(0.05, 0.25)), s.look())
    if s.chance(0.3):
        s.cone((0, 0, -0.05), s.u(0.1, 0.3), 0.06, 0.06, look)


def tube(s: Sketch) -> None:
    """A bent tube of balls and cones, thick or thin."""
    points = 4 + s.pick((0, 1, 2, 3, 4))
    curve = np.cumsum(np.stack([s.rng.normal(0, 1, points), s.rng.normal(0, 0.4, points), s.rng.normal(0, 1, points)], 1), 0)
    curve *= 0.8 / np.ptp(curve, axis=0).max()
    radius, looks = s.u(0.035, 0.11), [s.look() for _ in range(s.pick((1, 1, 2)))]
    for i, (a, b) in enumerate(pairwise(curve)):
        look = looks[i % len(looks)]
        along = b - a
        length = np.linalg.norm(along)
        tilt, around = np.degrees(np.arccos(along[2] / length)), np.degrees(np.arctan2(along[1], along[0]))
        s.cone((a + b) / 2, radius, radius, length / 2, look, 0.0, (0, tilt, around))
        s.ball(b, radius, look)
    for end in (curve[0], curve[-1]):
        if s.chance(0.5):
            _any_part(s, end, s.u(0.08, 0.2))


def furniture(s: Sketch) -> None:
    """Plates, legs, backs and drawers at right angles."""
    w, d, h, thick = s.u(0.25, 0.45), s.u(0.15, 0.4), s.u(0.2, 0.8), s.u(0.025, 0.06)
    frame, front = s.look("wood", "paint", "white", "metal"), s.look()
    kind = s.pick(("legs", "box", "shelf", "seat"))
    if kind in ("legs", "seat"):
        s.box((0, 0, h), (w, d, thick), front, 0.01)
        for x in (-1, 1):
            for y in (-1, 1):
                s.box((x * (w - thick), y * (d - thick), h / 2), (thick, thick, h / 2), frame, 0.005)
        if kind == "seat":
            back = s.u(0.2, 0.5)
            s.box((0, d - thick, h + back), (w, thick, back), front, 0.02)
            if s.chance(0.4):
                for x in (-1, 1):
                    s.box((x * w, 0, h + 0.15), (0.04, d, 0.15), frame, 0.02)
    elif kind == "box":
        s.box((0, 0, h / 2), (w, d, h / 2), frame, 0.02)
        rows = s.pick((1, 2, 3))
        for i in range(rows):
            z = h * (i + 0.5) / rows
            s.box((0, -d, z), (0.85 * w, 0.02, 0.4 * h / rows), front, 0.01)
            s.ball((0, -d - 0.03, z), 0.025, s.look())
    else:
        shelves = s.pick((2, 3, 4))
        for x in (-1, 1):
            s.box((x * w, 0, h), (0.03, d, h), frame, 0.005)
        for i in range(shelves):
            s.box((0, 0, 2 * h * i / (shelves - 1)), (w, d, 0.03), frame, 0.005)


def vehicle(s: Sketch) -> None:
    """A body with wheels, fins or wings."""
    w, d, h = s.u(0.3, 0.45), s.u(0.13, 0.22), s.u(0.08, 0.2)
    body, other = s.look(), s.look()
    s.pick((lambda: s.box((0, 0, 0.2), (w, d, h), body, 0.05), lambda: s.ball((0, 0, 0.2), (w, d, h * 1.3), body)))()
    if s.chance(0.7):
        s.taper((s.u(-0.1, 0.1), 0, 0.2 + h + 0.1), (w * 0.6, d * 0.95), (w * 0.45, d * 0.8), 0.12, other)
    if s.chance(0.7):
        wheel, radius = s.look("dark", "rubber", "metal"), s.u(0.07, 0.13)
        for x in (-0.6, 0.6):
            for y in (-1, 1):
                s.cone((x * w, y * d, 0.2 - h), radius, radius, 0.045, wheel, 0.01, (90, 0, 0))
    else:
        for sign in (-1, 1):
            s.box((0, sign * (d + 0.15), 0.2), (s.u(0.06, 0.14), 0.2, 0.025), other, 0.01)
        s.box((w * 0.9, 0, 0.2 + h), (0.07, 0.025, 0.14), other, 0.01)


def plant(s: Sketch) -> None:
    """A stem with leaves, flowers or fruit around it, in a pot or without."""
    stem, leaf = s.look("wood", "paint"), s.look()
    height = s.u(0.2, 0.6)
    s.cone((0, 0, height / 2), s.u(0.04, 0.08), 0.04, height / 2, stem)
    for _ in range(s.pick((1, 3, 5, 7))):
        at = (s.u(-0.25, 0.25), s.u(-0.2, 0.2), height + s.u(-0.15, 0.25))
        s.ball(at, (s.u(0.08, 0.22), s.u(0.05, 0.2), s.u(0.08, 0.22)), s.pick((leaf, leaf, s.look())), (0, s.u(-60, 60), 0))
    if s.chance(0.5):
        s.cone((0, 0, -0.1), s.u(0.1, 0.18), s.u(0.15, 0.25), 0.13, s.look())


def sign(s: Sketch) -> None:
    """A board, disc or gem with raised marks on its front."""
    w, h, thick, look = s.u(0.2, 0.45), s.u(0.2, 0.45), s.u(0.03, 0.12), s.look()
    if s.chance(0.5):
        s.box((0, 0, 0), (w, thick, h), look, s.u(0.01, thick * 0.9))
    else:
        s.cone((0, 0, 0), h, h, thick, look, 0.02, (90, 0, 0))
        w = h
    for _ in range(s.pick((0, 1, 2, 3, 4))):
        at = (s.u(-0.6, 0.6) * w, -thick, s.u(-0.6, 0.6) * h)
        s.box(at, (s.u(0.03, 0.5) * w, 0.03, s.u(0.03, 0.3) * h), s.look(), 0.01)
    if s.chance(0.3):
        s.cone((0, 0, -h - 0.2), 0.03, 0.03, 0.25, s.look())


BUILDERS: tuple[Callable[[Sketch], None], ...] = (
    cluster, cluster, cluster, lathe, lathe, stack, creature, creature, vessel, vessel, tube, furniture, vehicle, plant, sign,
)  # fmt: skip


def compose(seed: int) -> ProceduralObject:
    """The composition of a seed, turned about the vertical, its wider side to the camera and a little leaning."""
    rng = np.random.default_rng([seed, 77])
    if rng.random() < TOYS:
        sketch = Sketch(rng)
        toy = make_object(seed, CATEGORIES[seed % len(CATEGORIES)])
        sketch.parts = list(toy.parts)
        name = toy.category
    else:
        sketch = Sketch(rng)
        builder = BUILDERS[rng.integers(len(BUILDERS))]
        builder(sketch)
        name = builder.__name__
    yaw = rng.uniform(-180, 180) if rng.random() < 0.6 else rng.normal(0, 25)
    lean = rng.normal(0, 6, 2) if rng.random() < 0.3 else (0, 0)
    sketch.turn(rotation((lean[0], lean[1], yaw)))
    wide, deep, _ = sketch.extent()
    if deep > 1.05 * wide:
        sketch.turn(rotation((0, 0, 90)))
    return sketch.finish(seed, name, FRAME, FINE_HALF)
