"""Toys from indoors. Each function draws one object, standing on z = 0 with its front towards -y."""

from __future__ import annotations

from .objects import Look, Sketch


def blocks(s: Sketch) -> None:
    columns = s.pick([2, 2, 3, 3, 3])
    half = 0.25
    single = s.look() if s.chance(0.15) else None
    heights = [s.pick([1, 1, 2, 2, 3]) for _ in range(columns)]
    for i, height in enumerate(heights):
        x = (i - (columns - 1) / 2) * 2.02 * half
        for level in range(height):
            at, shape = (x, 0, (2 * level + 1) * half), s.pick(["cube", "cube", "cube", "can"])
            if shape == "cube":
                s.box(at, (half, half, half), single or s.look(), 0.03)
            else:
                s.cone(at, 0.95 * half, 0.95 * half, half, single or s.look(), 0.02)
        top, cap = 2 * height * half, s.pick(["none", "gable", "cone", "ball", "dome", "pyramid"])
        if cap == "gable":
            s.taper((x, 0, top + 0.2), (half, half), (0.0, half), 0.2, s.look())
        elif cap == "pyramid":
            s.taper((x, 0, top + 0.22), (half, half), (0.0, 0.0), 0.22, s.look())
        elif cap == "cone":
            s.cone((x, 0, top + 0.28), 0.95 * half, 0.02, 0.28, s.look(), 0.01)
        elif cap == "ball":
            s.ball((x, 0, top + 0.85 * half), 0.88 * half, s.look())
        elif cap == "dome":
            s.dome((x, 0, top), (half, half, 0.9 * half), s.look())


def _legs(s: Sketch, x: float, y: float, top: float, thick: float, look: Look) -> None:
    style = s.pick(["square", "round", "peg"])
    splay = s.u(0, 7) if style != "square" else 0.0
    for sx in (-1, 1):
        for sy in (-1, 1):
            at, turn = (sx * x, sy * y, top / 2), (sy * splay, -sx * splay, 0)
            if style == "square":
                s.box(at, (thick, thick, top / 2), look, 0.01)
            elif style == "round":
                s.cone(at, thick, thick, top / 2, look, 0.01, turn)
            else:
                s.cone(at, 0.7 * thick, 1.25 * thick, top / 2, look, 0.01, turn)


def chair(s: Sketch) -> None:
    w, d, seat, thick = s.u(0.3, 0.42), s.u(0.28, 0.38), s.u(0.36, 0.55), s.u(0.035, 0.06)
    frame = s.look("wood", "wood", "metal", "paint", "white", "dark")
    body = s.look() if s.chance(0.75) else frame
    _legs(s, w - thick - 0.02, d - thick - 0.02, seat, s.u(0.035, 0.05), frame)
    s.box((0, 0, seat), (w, d, thick), body, 0.03)
    top = seat + s.u(0.45, 0.8)
    style, lean = s.pick(["panel", "panel", "slats", "rungs", "round"]), s.u(-8, 0)
    y = d - thick
    if style == "panel":
        s.box(
            (0, y, (seat + top) / 2),
            (w, thick * 0.9, (top - seat) / 2),
            s.look() if s.chance(0.3) else body,
            0.04,
            (lean, 0, 0),
        )
    elif style == "round":
        s.ball((0, y, (seat + top) / 2 + 0.03), (w, 0.06, (top - seat) / 2), body, (lean, 0, 0))
    else:
        for x in (-w + thick, w - thick):
            s.box((x, y, (seat + top) / 2), (0.04, 0.04, (top - seat) / 2), frame, 0.015)
        rails = s.pick([2, 3]) if style == "rungs" else 1
        for i in range(rails):
            s.box((0, y, top - 0.06 - i * (top - seat - 0.1) / max(rails, 2)), (w, 0.035, 0.055), body, 0.02)
        if style == "slats":
            for x in (-w / 3, w / 3):
                s.box((x, y, (seat + top) / 2), (0.045, 0.03, (top - seat) / 2), body, 0.01)
    if s.chance(0.4):
        s.box((0, -0.02, seat + thick + 0.02), (0.86 * w, 0.86 * d, 0.05), s.look("paint", "pastel", "white"), 0.05)
    if s.chance(0.3):
        for x in (-w, w):
            s.box((x, 0.02, seat + 0.26), (0.04, d, 0.035), frame, 0.02)
            s.box((x, -d + 0.07, seat + 0.13), (0.035, 0.035, 0.13), frame, 0.01)


def table(s: Sketch) -> None:
    height, thick, radius = s.u(0.42, 0.7), s.u(0.035, 0.06), s.u(0.42, 0.6)
    frame = s.look("wood", "wood", "metal", "paint", "dark", "white")
    board = s.look() if s.chance(0.7) else frame
    if s.chance(0.45):
        s.cone((0, 0, height), radius, radius, thick, board, 0.02)
        reach = (0.62 * radius, 0.62 * radius)
    else:
        w, d = radius * s.u(1.0, 1.25), radius * s.u(0.55, 0.85)
        s.box((0, 0, height), (w, d, thick), board, 0.02)
        reach = (w - 0.08, d - 0.08)
    if s.chance(0.4):
        s.cone((0, 0, height / 2), s.u(0.06, 0.1), s.u(0.05, 0.08), height / 2, frame)
        s.cone((0, 0, 0.04), radius * s.u(0.5, 0.65), radius * s.u(0.2, 0.5), 0.045, frame, 0.01)
    else:
        _legs(s, *reach, height, s.u(0.04, 0.06), frame)
        if s.chance(0.25):
            s.box((0, 0, 0.35 * height), (reach[0], reach[1], 0.03), s.look(), 0.01)
    top, style = height + thick, s.pick(["bare", "vase", "bowl", "cup", "cloth", "books"])
    if style == "vase":
        s.cone((0, 0, top + 0.1), 0.07, 0.11, 0.1, s.look("paint", "white", "metal"), 0.04)
        s.ball((0, 0, top + 0.28), s.u(0.1, 0.15), s.hue(-0.1, 0.4))
    elif style == "bowl":
        s.cup((0, 0, top + 0.07), 0.09, 0.19, 0.07, 0.03, s.look())
        for x, y in ((-0.07, 0), (0.06, -0.05), (0.03, 0.07)):
            s.ball((x, y, top + 0.13), 0.07, s.hue(-0.02, 0.3))
    elif style == "cup":
        x, y = s.u(-0.2, 0.2), s.u(-0.12, 0.05)
        s.cup((x, y, top + 0.09), 0.08, 0.1, 0.09, 0.03, s.look())
    elif style == "cloth":
        s.box(
            (0, 0, height),
            (0.42 * reach[0] + 0.05, 0.9 * reach[1] + 0.1, thick + 0.025),
            s.look("paint", "pastel", "white"),
            0.02,
        )
    elif style == "books":
        for i in range(s.pick([2, 3])):
            s.box((0.1, 0, top + 0.045 + 0.09 * i), (0.17, 0.13, 0.045), s.look("paint", "dark"), 0.01, (0, 0, s.u(-20, 20)))


def mug(s: Sketch) -> None:
    h, r = s.u(0.38, 0.6), s.u(0.3, 0.4)
    low, wall = r * s.u(0.75, 1.05), 0.05
    body = s.look("paint", "paint", "pastel", "white", "metal", "dark")
    floor = 0.0
    if s.chance(0.3):
        s.cone((0, 0, 0.04), 0.6 * r, 1.55 * r, 0.045, s.look() if s.chance(0.5) else body, 0.01)
        floor = 0.05
    s.cup((0, 0, floor + h / 2), low, r, h / 2, wall, body)
    if s.chance(0.75):
        drink = s.pick([(0.05, 0.08, 0.75, 0.3), (0.08, 0.11, 0.75, 0.55), (0.02, 0.04, 0.85, 0.6), (0.25, 0.32, 0.6, 0.6)])
        fill = s.hue(drink[0], drink[1], (drink[2] - 0.1, drink[2] + 0.1), (drink[3] - 0.1, drink[3] + 0.1), (0.1, 0.3))
        s.cone((0, 0, floor + 0.78 * h), 0.93 * r, 0.93 * r, 0.04, fill, 0.005)
    handle = s.look() if s.chance(0.3) else body
    if s.chance(0.7):
        size = h * s.u(0.28, 0.36)
        s.ring(((low + r) / 2 + 0.45 * size, 0, floor + h / 2), size, s.u(0.04, 0.055), handle, (90, 0, 0))
    else:
        x = (low + r) / 2
        for z in (0.28, 0.74):
            s.box((x + 0.1, 0, floor + z * h), (0.13, 0.045, 0.04), handle, 0.02)
        s.box((x + 0.2, 0, floor + 0.51 * h), (0.04, 0.045, 0.23 * h + 0.04), handle, 0.02)
    if s.chance(0.4):
        z, band = s.u(0.25, 0.7), s.u(0.06, 0.2)
        at = low + (r - low) * z + 0.012
        s.cup((0, 0, floor + z * h), at, at + (r - low) * band, band * h / 2 + 0.02, wall, s.look())


def lamp(s: Sketch) -> None:
    base, stem = s.look(), s.look("metal", "metal", "wood", "paint", "dark")
    shade = s.look("paint", "pastel", "pastel", "white", "metal")
    radius, height = s.u(0.22, 0.34), s.u(0.35, 0.75)
    style = s.pick(["disc", "dome", "pot", "box"])
    if style == "disc":
        s.cone((0, 0, 0.045), radius, 0.85 * radius, 0.05, base, 0.02)
    elif style == "dome":
        s.dome((0, 0, 0), (radius, radius, s.u(0.1, 0.18)), base)
    elif style == "pot":
        s.ball((0, 0, 0.2), (0.8 * radius, 0.8 * radius, 0.21), base)
    else:
        s.box((0, 0, 0.06), (0.8 * radius, 0.8 * radius, 0.06), base, 0.02)
    s.cone((0, 0, height / 2), s.u(0.035, 0.06), s.u(0.035, 0.05), height / 2 + 0.03, stem)
    if s.chance(0.35):
        for i in range(s.pick([1, 2, 3])):
            s.ball((0, 0, 0.22 + 0.15 * i), s.u(0.075, 0.1), stem if s.chance(0.5) else base)
    low, tall = s.u(0.3, 0.46), s.u(0.14, 0.26)
    form = s.pick(["cone", "cone", "drum", "bell", "globe"])
    top = height + 2 * tall
    if form == "cone":
        s.cone((0, 0, height + tall), low, low * s.u(0.4, 0.7), tall, shade, 0.015)
    elif form == "drum":
        s.cone((0, 0, height + tall), 0.9 * low, 0.9 * low, tall, shade, 0.015)
        if s.chance(0.6):
            for z in (0.05, 2 * tall - 0.05):
                s.cone((0, 0, height + z), 0.9 * low + 0.012, 0.9 * low + 0.012, 0.035, stem)
    elif form == "bell":
        s.dome((0, 0, height), (low, low, 1.6 * tall), shade)
        top = height + 1.6 * tall
    else:
        s.ball((0, 0, height + 0.75 * low), 0.8 * low, shade)
        top = height + 1.55 * low
    if s.chance(0.6):
        s.ball((0, 0, top + 0.03), s.u(0.04, 0.06), stem)


def bottle(s: Sketch) -> None:
    body, cap = s.look("paint", "paint", "glass", "pastel", "metal", "dark"), s.look("metal", "wood", "paint", "white")
    r, h = s.u(0.18, 0.27), s.u(0.38, 0.62)
    neck, tall = s.u(0.07, 0.11), s.u(0.1, 0.22)
    form = s.pick(["round", "round", "flask", "square", "jug"])
    if form == "square":
        s.box((0, 0, h / 2), (r, r * s.u(0.7, 1), h / 2), body, 0.06)
        s.dome((0, 0, h - 0.03), (0.85 * r, 0.8 * r * 0.85, 0.1), body)
        shoulder = h + 0.05
    elif form == "flask":
        wide = s.u(0.28, 0.38)
        s.ball((0, 0, 0.9 * wide), (wide, wide, 0.95 * wide), body)
        s.cone((0, 0, 0.04), 0.75 * wide, 0.7 * wide, 0.05, body if s.chance(0.6) else cap)
        shoulder = 1.78 * wide
    else:
        s.cone((0, 0, h / 2), r, r, h / 2, body, 0.04)
        s.cone((0, 0, h + 0.08), r - 0.005, neck, 0.1, body)
        shoulder = h + 0.16
        if form == "jug":
            s.ring((0.9 * r, 0, h + 0.05), 0.15, 0.045, body, (90, 0, 0))
        if s.chance(0.75):
            label, width = s.look("white", "pastel", "paint"), s.u(0.18, 0.3) * h
            z = s.u(0.4, 0.55) * h
            s.cone((0, 0, z), r + 0.012, r + 0.012, width, label)
            if s.chance(0.4):
                s.cone((0, 0, z), r + 0.022, r + 0.022, 0.35 * width, s.look("paint"))
    s.cone((0, 0, shoulder + tall / 2), neck, neck, tall / 2 + 0.04, body if s.chance(0.7) else cap)
    end = shoulder + tall
    if s.chance(0.75):
        s.cone((0, 0, end + 0.05), neck + 0.03, neck + 0.025, 0.07, cap)
    else:
        s.ball((0, 0, end + 0.08), neck + 0.04, cap)
