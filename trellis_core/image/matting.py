"""Find the subject of a picture whose background is not cut out: by a matting network, or by keying a plain colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .dino import MEAN, STD, image_to_pixels
from .preprocess import Matte

NETWORK_SIDE = 1024
"""Side of the square that matting networks of the BiRefNet family see."""


def matte_by_network(picture: Image.Image, network: Callable[[Tensor], Sequence[Tensor]]) -> Image.Image:
    """The original program's background removal around a BiRefNet-like network (docs/method/networks.md).

    Args:
        picture: RGB.
        network: normalised float32 [1, 3, 1024, 1024] -> list whose last entry is the logits [1, 1, 1024, 1024].

    Returns:
        RGBA: the picture with the mask as alpha.
    """
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
    pixels = image_to_pixels(picture, NETWORK_SIDE, Image.Resampling.BILINEAR)
    with torch.no_grad():
        mask = network(((pixels - mean) / std)[None])[-1].float().sigmoid()[0, 0]
    matte = Image.fromarray((mask * 255).to(torch.uint8).cpu().numpy()).resize(picture.size)
    result = picture.convert("RGB")
    result.putalpha(matte)
    return result


def check_rembg() -> None:
    """Raise `InputError` if the packages of `load_rembg` are not installed. Imports nothing."""
    if any(find_spec(package) is None for package in ("rembg", "onnxruntime")):
        raise InputError(
            "Background removal needs the matting extra (pip install rembg onnxruntime). Without it use a picture whose"
            " background is transparent, or key a plain background."
        )


def load_rembg(model: str = "birefnet-general") -> Matte:
    """A matte from the optional `rembg` package, which fetches the named network on first use.

    Raises:
        InputError: `rembg` is not installed, or its network cannot be fetched.
    """
    check_rembg()
    from rembg import new_session, remove

    try:
        session = new_session(model)
    except (OSError, ValueError) as error:  # what its downloader and its registry of networks raise
        raise InputError(f"The network {model} of rembg is not at hand and cannot be fetched: {error}.") from error
    return lambda picture: remove(picture, session=session).convert("RGBA")


def key_plain_background(picture: Image.Image, tolerance: float = 12.0) -> Image.Image:
    """Make a plain background transparent: the border's colour is flooded away from the border inwards.

    Along the cut each pixel is unmixed into background and the colour of the subject next to it, so that edges stay
    smooth and carry no rim of the old background. Background enclosed by the subject stays opaque.

    Args:
        picture: any mode; transparency is ignored.
        tolerance: largest distance from the border's colour, in CIE Lab units, that counts as background.

    Returns:
        RGBA.

    Raises:
        InputError: the border is not of one colour, or nothing differs from it.
    """
    from scipy import ndimage

    rgb = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    lab = _lab(rgb)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    distance = np.linalg.norm(lab - np.median(border, axis=0), axis=-1)
    near = distance < tolerance
    regions: np.ndarray = ndimage.label(near)[0]  # type: ignore[index]
    on_border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    # A subject may be cut by the picture's edge, so a part of the border may differ.
    if (on_border > 0).mean() < 0.8:
        raise InputError("The background is not plain: its colour changes along the border. Cut the subject out first.")
    background = np.isin(regions, np.unique(on_border[on_border > 0]))
    inside = np.asarray(ndimage.distance_transform_edt(~background))
    # Safely past the blended rim: deep inside, or a thin part that is plainly of another colour.
    sure = (inside > 2.5) | ((inside > 1) & (distance > 3 * tolerance))
    if not sure.any():
        raise InputError("Nothing in the picture differs from its background.")
    plate = np.median(rgb[background], axis=0)
    return _unmix(rgb, plate, sure, band=~sure & (np.asarray(ndimage.distance_transform_edt(background)) < 2))


def _unmix(rgb: np.ndarray, plate: np.ndarray, sure: np.ndarray, band: np.ndarray) -> Image.Image:
    """RGBA: alpha 1 where `sure`; in the `band` the share of the nearest sure colour against the plate; else 0."""
    from scipy import ndimage

    nearest = np.asarray(ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True))
    subject = rgb[tuple(nearest)]
    span = subject - plate
    share = ((rgb - plate) * span).sum(-1) / np.maximum((span * span).sum(-1), 1e-6)
    alpha = np.where(sure, 1.0, np.where(band, share.clip(0, 1), 0.0))[..., None]
    colour = np.where(sure[..., None], rgb, np.where(alpha > 0, subject, 0.0))
    rgba = np.concatenate([colour, alpha], axis=-1)
    return Image.fromarray((rgba * 255 + 0.5).astype(np.uint8))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..1 -> CIE Lab (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
