"""Pictures of procedural objects by sphere tracing: network inputs cropped as the pipeline crops, and free views with alpha."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .compiled import kernels
from .objects import ProceduralObject

_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the origin, z up.

    Attributes:
        azimuth: degrees, 0 in front of the object (at -y), 90 on its +x side.
        elevation: degrees above the ground plane.
        fov: full opening angle in degrees, both ways.
        distance: from the origin; None: the whole bounding cube's ball fits.
    """

    azimuth: float = 30.0
    elevation: float = 20.0
    fov: float = 40.0
    distance: float | None = None

    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Eye [3] and axes [3, 3] with rows right, up, forward."""
        azimuth, elevation = np.deg2rad([self.azimuth, self.elevation])
        back = np.array([np.cos(elevation) * np.sin(azimuth), -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
        right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        distance = self.distance or 0.72 / np.sin(np.deg2rad(self.fov / 2))
        return back * distance, np.stack([right, np.cross(back, right), -back])


@dataclass(frozen=True)
class Lighting:
    """Surroundings float64 [2 + L, 7]: sky, ground, then lights (key first); columns direction (3), radiance (3), width."""

    table: np.ndarray
    exposure: float = 1.0

    @staticmethod
    def studio(azimuth: float = 0.0) -> Lighting:
        """A calm key light over the shoulder of a camera at `azimuth`, a fill, and a bright sky."""
        sky, ground = (0, 0, 0, 0.62, 0.66, 0.72, 0), (0, 0, 0, 0.30, 0.27, 0.25, 0)
        key = (*_direction(azimuth - 40, 45), 0.85, 0.82, 0.76, 0.05)
        fill = (*_direction(azimuth + 65, 25), 0.18, 0.2, 0.24, 0.1)
        return Lighting(np.array([sky, ground, key, fill]))

    @staticmethod
    def random(rng: np.random.Generator, azimuth: float) -> Lighting:
        """One to three lights, slightly tinted, a random sky and exposure, for a camera at `azimuth`."""
        tint = lambda strength: strength * (1 + 0.12 * rng.uniform(-1, 1, 3))  # noqa: E731
        rows = [np.r_[0, 0, 0, tint(rng.uniform(0.35, 0.8)), 0], np.r_[0, 0, 0, tint(rng.uniform(0.08, 0.4)), 0]]
        for i in range(rng.integers(1, 4)):
            strength = rng.uniform(0.5, 1.0) if i == 0 else rng.uniform(0.1, 0.35)
            where = _direction(azimuth + rng.uniform(-75, 75), rng.uniform(20, 75))
            rows.append(np.r_[where, tint(strength), rng.uniform(0.02, 0.12)])
        return Lighting(np.array(rows), float(rng.uniform(0.85, 1.25)))


def front_camera(rng: np.random.Generator) -> Camera:
    """In front, mostly a little from above: the frame of the objects is the camera's, save for its height."""
    return Camera(rng.normal(0, 3), float(np.clip(rng.normal(6, 8), -10, 32)), rng.uniform(12, 40))


def training_picture(obj: ProceduralObject, surface: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """`cropped_picture` by a random camera in front, under random lights, its crop a little loose or tight as mattes are."""
    camera = front_camera(rng)
    return cropped_picture(obj, surface, camera, Lighting.random(rng, camera.azimuth), size, zoom=rng.uniform(0.985, 1.025))


def cropped_picture(
    obj: ProceduralObject, surface: np.ndarray, camera: Camera, lighting: Lighting, size: int, zoom: float = 1.0
) -> np.ndarray:
    """uint8 [size, size, 3], premultiplied on black: the object's square bounding box, as the pipeline crops a
    picture (docs/method/networks.md), times `zoom`.

    `surface` float [N, 3] are points on the surface in object space, dense enough to tell the silhouette's bounds.
    """
    eye, axes = camera.frame()
    seen = (surface - eye) @ axes.T
    flat = seen[:, :2] / seen[:, 2:]
    low, high = flat.min(0), flat.max(0)
    half = (high - low).max() / 2 * zoom
    u, v = (low + high) / 2
    colour, _ = _trace(obj, eye, axes, (u - half, u + half, v + half, v - half), size, lighting)
    return (255 * colour).astype(np.uint8)


def render_view(
    obj: ProceduralObject, camera: Camera = Camera(), size: int = 512, lighting: Lighting | None = None
) -> np.ndarray:
    """RGBA uint8 [size, size, 4] with straight alpha, uncropped, under `lighting` (default: the studio's)."""
    eye, axes = camera.frame()
    reach = np.tan(np.deg2rad(camera.fov / 2))
    lighting = lighting or Lighting.studio(camera.azimuth)
    colour, cover = _trace(obj, eye, axes, (-reach, reach, reach, -reach), size, lighting)
    straight = colour / np.maximum(cover, 1e-6)[..., None]
    return np.rint(255 * np.concatenate([straight, cover[..., None]], 2)).astype(np.uint8)


def _trace(obj: ProceduralObject, eye, axes, window, size: int, lighting: Lighting) -> tuple[np.ndarray, np.ndarray]:
    """(premultiplied sRGB [S, S, 3], coverage [S, S])."""
    k = _SUPERSAMPLING
    linear, _, part = kernels().render(obj.table, eye, axes, np.array(window), k * size, lighting.table)
    group = lambda x: x.reshape(size, k, size, k, -1).mean((1, 3), dtype=np.float32)  # noqa: E731
    return group(_encode(linear * np.float32(lighting.exposure))), group(part >= 0)[..., 0]


def _encode(linear: np.ndarray) -> np.ndarray:
    """Linear radiance to sRGB in 0..1, highlights rolled off above 0.7."""
    over = np.maximum(linear - 0.7, 0)
    linear = np.minimum(linear, 0.7) + 0.3 * over / (over + 0.3)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** np.float32(1 / 2.4) - 0.055)


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    return Camera(azimuth, elevation, distance=1.0).frame()[0]
