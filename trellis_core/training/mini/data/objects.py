"""Procedural objects: toys of a few coloured signed-distance primitives, the whole world of the mini family.

Canonical pose: z up, standing, front towards -y (the glTF front after the y-up export). The longest side of the bounding box
is `EXTENT` and its centre the origin. A seed names an object for ever; seeds from `HELD_OUT_SEED` on are never trained on.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

Vector = Sequence[float]
T = TypeVar("T")

EXTENT = 0.9
FRAME = 0.96
"""Side of the picture's square in the frame of training, where the camera is in front of the object."""
FINE_HALF = 0.014  # half of the thinnest part there: 1.8 voxels across at 64^3
MIN_HALF = 0.025  # half of the thinnest part: 1.6 voxels across at 32^3
HELD_OUT_SEED = 1_000_000
BOX, BALL, CONE, RING, CUP, TAPER, DOME = range(7)  # the kinds of `kernels.part_distance`
# Which of the five sizes of each kind are thicknesses, kept above MIN_HALF.
_THICK = {BOX: (0, 1, 2), BALL: (0, 1, 2), CONE: (2,), RING: (1,), CUP: (0, 1, 2), TAPER: (4,), DOME: (0, 1)}


@dataclass(frozen=True)
class Look:
    """A material: sRGB-encoded base colour, metallic and roughness, each in 0..1."""

    rgb: tuple[float, float, float]
    metallic: float = 0.0
    roughness: float = 0.6


@dataclass
class Part:
    """One primitive; sizes by kind are those of `kernels.part_distance`, `rotation` [3, 3] is local -> object."""

    kind: int
    centre: np.ndarray
    size: np.ndarray
    look: Look
    round: float = 0.0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner float64 [3] of the part's bounding box."""
        a, b, c, d, e = self.size
        if self.kind == BALL:
            reach = np.linalg.norm(self.rotation * self.size[:3], axis=1)
            return self.centre - reach, self.centre + reach
        hull = {
            BOX: lambda: _CORNERS * (a, b, c),
            CONE: lambda: np.concatenate([_CIRCLE * (a, a, 0) - (0, 0, c), _CIRCLE * (b, b, 0) + (0, 0, c)]),
            CUP: lambda: np.concatenate([_CIRCLE * (a, a, 0) - (0, 0, c), _CIRCLE * (b, b, 0) + (0, 0, c)]),
            RING: lambda: _CIRCLE * a,
            TAPER: lambda: _CORNERS * np.where(_CORNERS[:, 2:] < 0, (a, b, e), (c, d, e)),
            DOME: lambda: np.concatenate([_CIRCLE * (a, b, 0), _CIRCLE * (0.7 * a, 0.7 * b, 0) + (0, 0, 0.7 * c), [(0, 0, c)]]),
        }[self.kind]()
        placed = hull @ self.rotation.T + self.centre
        pad = b if self.kind == RING else 0.0
        return placed.min(0) - pad, placed.max(0) + pad


_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_TURN = np.arange(24) * (np.pi / 12)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN), 0 * _TURN], 1)


@dataclass(frozen=True)
class ProceduralObject:
    """A finished object: `category` and its parts, normalised. Alpha is 1 everywhere."""

    seed: int
    category: str
    parts: tuple[Part, ...]

    @cached_property
    def table(self) -> np.ndarray:
        """float64 [P, 25] for the kernels: kind, object -> local rotation (9), centre (3), sizes (5), rounding,
        bounding radius, base colour (3), metallic, roughness."""
        rows = []
        for part in self.parts:
            low, high = part.bounds()
            bound = np.linalg.norm(np.maximum(high - part.centre, part.centre - low)) + 1e-4
            look = (*part.look.rgb, part.look.metallic, part.look.roughness)
            rows.append([part.kind, *part.rotation.T.ravel(), *part.centre, *part.size, part.round, bound, *look])
        return np.array(rows)


class Sketch:
    """Collects parts in free units; `finish` scales and centres them. Angles are degrees (x, then y, then z)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.parts: list[Part] = []
        self.taken: list[tuple[float, float, float]] = []

    def add(self, kind: int, at: Vector, size: Vector, look: Look, round: float = 0.0, turn: Vector = (0, 0, 0)) -> None:
        sizes = np.zeros(5)
        sizes[: len(size)] = size
        self.parts.append(Part(kind, np.asarray(at, float), sizes, look, round, rotation(turn)))

    def box(self, at: Vector, half: Vector, look: Look, round: float = 0.02, turn: Vector = (0, 0, 0)) -> None:
        self.add(BOX, at, half, look, min(round, 0.95 * min(half)), turn)

    def ball(self, at: Vector, radii: Vector | float, look: Look, turn: Vector = (0, 0, 0)) -> None:
        self.add(BALL, at, (radii,) * 3 if np.isscalar(radii) else radii, look, 0.0, turn)

    def dome(self, at: Vector, radii: Vector, look: Look, turn: Vector = (0, 0, 0)) -> None:
        """Upper half of an ellipsoid, its flat side at `at`."""
        self.add(DOME, at, radii, look, 0.0, turn)

    def cone(
        self, at: Vector, low: float, high: float, half: float, look: Look, round: float = 0.01, turn: Vector = (0, 0, 0)
    ) -> None:
        """Frustum around z: radius `low` at the bottom, `high` at the top."""
        self.add(CONE, at, (low, high, half), look, min(round, 0.9 * half, 0.9 * max(low, high)), turn)

    def ring(self, at: Vector, radius: float, thick: float, look: Look, turn: Vector = (0, 0, 0)) -> None:
        """Torus around z."""
        self.add(RING, at, (radius, thick), look, 0.0, turn)

    def cup(self, at: Vector, low: float, high: float, half: float, wall: float, look: Look, turn: Vector = (0, 0, 0)) -> None:
        """Frustum open at the top, wall and floor `wall` thick."""
        self.add(CUP, at, (low, high, half, wall), look, 0.0, turn)

    def taper(self, at: Vector, bottom: Vector, top: Vector, half: float, look: Look, turn: Vector = (0, 0, 0)) -> None:
        """Block whose half sizes go from `bottom` (x, y) to `top` (x, y): gable, pyramid, car cabin."""
        self.add(TAPER, at, (*bottom, *top, half), look, 0.0, turn)

    # Random choices
    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def look(self, *kinds: str) -> Look:
        """A material of one of the named kinds (default: any), its colour distinct from the object's earlier ones."""
        for _ in range(6):
            kind = self.pick(kinds or ("paint", "paint", "paint", "paint", "pastel", "wood", "grey", "metal"))
            look = _MATERIALS[kind](self)
            if all(sum(abs(a - b) for a, b in zip(look.rgb, other, strict=True)) > 0.45 for other in self.taken):
                break
        self.taken.append(look.rgb)
        return look

    def hue(
        self,
        low: float,
        high: float,
        saturation: Vector = (0.55, 0.9),
        value: Vector = (0.5, 0.95),
        roughness: Vector = (0.35, 0.85),
    ) -> Look:
        """A plain coloured material with hue in [low, high] (turns)."""
        rgb = colorsys.hsv_to_rgb(self.u(low, high) % 1, self.u(*saturation), self.u(*value))
        self.taken.append(rgb)
        return Look(rgb, 0.0, self.u(*roughness))

    def turn(self, by: np.ndarray) -> None:
        """Rotate everything drawn so far by the rotation `by` [3, 3] about the origin."""
        self.parts = [Part(p.kind, by @ p.centre, p.size.copy(), p.look, p.round, by @ p.rotation) for p in self.parts]

    def extent(self) -> np.ndarray:
        """Lengths float64 [3] of the bounding box of everything drawn so far."""
        bounds = np.array([part.bounds() for part in self.parts])
        return bounds[:, 1].max(0) - bounds[:, 0].min(0)

    def finish(self, seed: int, category: str, extent: float = EXTENT, least: float = MIN_HALF) -> ProceduralObject:
        """Scale and centre to `extent`, thicken what is thinner than twice `least`, and settle the extent again."""
        for _ in range(2):
            bounds = np.array([part.bounds() for part in self.parts])
            low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
            scale, middle = extent / (high - low).max(), (low + high) / 2
            for part in self.parts:
                part.centre, part.size, part.round = (part.centre - middle) * scale, part.size * scale, part.round * scale
                thick = list(_THICK[part.kind])
                part.size[thick] = np.maximum(part.size[thick], least)
                if part.kind == CONE and part.size[:2].max() < least:
                    part.size[:2] *= least / part.size[:2].max()
                if part.kind == CUP:
                    part.size[3] = max(part.size[3], 2 * least)
        return ProceduralObject(seed, category, tuple(self.parts))


def rotation(turn: Vector) -> np.ndarray:
    """Rotation [3, 3] by degrees about x, then y, then z."""
    x, y, z = np.deg2rad(turn)
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _hsv(h: float, s: float, v: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(h % 1, s, v)


_METALS = (
    (1.0, 0.80, 0.36),
    (0.95, 0.95, 0.97),
    (0.97, 0.70, 0.55),
    (0.70, 0.72, 0.76),
    (0.85, 0.66, 0.38),
    (0.45, 0.47, 0.52),
)


def _paint_hue(s: Sketch) -> float:
    """Any hue, but half of the time near one of the colours that toys are painted in (uniform hue is mostly neon green)."""
    return s.u(0, 1) if s.chance(0.5) else s.pick((0.0, 0.04, 0.08, 0.13, 0.48, 0.55, 0.6, 0.66, 0.78, 0.92)) + s.u(-0.02, 0.02)


def _metal(s: Sketch) -> Look:
    if s.chance(0.25):  # anodised
        return Look(_hsv(s.u(0, 1), s.u(0.5, 0.8), s.u(0.7, 0.95)), 1.0, s.u(0.2, 0.45))
    tint = s.u(0.92, 1.0)
    return Look(tuple(min(1.0, c * tint) for c in s.pick(_METALS)), 1.0, s.u(0.15, 0.45))


_MATERIALS: dict[str, Callable[[Sketch], Look]] = {
    "paint": lambda s: Look(_hsv(_paint_hue(s), s.u(0.6, 0.95), s.u(0.55, 1.0)), 0.0, s.u(0.25, 0.7)),
    "pastel": lambda s: Look(_hsv(_paint_hue(s), s.u(0.2, 0.45), s.u(0.85, 1.0)), 0.0, s.u(0.4, 0.9)),
    "dark": lambda s: Look(_hsv(s.u(0, 1), s.u(0.2, 0.7), s.u(0.15, 0.35)), 0.0, s.u(0.4, 0.8)),
    "grey": lambda s: Look(_hsv(0.6, s.u(0.0, 0.1), s.u(0.25, 0.8)), 0.0, s.u(0.5, 0.95)),
    "white": lambda s: Look(_hsv(s.u(0, 1), s.u(0.0, 0.06), s.u(0.88, 0.98)), 0.0, s.u(0.4, 0.95)),
    "wood": lambda s: Look(_hsv(s.u(0.055, 0.1), s.u(0.45, 0.75), s.u(0.35, 0.8)), 0.0, s.u(0.55, 0.9)),
    "glass": lambda s: Look(_hsv(s.u(0.5, 0.6), s.u(0.3, 0.6), s.u(0.25, 0.55)), 0.0, s.u(0.1, 0.25)),
    "rubber": lambda s: Look(_hsv(0.6, s.u(0, 0.15), s.u(0.1, 0.2)), 0.0, s.u(0.7, 0.95)),
    "metal": _metal,
}
BLACK = Look((0.06, 0.06, 0.07), 0.0, 0.3)
