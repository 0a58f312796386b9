"""Finding the camera of a picture: a coarse search over directions by outline and colour, then Gauss-Newton steps.

The coarse search lays points of the surface onto a small image, its bounding box onto that of the picture's subject. The steps
pull the outline of the model onto that of the picture along the picture's distance field, and colours onto colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from ..context import QUIET, RunContext
from .camera import PictureCamera, Seen, look
from .images import blur, resized, sample, signed_distance

Array = np.ndarray
_SIDE = 48
_MIDDLE, _FINE = 128, 256
_POINTS = 12_000
_CELLS = 72
_PERSPECTIVES = (0.15, 0.45)
_ELEVATIONS = (-15.0, 5.0, 22.0, 40.0, 60.0)
_AZIMUTHS = 24
_KEPT = 4
_ROUNDS, _LAST_ROUNDS = 9, 6
_STEPS = np.array([0.5, 0.5, 0.5, 0.02, 0.005, 0.003, 0.003])  # to differentiate by, as the camera's fields
_TRUST = np.array([8.0, 8.0, 5.0, 0.1, 0.05, 0.03, 0.03])  # furthest step of a round
_SOFT = 0.012  # sides of the picture: details finer than this do not count
_COLOUR = 12.0  # pixels of outline error that a colour error of 1 counts as
_LEAST_OUTLINE, _LEAST_COLOUR = 0.80, 0.20


@dataclass(frozen=True)
class Match:
    """A camera, and how well model and picture agree through it.

    Attributes:
        outline: intersection over union of both outlines, 0..1.
        colour: mean difference of colours where both are, 0..1, after a common gain.
    """

    camera: PictureCamera
    outline: float
    colour: float

    @property
    def confidence(self) -> float:
        """0..1; below 0.5 the picture is better not projected."""
        fit = (self.outline - _LEAST_OUTLINE) / (1 - _LEAST_OUTLINE)
        return float(np.clip(0.5 + fit / 2 - max(self.colour - _LEAST_COLOUR, 0.0) * 2, 0, 1))


@dataclass(frozen=True)
class Model:
    """What is looked for: vertices float64 [V, 3], faces int [F, 3] and colours float64 [V, 3] in 0..1."""

    vertices: Array
    faces: Array
    colors: Array


def coarser(model: Model, most: int = 20_000) -> Model:
    """The same with vertices merged cell by cell, where it has more than `most` faces: fast to look at again and again."""
    if len(model.faces) <= most:
        return model
    low = model.vertices.min(axis=0)
    cell = np.floor((model.vertices - low) / ((model.vertices.max(axis=0) - low).max() / _CELLS)).astype(np.int64)
    _, row = np.unique(cell @ np.array([_CELLS * _CELLS * 4, _CELLS * 2, 1]), return_inverse=True)
    amount = np.bincount(row)[:, None]
    vertices, colors = (
        np.stack([np.bincount(row, values[:, k]) for k in range(3)], axis=1) / amount
        for values in (model.vertices, model.colors)
    )
    faces = row[model.faces]
    a, b, c = faces.T
    return Model(vertices, faces[(a != b) & (b != c) & (c != a)], colors)


def find_camera(
    model: Model, picture: Array, azimuth: float | None = None, elevation: float | None = None, ctx: RunContext = QUIET
) -> Match:
    """The camera through which a model looks like a picture.

    Args:
        picture: float [S, S, 4] in 0..1, straight alpha, the subject alone.
        azimuth, elevation: degrees, where they are known; the search then stays within 25 degrees.
    """
    model = coarser(model)
    small, middle = resized(picture, _SIDE), resized(picture, _MIDDLE)
    rng = np.random.default_rng(0)
    points, colors = _surface_points(model, rng)
    found = []
    for camera in _candidates(azimuth, elevation):
        ctx.check()
        camera = camera.fitted(points, _box_of(small))
        found.append((_splat_score(camera, points, colors, small), camera))
    found.sort(key=lambda pair: -pair[0])
    ctx.report(0.4)
    best = None
    for number, (_, camera) in enumerate(_distinct(found)):
        match = _refined(model, camera, middle, _ROUNDS, ctx)
        if best is None or _merit(match) > _merit(best):
            best = match
        ctx.report(0.4 + 0.6 * (number + 1) / _KEPT)
    assert best is not None
    return _refined(model, best.camera, resized(picture, _FINE), _LAST_ROUNDS, ctx)


def _candidates(azimuth: float | None, elevation: float | None) -> list[PictureCamera]:
    around = (
        [360 * k / _AZIMUTHS for k in range(_AZIMUTHS)] if azimuth is None else [azimuth + k for k in (-24, -12, 0, 12, 24)]
    )
    above = _ELEVATIONS if elevation is None else [elevation + k for k in (-20, -10, 0, 10, 20)]
    return [PictureCamera(a, e, 0.0, p) for a in around for e in above for p in _PERSPECTIVES]


def _distinct(found: Sequence[tuple[float, PictureCamera]]) -> list[tuple[float, PictureCamera]]:
    """The best few that look from different sides."""
    kept: list[tuple[float, PictureCamera]] = []
    for score, camera in found:
        if all(camera.axes[2] @ other.axes[2] < 0.97 for _, other in kept):
            kept.append((score, camera))
        if len(kept) == _KEPT:
            break
    return kept


def _surface_points(model: Model, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points [P, 3] spread evenly over the surface, and their colours."""
    corner = model.vertices[model.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    face = rng.choice(len(area), _POINTS, p=area / area.sum())
    weight = rng.dirichlet(np.ones(3), _POINTS)
    return np.einsum("nk,nkc->nc", weight, corner[face]), np.einsum("nk,nkc->nc", weight, model.colors[model.faces[face]])


def _splat_score(camera: PictureCamera, points: Array, colors: Array, picture: Array) -> float:
    place, near = camera.project(points)
    pixel = np.floor(place * _SIDE).astype(int).clip(0, _SIDE - 1)
    flat = pixel[:, 1] * _SIDE + pixel[:, 0]
    order = np.argsort(near, kind="stable")
    image = np.zeros((_SIDE * _SIDE, 3))
    image[flat[order]] = colors[order]  # the nearest is written last
    mask = np.bincount(flat, minlength=_SIDE * _SIDE).reshape(_SIDE, _SIDE) > 0
    there = picture[..., 3] > 0.5
    both = mask & there
    outline = both.sum() / max((mask | there).sum(), 1)
    return outline - 0.5 * _colour_error(image.reshape(_SIDE, _SIDE, 3)[both], picture[..., :3][both])


def _colour_error(model: Array, picture: Array) -> float:
    """Mean difference after the picture's light is taken away by one gain."""
    if not len(model):
        return 1.0
    gain = (model * picture).sum() / max((picture * picture).sum(), 1e-6)
    return float(np.abs(model - np.clip(gain, 0.5, 2.0) * picture).mean())


def _merit(match: Match) -> float:
    return match.outline - 0.5 * match.colour


def _compared(seen: Seen, model: Model, camera: PictureCamera, picture: Array) -> Match:
    there = picture[..., 3] > 0.5
    outline = (seen.mask & there).sum() / max((seen.mask | there).sum(), 1)
    both = there.reshape(-1)[seen.pixel]
    color = seen.blend(model.colors, model.faces)[both]
    return Match(camera, float(outline), _colour_error(color, picture[..., :3].reshape(-1, 3)[seen.pixel][both]))


def _refined(model: Model, camera: PictureCamera, picture: Array, rounds: int, ctx: RunContext) -> Match:
    """Gauss-Newton with damping; steps that make things worse are halved."""
    size = len(picture)
    there = picture[..., 3] > 0.5
    field = blur(signed_distance(there).astype(np.float32), 1.0)[..., None]
    light = blur((picture[..., :3] * picture[..., 3:]).astype(np.float32), _SOFT * size)
    best = None
    damping = 1e-2
    for _ in range(rounds):
        ctx.check()
        seen = look(camera, model.vertices, model.faces, size)
        match = _compared(seen, model, camera, picture)
        if best is None or _merit(match) > _merit(best):
            best, damping = match, max(damping / 2, 1e-3)
        else:
            damping *= 4
        points = seen.blend(model.vertices, model.faces)
        rim = _rim(seen)
        rows = np.flatnonzero(~rim)[:: max(1, int((~rim).sum() / 1500))]
        shade = seen.blend(model.colors, model.faces)[rows]
        gain = float((shade * sample(light, _pixels(camera, points[rows], size))).sum() / max((shade**2).sum(), 1e-6))

        def residual(params: Array, points=points, rim=rim, rows=rows, shade=shade, gain=gain) -> Array:
            moved = PictureCamera(*params)
            outline = sample(field, _pixels(moved, points[rim], size))[:, 0]
            tone = (sample(light, _pixels(moved, points[rows], size)) - gain * shade).reshape(-1)
            weight = np.sqrt(max(rim.sum(), 1) / max(len(rows), 1))
            return np.concatenate([_soft(outline, 6.0), weight * _COLOUR * _soft(tone, 0.2)])

        start = np.array(astuple(best.camera if damping > 1 else camera))
        base = residual(start)
        slope = np.stack([(residual(start + h) - residual(start - h)) / (2 * h.max()) for h in np.diag(_STEPS)], axis=1)
        normal = slope.T @ slope
        step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), slope.T @ base)
        step *= min(1.0, 1 / np.abs(step / _TRUST).max().clip(1e-9))
        moved = start + step
        moved[3] = np.clip(moved[3], 0.0, 1.2)
        camera = PictureCamera(*moved.tolist())
    assert best is not None
    return best


def _soft(value: Array, limit: float) -> Array:
    """Large residuals count less."""
    return value / np.sqrt(1 + (value / limit) ** 2)


def _pixels(camera: PictureCamera, points: Array, size: int) -> Array:
    return camera.project(points)[0] * size


def _rim(seen: Seen) -> Array:
    """Which of the seen pixels lie at the outline, bool [N]."""
    mask = np.pad(seen.mask, 1)
    inner = mask[1:-1, :-2] & mask[1:-1, 2:] & mask[:-2, 1:-1] & mask[2:, 1:-1]
    return ~inner.reshape(-1)[seen.pixel]


def _box_of(picture: Array) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(picture[..., 3] > 0.5)
    size = len(picture)
    return columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size
