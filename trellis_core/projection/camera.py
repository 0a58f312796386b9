"""The camera of a picture relative to a model, and what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..mesh.scanline import Layer, barycentric, visible_layers

Array = np.ndarray


@dataclass(frozen=True)
class PictureCamera:
    """A pinhole camera that looks at the origin of object space, and where its image lies in a square picture.

    Attributes:
        azimuth, elevation, roll: degrees; azimuth 0 looks at the front (-y), 90 at the object's left (+x), elevation above the
            horizon, roll clockwise in the picture.
        perspective: 1 over the distance from the origin, in object units; 0 is a parallel projection.
        scale: sides of the picture per unit at the origin.
        x, y: where the origin lies in the picture, 0..1 from left and from the top.
    """

    azimuth: float = 0.0
    elevation: float = 0.0
    roll: float = 0.0
    perspective: float = 0.3
    scale: float = 1.0
    x: float = 0.5
    y: float = 0.5

    @property
    def axes(self) -> Array:
        """Rows right, up and towards the camera, float64 [3, 3], in object space."""
        a, e, r = np.radians([self.azimuth, self.elevation, self.roll])
        back = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
        right = np.array([np.cos(a), np.sin(a), 0.0])
        up = np.cross(back, right)
        return np.stack([np.cos(r) * right + np.sin(r) * up, np.cos(r) * up - np.sin(r) * right, back])

    def project(self, points: Array) -> tuple[Array, Array]:
        """Places float64 [N, 2] in the picture, 0..1 from its upper left corner, and nearness [N] > 0, larger is nearer."""
        turned = points @ self.axes.T
        near = 1 / np.maximum(1 - self.perspective * turned[:, 2], 0.05)
        flat = turned[:, :2] * near[:, None] * self.scale
        place = np.stack([self.x + flat[:, 0], self.y - flat[:, 1]], axis=1)
        return place, near if self.perspective > 1e-6 else 2 + turned[:, 2]

    def towards(self, points: Array) -> Array:
        """Unit vectors float64 [N, 3] from points to the camera."""
        if self.perspective < 1e-6:
            return np.broadcast_to(self.axes[2], points.shape)
        arm = self.axes[2] / self.perspective - points
        return arm / np.linalg.norm(arm, axis=1, keepdims=True).clip(1e-12)

    def fitted(self, points: Array, box: Sequence[float]) -> PictureCamera:
        """The same direction, with the points' bounding box laid onto a box (left, top, right, bottom) of the picture."""
        plain = replace(self, scale=1.0, x=0.0, y=0.0)
        place, _ = plain.project(points)
        low, high = place.min(axis=0), place.max(axis=0)
        size, wanted = (high - low).clip(1e-9), np.array([box[2] - box[0], box[3] - box[1]])
        scale = float(np.sqrt(np.prod(wanted / size)))
        middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2 - scale * (low + high) / 2
        return replace(self, scale=scale, x=float(middle[0]), y=float(middle[1]))


@dataclass(frozen=True)
class Seen:
    """What a camera sees of a mesh in a square picture.

    Attributes:
        pixel: int64 [N], row * size + column, ascending. face: int64 [N]. weights: float64 [N, 3] barycentric, true in space.
        near: float64 [size * size], nearness of what is seen, 0 where there is nothing.
        size: pixels along a side.
    """

    pixel: Array
    face: Array
    weights: Array
    near: Array
    size: int

    @property
    def mask(self) -> Array:
        """bool [size, size]."""
        return (self.near > 0).reshape(self.size, self.size)

    def blend(self, values: Array, faces: Array) -> Array:
        """Values [N, C] at what is seen, from values [V, C] of the vertices."""
        return np.einsum("nk,nkc->nc", self.weights, values[faces[self.face]])


def look(camera: PictureCamera, vertices: Array, faces: Array, size: int) -> Seen:
    """Rasterise vertices float [V, 3] and faces int [F, 3]."""
    place, near = camera.project(vertices.astype(np.float64))
    screen = place * size
    layer = next(visible_layers(screen, near, faces, size), Layer(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    corner = faces[layer.face]
    centre = np.stack([layer.pixel % size + 0.5, layer.pixel // size + 0.5], axis=1)
    weights = barycentric(screen[corner], centre)
    at = np.einsum("nk,nk->n", weights, near[corner])
    if camera.perspective > 1e-6:
        weights = weights * near[corner]
        weights /= weights.sum(axis=1, keepdims=True)
    depth = np.zeros(size * size)
    depth[layer.pixel] = at
    return Seen(layer.pixel, layer.face, weights, depth, size)
