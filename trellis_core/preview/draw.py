"""The camera, the paint, and the walk from triangles to a finished picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..context import QUIET, RunContext
from ..mesh.scanline import Layer, barycentric, dot, visible_layers
from .occlusion import DepthMap, Floor, look_along, open_sky, tap_set
from .shading import KEY, decode_srgb, encode_srgb, shade, tone_map

OVERSAMPLING = 2
MAX_LAYERS = 6
"""Transparent surfaces drawn behind each other."""
CREASE = 40.0
"""Degrees; sharper edges are not smoothed over."""
MARGIN = 1.12
"""Air around the object, in radii."""
GREY = 0.58


@dataclass(frozen=True)
class Camera:
    """Looks at the middle of the object from far enough to see all of it.

    Attributes:
        azimuth: degrees around the object; 0 is in front (+z), 90 on the +x side.
        elevation: degrees above the horizon.
        fov: vertical field of view in degrees.
    """

    azimuth: float = 30.0
    elevation: float = 20.0
    fov: float = 30.0


@dataclass(frozen=True)
class Material:
    """What a mesh is made of. Textures win over the factors beside them.

    Attributes:
        base_color: uint8 [h, w, 3 or 4] sRGB texture, the fourth channel opacity.
        metallic_roughness: uint8 [h, w, 3] texture, G roughness and B metalness as in glTF.
        normal_map: uint8 [h, w, 3] tangent-space texture; `render` needs tangents for it.
        occlusion: whether the red channel of `metallic_roughness` is ambient occlusion.
        metallic, roughness: factors 0..1 where there is no texture.
    """

    base_color: np.ndarray | None = None
    metallic_roughness: np.ndarray | None = None
    normal_map: np.ndarray | None = None
    occlusion: bool = False
    metallic: float = 0.0
    roughness: float = 0.6


def render(
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    normals: np.ndarray | None = None,
    uvs: np.ndarray | None = None,
    tangents: np.ndarray | None = None,
    material: Material = Material(),
    vertex_colors: np.ndarray | None = None,
    camera: Camera = Camera(),
    size: int = 512,
    background: tuple[int, int, int] | None = (236, 236, 238),
    ctx: RunContext = QUIET,
) -> np.ndarray:
    """A picture of the mesh in a small photo studio, with soft shadows on itself and on the floor below it.

    Args:
        vertices: float [V, 3], any scale and place; faces: int [F, 3], both sides are drawn.
        normals: float [V, 3]; None shades smoothly but keeps edges sharper than `CREASE`.
        uvs: float [V, 2] for the textures of `material`, repeating outside 0..1.
        tangents: float [V, 4] as in glTF, for the normal map of `material`.
        vertex_colors: float [V, 3 or 4] in 0..1, sRGB; used where there is no base colour texture.
        background: sRGB, or None for a transparent one.

    Returns:
        uint8 [size, size, 3], or [size, size, 4] without a background; a mesh without faces leaves it empty.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    finite = np.all(np.isfinite(vertices), axis=1)
    faces = faces[finite[faces].all(axis=1)]
    width = size * OVERSAMPLING
    canvas = np.zeros((width * width, 4), np.float32)
    if len(faces):
        scene = _Scene(vertices, faces, normals, tangents, camera, width)
        paint = _Paint(material, faces, uvs, vertex_colors, scene.screen)
        for number, layer in enumerate(visible_layers(scene.screen, scene.nearness, faces, width)):
            ctx.check()
            open_pixels = canvas[layer.pixel, 3] < 0.99
            if number == MAX_LAYERS or not open_pixels.any():
                break
            _draw(canvas, scene, paint, Layer(layer.pixel[open_pixels], layer.face[open_pixels]))
        ctx.check()
        _draw_floor(canvas, scene)
    return _developed(canvas, size, background)


class _Scene:
    """The mesh in the studio frame: y up, turned with the camera's azimuth, its bounding sphere the unit sphere."""

    def __init__(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        normals: np.ndarray | None,
        tangents: np.ndarray | None,
        camera: Camera,
        width: int,
    ) -> None:
        self.faces, self.width = faces, width
        azimuth, elevation = np.radians((camera.azimuth, camera.elevation))
        turn = np.array([[np.cos(azimuth), 0, -np.sin(azimuth)], [0, 1, 0], [np.sin(azimuth), 0, np.cos(azimuth)]])
        tilt = [[1, 0, 0], [0, np.cos(elevation), -np.sin(elevation)], [0, np.sin(elevation), np.cos(elevation)]]
        self.tilt = np.array(tilt)
        used = vertices[np.unique(faces)]
        centre = (used.min(0) + used.max(0)) / 2
        radius = max(float(np.linalg.norm(used - centre, axis=1).max()), 1e-12)
        exact = (np.nan_to_num(vertices) - centre) / radius @ turn.T
        self.points = exact.astype(np.float32)
        corner_normals = _corner_normals(vertices, faces) if normals is None else np.asarray(normals, np.float64)[faces]
        self.corner_normals = (corner_normals @ turn.T).astype(np.float32)
        self.corner_tangents = self.handed = None
        if tangents is not None:
            self.corner_tangents = (np.asarray(tangents, np.float64)[faces, :3] @ turn.T).astype(np.float32)
            self.handed = np.asarray(tangents, np.float32)[faces[:, 0], 3]
        self.flat_normals = _face_normals(exact, faces).astype(np.float32)

        half_view = np.radians(camera.fov) / 2
        self.focal = width / 2 / np.tan(half_view)
        self.eye = np.array([0, 0, MARGIN / np.sin(half_view)]) @ self.tilt
        seen = (exact - self.eye) @ self.tilt.T
        self.nearness = -1 / seen[:, 2]
        self.screen = seen[:, :2] * [1, -1] * (self.focal * self.nearness)[:, None] + width / 2

        self.key_shadow = DepthMap(exact, faces, look_along(KEY.towards.astype(np.float64)), extent=1.1)
        self.floor = Floor(exact, faces)

    def centres(self, pixel: np.ndarray) -> np.ndarray:
        return np.stack([pixel % self.width + 0.5, pixel // self.width + 0.5], axis=1)

    def rays(self, pixel: np.ndarray) -> np.ndarray:
        """Studio directions [N, 3] of the lines of sight, not normalised."""
        across = (self.centres(pixel) - self.width / 2) * [1, -1] / self.focal
        return np.column_stack([across, np.full(len(pixel), -1.0)]) @ self.tilt


class _Paint:
    """Colour, opacity, metalness and roughness of any point on the mesh."""

    def __init__(
        self,
        material: Material,
        faces: np.ndarray,
        uvs: np.ndarray | None,
        vertex_colors: np.ndarray | None,
        screen: np.ndarray,
    ) -> None:
        self.material, self.faces = material, faces
        self.uvs = None if uvs is None else np.asarray(uvs, np.float64)
        self.color = self.mixed = self.vertex_colors = self.tilts = None
        if self.uvs is not None and material.base_color is not None:
            texture = _shrunk(material.base_color, self.uvs[faces], screen[faces])
            self.color = np.concatenate([_LINEAR[texture[..., :3]], texture[..., 3:] / np.float32(255)], axis=-1)
        elif vertex_colors is not None:
            colors = np.asarray(vertex_colors, np.float32)
            self.vertex_colors = np.concatenate([decode_srgb(colors[:, :3]), colors[:, 3:]], axis=1)
        if self.uvs is not None and material.metallic_roughness is not None:
            texture = _shrunk(material.metallic_roughness, self.uvs[faces], screen[faces])
            self.mixed = texture / np.float32(255)
        if self.uvs is not None and material.normal_map is not None:
            texture = _shrunk(material.normal_map, self.uvs[faces], screen[faces])
            self.tilts = texture / np.float32(127.5) - np.float32(1)

    def tilt(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
        """What the normal map says [N, 3], if there is one."""
        return (
            None
            if self.tilts is None or self.uvs is None
            else _bilinear(self.tilts, _blend(self.uvs[self.faces[face]], weights))
        )

    def at(self, face: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Linear base colour [N, 3], opacity, metalness, roughness and openness [N] at weights [N, 3] in faces [N]."""
        corners = self.faces[face]
        uv = None if self.uvs is None else _blend(self.uvs[corners], weights)
        if self.color is not None and uv is not None:
            color = _bilinear(self.color, uv)
        elif self.vertex_colors is not None:
            color = _blend(self.vertex_colors[corners], weights)
        else:
            color = np.full((len(face), 3), GREY, np.float32)
        opacity = color[:, 3] if color.shape[1] == 4 else np.ones(len(face), np.float32)
        if self.mixed is not None and uv is not None:
            openness, roughness, metallic = _bilinear(self.mixed, uv).T
        else:
            factors = 1.0, self.material.roughness, self.material.metallic
            openness, roughness, metallic = (np.full(len(face), factor, np.float32) for factor in factors)
        return color[:, :3], opacity, metallic, roughness, openness if self.material.occlusion else np.ones_like(openness)


def _draw(canvas: np.ndarray, scene: _Scene, paint: _Paint, layer: Layer) -> None:
    """Shade a layer and put it behind what the canvas (premultiplied display-linear colour, opacity) holds."""
    corners = scene.faces[layer.face]
    weights = barycentric(scene.screen[corners], scene.centres(layer.pixel)) * scene.nearness[corners]
    weights = (weights / (weights[:, :1] + weights[:, 1:2] + weights[:, 2:])).astype(np.float32)
    position = _blend(scene.points[corners], weights)
    to_eye = scene.eye.astype(np.float32) - position
    view = _unit(to_eye)
    normal = _facing(scene, layer.face, weights, view, paint.tilt(layer.face, weights))
    color, opacity, metallic, roughness, openness = paint.at(layer.face, weights)

    key = scene.key_shadow.visible(position + 0.02 * normal, 0.03, 0.012, tap_set(layer.pixel, scene.width))
    tilt = scene.tilt.T.astype(np.float32)
    sky = open_sky(-to_eye @ tilt, normal @ tilt, layer.pixel, scene.width, scene.focal)
    above_floor = np.exp(-(position[:, 1] - scene.floor.height) / 0.15)
    sky = np.minimum(sky, openness) * (1 - 0.45 * above_floor * (0.5 - 0.5 * normal[:, 1]))
    radiance = tone_map(shade(normal, view, color, metallic, roughness, key, sky.astype(np.float32)))
    share = ((1 - canvas[layer.pixel, 3]) * opacity)[:, None]
    canvas[layer.pixel] += share * np.concatenate([radiance, np.ones_like(share)], axis=1)


def _draw_floor(canvas: np.ndarray, scene: _Scene) -> None:
    """Darken what is not covered where the object keeps light from the floor."""
    pixel = np.flatnonzero(canvas[:, 3] < 0.99)
    rays = scene.rays(pixel)
    down = rays[:, 1] < -1e-3
    pixel, rays = pixel[down], rays[down]
    position = scene.eye + rays * ((scene.floor.height - scene.eye[1]) / rays[:, 1])[:, None]
    near = dot(position, position) < 9
    pixel, position = pixel[near], position[near]
    lit = scene.key_shadow.visible(position, 0.05, 0.01, tap_set(pixel, scene.width))
    hidden = 0.22 * (1 - lit) + 0.55 * scene.floor.hidden_sky(position)
    canvas[pixel, 3] += (1 - canvas[pixel, 3]) * hidden.astype(np.float32)


def _developed(canvas: np.ndarray, size: int, background: tuple[int, int, int] | None) -> np.ndarray:
    """Average the samples of each pixel and encode."""
    pixels = canvas.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 4).mean((1, 3))
    color, opacity = pixels[..., :3], pixels[..., 3:]
    if background is not None:
        picture = encode_srgb(color + (1 - opacity) * decode_srgb(np.array(background, np.float32) / 255))
    else:
        picture = np.concatenate([encode_srgb(color / np.maximum(opacity, 1e-4)), opacity], axis=-1)
    return (picture * 255 + 0.5).astype(np.uint8)


_LINEAR = decode_srgb(np.arange(256, dtype=np.float32) / 255)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.sqrt(np.einsum("...c,...c->...", v, v)), 1e-12)[..., None]


def _blend(corner_values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N, 3 corners, C] and [N, 3] -> [N, C]."""
    return np.einsum("nkc,nk->nc", corner_values, weights)


def _corner_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Smooth normals [F, 3, 3], weighted by area; the face's own where its edge to the neighbours is a crease."""
    flat = _face_normals(np.nan_to_num(vertices), faces)
    summed = np.stack([np.bincount(faces.ravel(), np.repeat(flat[:, k], 3), len(vertices)) for k in range(3)], axis=1)
    smooth, flat = _unit(summed)[faces], np.repeat(_unit(flat)[:, None], 3, axis=1)
    return np.where(((smooth * flat).sum(-1) > np.cos(np.radians(CREASE)))[..., None], smooth, flat)


def _face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[F, 3], twice the area long."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def _facing(scene: _Scene, face: np.ndarray, weights: np.ndarray, view: np.ndarray, tilt: np.ndarray | None) -> np.ndarray:
    """Shading normals float32 [N, 3] on the side of the surface that the viewer sees, tilted [N, 3] in tangent space."""
    normal = _unit(_blend(scene.corner_normals[face], weights))
    if tilt is not None and scene.corner_tangents is not None and scene.handed is not None:
        tangent = _unit(_blend(scene.corner_tangents[face], weights))
        bitangent = _unit(np.cross(normal, tangent)) * scene.handed[face, None]
        normal = _unit(tilt[:, :1] * tangent + tilt[:, 1:2] * bitangent + tilt[:, 2:] * normal)
    flat = scene.flat_normals[face]
    side = np.where((dot(normal, flat) >= 0) == (dot(flat, view) >= 0), 1, -1).astype(np.float32)
    normal = normal * side[:, None]
    # At silhouettes a smooth normal may point away by a little: bend it back to a right angle.
    return _unit(normal - np.minimum(dot(normal, view) - 1e-3, 0)[:, None] * view)


def _shrunk(texture: np.ndarray, uv: np.ndarray, screen: np.ndarray) -> np.ndarray:
    """The texture at about one texel per sample, so that fine patterns do not flicker."""
    texels = _area(uv * [texture.shape[1], texture.shape[0]])
    factor = int(np.sqrt(texels / max(_area(screen), 1.0)))
    return np.asarray(Image.fromarray(texture).reduce(factor)) if factor > 1 else np.asarray(texture)


def _area(triangles: np.ndarray) -> float:
    u, v = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return float(np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum())


def _bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texture [h, w, C] at uv [N, 2], repeating."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
    x0, x1, y0, y1 = left % width, (left + 1) % width, top % height, (top + 1) % height
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return upper * (1 - fy) + lower * fy
