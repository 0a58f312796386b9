"""Toys from outdoors. Each function draws one object, standing on z = 0 with its front towards -y."""

from __future__ import annotations

from .objects import BLACK, Look, Sketch


def _eyes(s: Sketch, y: float, z: float, apart: float, radius: float) -> None:
    for x in (-apart, apart):
        s.ball((x, y, z), radius, BLACK)


def snowman(s: Sketch) -> None:
    snow = s.look("white") if s.chance(0.65) else s.look("pastel", "paint")
    three = s.chance(0.6)
    r0 = s.u(0.34, 0.42)
    z = 0.85 * r0
    s.ball((0, 0, z), (r0, r0, 0.9 * r0), snow)
    r1 = r0 * s.u(0.7, 0.8)
    if three:
        z += r0 * 0.65 + r1 * 0.6
        s.ball((0, 0, z), r1, snow)
    belly, belly_r = z, r1 if three else r0
    r2 = r1 * s.u(0.72, 0.85) if three else r1
    z += belly_r * 0.62 + r2 * 0.68
    s.ball((0, 0, z), r2, snow if s.chance(0.8) else s.look("white", "pastel"))
    s.cone((0, -r2 - 0.1, z - 0.02), 0.07, 0.01, s.u(0.12, 0.17), s.hue(0.03, 0.09, (0.8, 1), (0.85, 1)), 0.01, (90, 0, 0))
    _eyes(s, -0.88 * r2, z + 0.3 * r2, 0.4 * r2, 0.045)
    for dz in (-0.3, 0.35) if s.chance(0.7) else ():
        s.ball((0, -belly_r * 0.93, belly + dz * belly_r), 0.048, BLACK if s.chance(0.6) else s.look("paint"))
    hat, band = s.look("dark", "dark", "paint"), s.look("paint")
    style = s.pick(["top", "top", "bobble", "bucket"])
    if style == "top":
        s.cone((0, 0, z + 0.75 * r2), 1.25 * r2, 1.25 * r2, 0.035, hat)
        s.cone((0, 0, z + 0.75 * r2 + 0.16), 0.75 * r2, 0.8 * r2, 0.17, hat)
        s.cone((0, 0, z + 0.75 * r2 + 0.07), 0.79 * r2, 0.8 * r2, 0.045, band)
    elif style == "bobble":
        s.dome((0, 0, z + 0.35 * r2), (1.0 * r2, 1.0 * r2, 0.85 * r2), hat)
        s.ring((0, 0, z + 0.4 * r2), 0.93 * r2, 0.06, band)
        s.ball((0, 0, z + 1.25 * r2), 0.09, band)
    else:
        s.cone((0, 0, z + 1.05 * r2), 0.9 * r2, 0.6 * r2, 0.4 * r2, hat)
    if s.chance(0.6):
        s.ring((0, 0, z - 0.72 * r2), 0.72 * r2, 0.075, s.look("paint"))
    if s.chance(0.45):
        stick = s.look("wood")
        for side in (-1, 1):
            s.cone((side * (belly_r + 0.14), 0, belly + 0.18), 0.04, 0.03, 0.22, stick, 0.005, (0, side * 55, 0))


def car(s: Sketch) -> None:
    w, length, h = s.u(0.3, 0.38), s.u(0.62, 0.8), s.u(0.12, 0.17)
    paint = s.look("paint", "paint", "paint", "pastel", "white", "metal", "dark")
    second = s.look() if s.chance(0.3) else paint
    glass, tyre = s.look("glass"), s.look("rubber")
    hub = s.look("metal", "metal", "white")
    wheel = s.u(0.14, 0.19)
    floor = 0.8 * wheel
    s.box((0, 0, floor + h), (w, length, h), paint, 0.09)
    deck = floor + 2 * h
    style = s.pick(["sedan", "sedan", "hatch", "van", "truck"])
    tall = s.u(0.14, 0.19)
    front, back = {"sedan": (-0.3, 0.7), "hatch": (-0.3, 0.96), "van": (-0.75, 0.97), "truck": (-0.6, 0.02)}[style]
    middle, reach = (front + back) / 2 * length, (back - front) / 2 * length
    if style == "van":
        tall *= 1.4
    s.taper((0, middle, deck + tall), (0.94 * w, reach), (0.74 * w, reach * (0.6 if style == "sedan" else 0.78)), tall, glass)
    s.box((0, middle, deck + 2 * tall), (0.78 * w, reach * (0.64 if style == "sedan" else 0.82), 0.045), second, 0.04)
    if style in ("van", "hatch"):
        s.box((0, middle + 0.45 * reach, deck + tall), (0.92 * w, 0.45 * reach, tall), second, 0.06)
    if style == "truck":
        s.box((0, 0.5 * length, deck + 0.14), (0.98 * w, 0.48 * length, 0.2), s.look(), 0.03)
    for x in (-w, w):
        for y in (-0.58 * length, 0.58 * length):
            s.cone((x, y, wheel), wheel, wheel, 0.075, tyre, 0.025, (0, 90, 0))
            s.cone((x, y, wheel), 0.55 * wheel, 0.55 * wheel, 0.09, hub, 0.01, (0, 90, 0))
        s.ball((0.62 * x, -length + 0.03, floor + 1.15 * h), (0.075, 0.06, 0.075), Look((1.0, 0.95, 0.75), 0.0, 0.2))
    s.box((0, -length, floor + 0.35 * h), (0.9 * w, 0.05, 0.045), hub, 0.03)
    if s.chance(0.2):
        s.box((0, middle, deck + 2 * tall + 0.07), (0.12, 0.07, 0.05), s.hue(0.1, 0.16), 0.02)


def house(s: Sketch) -> None:
    w, d, h = s.u(0.38, 0.55), s.u(0.32, 0.45), s.u(0.22, 0.42)
    wall = s.look("pastel", "white", "paint", "wood", "grey")
    roof = s.look("paint", "dark", "wood", "grey") if s.chance(0.9) else s.look("metal")
    trim, door = s.look("white", "paint", "wood"), s.look("paint", "wood", "dark")
    glass = Look(s.pick([(1.0, 0.85, 0.45), (0.35, 0.55, 0.75), (0.2, 0.28, 0.4)]), 0.0, 0.15)
    s.box((0, 0, h), (w, d, h), wall, 0.01)
    over, tall, style = s.u(0.05, 0.1), s.u(0.16, 0.3), s.pick(["front", "side", "side", "hip"])
    top = 2 * h
    if style == "front":  # the gable looks forward
        s.taper((0, 0, top + tall), (w + over, d + over), (0.0, d + over), tall, roof)
        s.taper((0, 0, top + 0.8 * tall - 0.03), (w - 0.02, d + over + 0.012), (0.0, d + over + 0.012), 0.8 * tall, wall)
    elif style == "side":
        s.taper((0, 0, top + tall), (w + over, d + over), (w + over, 0.0), tall, roof)
    else:
        s.taper((0, 0, top + tall), (w + over, d + over), (0.3 * w, 0.0), tall, roof)
    if s.chance(0.65):
        x = s.pick([-1, 1]) * 0.5 * w
        s.box((x, 0.35 * d, top + 1.2 * tall), (0.07, 0.07, 0.9 * tall), s.look("grey", "paint", "wood"), 0.01)
    spot = s.pick([-0.5, 0.0, 0.0, 0.5]) * w
    s.box((spot, -d, 0.17), (0.1, 0.035, 0.18), door, 0.01)
    s.ball((spot + 0.06, -d - 0.04, 0.16), 0.028, s.look("metal"))
    spots = [x for x in (-0.58 * w, 0.0, 0.58 * w) if abs(x - spot) > 0.2]
    for x in spots:
        z = max(0.26, 1.15 * h)
        s.box((x, -d, z), (0.105, 0.025, 0.105), trim, 0.01)
        s.box((x, -d - 0.012, z), (0.07, 0.028, 0.07), glass, 0.005)
    if h > 0.34 and len(spots) < 3:
        s.box((spot, -d, 1.6 * h), (0.085, 0.03, 0.085), glass, 0.005)
    if s.chance(0.3):
        s.box((spot, -d - 0.1, 0.03), (0.16, 0.12, 0.035), s.look("grey", "wood"), 0.01)


def tree(s: Sketch) -> None:
    if s.chance(0.65):
        leaf = s.hue(0.2, 0.42, (0.5, 0.9), (0.35, 0.8), (0.6, 0.95))
    else:
        leaf = s.look("paint", "pastel", "metal") if s.chance(0.6) else s.hue(-0.04, 0.14, (0.7, 0.95), (0.7, 0.95))
    bark = s.look("wood", "wood", "wood", "wood", "paint", "dark")
    trunk, thick = s.u(0.22, 0.45), s.u(0.055, 0.1)
    ground = 0.0
    if s.chance(0.2):
        s.cone((0, 0, 0.11), 0.15, 0.21, 0.11, s.look(), 0.01)
        ground = 0.15
    s.cone((0, 0, ground + trunk / 2), 1.2 * thick, 0.9 * thick, trunk / 2 + 0.05, bark)
    style, z = s.pick(["fir", "fir", "ball", "cloud", "poplar"]), ground + trunk
    crown: list[tuple[float, float, float]] = []
    if style == "fir":
        tiers, r, tall = s.pick([1, 2, 3, 3]), s.u(0.32, 0.44), s.u(0.18, 0.24)
        shade = s.hue(0.25, 0.42, (0.5, 0.9), (0.35, 0.7)) if s.chance(0.25) else leaf
        tall = tall * 1.8 if tiers == 1 else tall
        for i in range(tiers):
            s.cone((0, 0, z + tall), r, 0.3 * r if i < tiers - 1 else 0.015, tall, shade if i % 2 else leaf, 0.015)
            z, r = z + 1.15 * tall, 0.78 * r
        if s.chance(0.4):
            s.ball((0, 0, z + 0.9 * tall), 0.065, s.look("metal"))
    elif style == "cloud":
        r = s.u(0.2, 0.28)
        shade = leaf if s.chance(0.6) else s.hue(0.2, 0.42, (0.5, 0.9), (0.4, 0.8))
        for i, (x, y, dz, k) in enumerate(
            ((-0.9, -0.1, 0.3, 1), (0.9, 0.1, 0.35, 1), (0, 0, 1.1, 1.15), (0.1, -0.7, 0.4, 0.9))
        ):
            s.ball((x * r, y * r, z + dz * r), k * r * s.u(0.9, 1.15), shade if i % 2 else leaf)
        crown = [(-0.9 * r, -1.05 * r, z + 0.5 * r), (0.8 * r, -0.95 * r, z + 0.2 * r), (0, -1.0 * r, z + 1.4 * r)]
    else:
        r, tall = (s.u(0.3, 0.4), s.u(0.26, 0.38)) if style == "ball" else (s.u(0.19, 0.25), s.u(0.4, 0.55))
        s.ball((0, 0, z + 0.85 * tall), (r, r, tall), leaf)
        crown = [
            (-0.45 * r, -0.87 * r, z + 0.8 * tall),
            (0.5 * r, -0.76 * r, z + 1.1 * tall),
            (0.05 * r, -0.83 * r, z + 0.4 * tall),
        ]
    if crown and s.chance(0.4):
        fruit = s.look("paint")
        for at in crown:
            s.ball(at, 0.06, fruit)


def _fungus(s: Sketch, x: float, y: float, k: float, cap: Look, stem: Look, gills: Look, dots: Look | None) -> None:
    r, tall, h = k * s.u(0.36, 0.5), k * s.u(0.24, 0.42), k * s.u(0.28, 0.5)
    thick = k * s.u(0.1, 0.17)
    s.cone((x, y, h / 2), 1.2 * thick, 0.85 * thick, h / 2 + 0.03, stem, 0.03)
    lean = (0, 0, 0) if dots else (s.u(-8, 8), s.u(-8, 8), 0)
    if dots or s.chance(0.7):
        s.dome((x, y, h), (r, r, tall), cap, lean)
        s.cone((x, y, h - 0.02), 0.7 * r, 0.93 * r, 0.04, gills, 0.005, lean)
    else:
        s.ball((x, y, h + 0.45 * tall), (r, r, 0.7 * tall), cap, lean)
    if dots:
        for dx, dy, dz in (
            (-0.5, -0.55, 0.66),
            (0.15, -0.78, 0.6),
            (0.6, -0.25, 0.75),
            (0, -0.1, 0.98),
            (-0.7, 0.25, 0.66),
            (0.3, 0.7, 0.62),
        ):
            size = s.u(0.12, 0.18) * r + 0.01
            s.ball((x + dx * r, y + dy * r, h + dz * tall * 0.98), (size, size, 0.75 * size), dots)


def mushroom(s: Sketch) -> None:
    cap = s.hue(-0.04, 0.09, (0.65, 0.95), (0.5, 0.95)) if s.chance(0.5) else s.look()
    stem = s.look("white", "white", "pastel", "wood", "paint")
    gills = s.look("pastel", "wood", "white") if s.chance(0.6) else stem
    dots = (s.look("white") if s.chance(0.7) else s.look("paint", "pastel")) if s.chance(0.55) else None
    _fungus(s, 0, 0, 1.0, cap, stem, gills, dots)
    if s.chance(0.3):
        _fungus(s, s.pick([-1, 1]) * s.u(0.4, 0.5), s.u(-0.25, 0.05), s.u(0.4, 0.55), cap, stem, gills, None)
    elif s.chance(0.35):
        s.ring((0, 0, s.u(0.12, 0.2)), 0.16, 0.05, gills)


def duck(s: Sketch) -> None:
    body = s.hue(0.12, 0.16, (0.7, 0.95), (0.9, 1.0), (0.25, 0.6)) if s.chance(0.4) else s.look()
    head = s.look() if s.chance(0.35) else body
    beak = s.hue(0.02, 0.1, (0.8, 1), (0.85, 1.0))
    w, length, h = s.u(0.27, 0.34), s.u(0.36, 0.48), s.u(0.22, 0.29)
    s.ball((0, 0.05, h), (w, length, h), body)
    r = s.u(0.2, 0.26)
    y, z = -0.55 * length, 1.75 * h + 0.75 * r
    s.ball((0, y, z), r, head)
    if s.chance(0.25):
        s.cone((0, 0.8 * (y + 0.02), z - 0.95 * r), 0.7 * r, 0.6 * r, 0.12, head)
    if s.chance(0.7):
        s.ball((0, y - r - 0.02, z - 0.12 * r), (0.115, 0.14, 0.055), beak, (s.u(-4, 10), 0, 0))
    else:
        s.cone((0, y - r - 0.06, z - 0.08 * r), 0.1, 0.03, 0.12, beak, 0.02, (90, 0, 0))
    _eyes(s, y - 0.78 * r, z + 0.3 * r, 0.5 * r, 0.045)
    s.cone((0, 0.02 + length, 1.35 * h), 0.13, 0.02, 0.17, body, 0.02, (-50, 0, 0))
    wing = s.look() if s.chance(0.4) else body
    for side in (-1, 1):
        s.ball((side * 0.92 * w, 0.1, 1.15 * h), (0.07, 0.58 * length, 0.55 * h), wing, (12, 0, side * 6))
    extra = s.pick(["none", "none", "hat", "scarf", "feet"])
    if extra == "hat":
        hat = s.look("paint", "dark")
        s.cone((0, y, z + 0.85 * r), 0.95 * r, 0.95 * r, 0.035, hat)
        s.cone((0, y, z + 0.85 * r + 0.12), 0.6 * r, 0.55 * r, 0.12, hat)
    elif extra == "scarf":
        s.ring((0, 0.9 * y, z - 0.85 * r), 0.62 * r, 0.075, s.look("paint"))
    elif extra == "feet":
        for side in (-1, 1):
            s.ball((side * 0.13, -0.24, -0.02), (0.1, 0.17, 0.05), beak)


def rocket(s: Sketch) -> None:
    body, accent, nose = s.look("white", "metal", "paint", "pastel"), s.look("paint"), s.look("paint", "metal")
    r, h = s.u(0.16, 0.23), s.u(0.28, 0.42)
    s.cone((0, 0, 0.2 + h), r, 0.92 * r, h, body, 0.01)
    top, tall = 0.2 + 2 * h, s.u(0.14, 0.24)
    if s.chance(0.5):
        s.cone((0, 0, top + tall), 0.92 * r, 0.01, tall, nose, 0.01)
    else:
        s.dome((0, 0, top - 0.01), (0.92 * r, 0.92 * r, 1.7 * tall), nose)
    s.cone((0, 0, 0.12), 0.8 * r, 0.5 * r, 0.11, s.look("dark", "metal"))
    fins = s.pick([3, 4])
    for i in range(fins):
        s.taper((0, 0, 0.24), (2.2 * r, 0.04), (0.9 * r, 0.04), 0.2, accent, (0, 0, 180 * i / fins + 45 * (fins == 4)))
    s.cone((0, -0.93 * r, top - 0.2), 0.095, 0.095, 0.05, accent, 0.01, (90, 0, 0))
    s.ball((0, -0.95 * r - 0.03, top - 0.2), (0.07, 0.04, 0.07), Look((0.4, 0.7, 0.9), 0.0, 0.1))
    if s.chance(0.6):
        s.cone((0, 0, 0.2 + s.u(0.5, 0.9) * h), r + 0.01, r + 0.01, 0.05, accent)
