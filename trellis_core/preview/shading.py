"""A small photo studio: what light leaves a surface of a given colour, metalness and roughness.

The lights are soft boxes written as spherical Gaussians, amplitude * exp(sharpness * (cos - 1)), over a vertical
gradient of floor, horizon and ceiling; blurring such a lobe by the width of a GGX highlight is again such a lobe (Wang
et al. 2009, All-Frequency Rendering of Dynamic, Spatially-Varying Reflectance). The Fresnel and masking terms of the
Cook-Torrance model come in as the split-sum fit of Karis 2014 (Physically Based Shading on Mobile). Directions are
unit vectors in the camera's azimuth frame: x right, y up, z towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..mesh.scanline import dot


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector float32 [3] of degrees from z towards x, and above the horizon."""
    a, e = np.radians((azimuth, elevation))
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)], np.float32)


@dataclass(frozen=True)
class SoftBox:
    """A lamp: where it hangs, how small it is, its linear RGB radiance."""

    towards: np.ndarray
    sharpness: float
    radiance: np.ndarray


def _box(azimuth: float, elevation: float, sharpness: float, radiance: tuple[float, float, float]) -> SoftBox:
    return SoftBox(direction(azimuth, elevation), sharpness, np.array(radiance, np.float32))


KEY = _box(-38, 48, 22, (11.6, 11.0, 10.3))
OTHERS = (_box(62, 18, 9, (0.50, 0.55, 0.64)), _box(150, 38, 26, (3.6, 3.7, 4.0)), _box(-150, 20, 30, (2.0, 2.0, 2.1)))
NADIR, FLOOR, HORIZON, ZENITH = (
    np.array(c, np.float32) for c in ((0.06, 0.06, 0.06), (0.52, 0.51, 0.50), (0.46, 0.47, 0.49), (0.16, 0.18, 0.21))
)


def shade(
    normal: np.ndarray,
    view: np.ndarray,
    base_color: np.ndarray,
    metallic: np.ndarray,
    roughness: np.ndarray,
    key_visible: np.ndarray,
    open_sky: np.ndarray,
) -> np.ndarray:
    """Linear radiance [N, 3] towards the viewer.

    Args:
        normal, view: float32 [N, 3] unit, on the same side of the surface; `view` points to the camera.
        base_color: linear [N, 3].
        metallic, roughness: [N], 0..1.
        key_visible: [N], share of the key light that reaches the point.
        open_sky: [N], share of the surroundings that reaches the point.
    """
    cos_view = np.clip(dot(normal, view), 1e-3, 1)
    mirror = 2 * cos_view[:, None] * normal - view
    metal, key, sky = metallic[:, None], key_visible[:, None], open_sky[:, None]
    f0 = 0.04 + (base_color - 0.04) * metal
    specular = _fresnel(f0, np.maximum(roughness, 0.05), cos_view)
    width = np.maximum(roughness, 0.09) ** 4  # alpha squared, alpha = roughness squared

    diffuse_light = _surroundings(normal[:, 1], np.ones_like(roughness)) * sky + _irradiance(KEY, normal) * key
    mirror_light = _surroundings(mirror[:, 1], roughness) * sky + _reflection(KEY, mirror, width) * key
    for box in OTHERS:
        diffuse_light += _irradiance(box, normal) * sky
        mirror_light += _reflection(box, mirror, width) * sky
    return base_color * (1 - metal) * (1 - specular) * diffuse_light + specular * mirror_light


def tone_map(radiance: np.ndarray) -> np.ndarray:
    """Radiance [..., 3] -> displayable linear 0..1; darker colours stay as they are, highlights roll off to white."""
    knee = 0.75
    peak = np.maximum(radiance.max(-1, keepdims=True), 1e-6)
    rolled = np.where(peak > knee, 1 - (1 - knee) * np.exp(-(peak - knee) / (1 - knee)), peak)
    whitening = 1 - 1 / (1 + 0.2 * (peak - rolled))
    squeezed = radiance * (rolled / peak)
    return squeezed + (rolled - squeezed) * whitening


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear 0..1 -> sRGB transfer curve."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_srgb(encoded: np.ndarray) -> np.ndarray:
    """sRGB 0..1 -> linear."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _irradiance(box: SoftBox, normal: np.ndarray) -> np.ndarray:
    """Light of a box on a diffuse surface, over pi; the cosine is rounded off by the size of the box."""
    cosine = normal @ box.towards
    softness = 1.2 / box.sharpness
    rounded = (cosine + np.sqrt(cosine**2 + softness)) / (1 + np.sqrt(1 + softness))
    return (2 / box.sharpness) * rounded[:, None] * box.radiance


def _reflection(box: SoftBox, mirror: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The box seen in a surface whose GGX lobe has alpha^2 = width."""
    sharpness = box.sharpness / (1 + 2 * width * box.sharpness)
    lobe = sharpness / box.sharpness * np.exp(sharpness * (mirror @ box.towards - 1))
    return lobe[:, None] * box.radiance


def _surroundings(height: np.ndarray, roughness: np.ndarray) -> np.ndarray:
    """Floor, horizon and ceiling at direction height -1..1, blurred by roughness; straight down lies the own shade."""
    above = 0.5 + 0.5 * np.tanh((height + 0.02) / (0.06 + 0.55 * roughness))
    upper = HORIZON + (ZENITH - HORIZON) * np.clip(height, 0, 1)[:, None]
    lower = FLOOR + (NADIR - FLOOR) * np.sqrt(np.clip(-height, 0, 1))[:, None]
    return lower + (upper - lower) * above[:, None]


def _fresnel(f0: np.ndarray, roughness: np.ndarray, cos_view: np.ndarray) -> np.ndarray:
    """Directional albedo of the specular lobe: Karis' fit of the split-sum table."""
    a = np.minimum((1 - roughness) ** 2, 2.0 ** (-9.28 * cos_view)) * (1 - roughness) + 0.0425 - 0.0275 * roughness
    scale, offset = 1.04 - 0.572 * roughness - 1.04 * a, 0.022 * roughness - 0.04 + 1.04 * a
    return f0 * scale[:, None] + offset[:, None]
