"""Between the host's IMAGE and MASK tensors and the pictures that the core works on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trellis_core.errors import InputError

BACKGROUNDS = ("plain colour", "remove (rembg)", "black, already cropped")
MASK_SIDES = ("auto", "subject", "background")

PLACEHOLDER = 64
"""Side of the black mask that the host's Load Image makes for pictures without transparency."""


def matte_for(background: str) -> Callable[[Image.Image], Image.Image] | None:
    """How the subject is found in pictures that come without a mask.

    Raises:
        InputError: the optional package is not installed.
    """
    from ..trellis_core.image.matting import key_plain_background, load_rembg

    if background == BACKGROUNDS[0]:
        return key_plain_background
    return load_rembg() if background == BACKGROUNDS[1] else None


def to_pictures(image: Tensor, mask: Tensor | None, mask_shows: str = "auto") -> list[Image.Image]:
    """IMAGE float [B, H, W, 3 or 4] in 0..1, MASK float [B or 1, H, W] -> pictures, RGBA where there is a mask.

    Args:
        mask_shows: "subject", "background" (as Load Image gives it), or "auto": the side that touches less of the
            picture's border is the subject.

    Raises:
        InputError: the mask is of another size, or empty.
    """
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    if mask is not None and not _is_placeholder(mask, image):
        alpha = _alpha(mask, image, mask_shows)
        return [Image.fromarray(np.dstack([rgb[..., :3], a])) for rgb, a in zip(pixels, alpha, strict=True)]
    return [Image.fromarray(rgb) for rgb in pixels]


def to_image(pictures: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Pictures uint8 [S, S, 3] of any sizes -> IMAGE float32 [B, H, W, 3] of the first one's size."""
    first = pictures[0].shape[:2]
    sized = [p if p.shape[:2] == first else _resized(p, first) for p in pictures]
    return torch.stack(sized).float() / 255


def _is_placeholder(mask: Tensor, image: Tensor) -> bool:
    square = tuple(mask.shape[-2:]) == (PLACEHOLDER, PLACEHOLDER)
    return square and tuple(image.shape[1:3]) != (PLACEHOLDER, PLACEHOLDER) and not mask.any()


def _alpha(mask: Tensor, image: Tensor, mask_shows: str) -> np.ndarray:
    """uint8 [B, H, W], 255 on the subject."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if mask.shape[1:] != image.shape[1:3]:
        (h, w), (mh, mw) = image.shape[1:3], mask.shape[1:]
        raise InputError(f"The mask is {mw} x {mh} pixels, the picture {w} x {h}: make the mask of the same picture.")
    if len(mask) not in (1, len(image)):
        raise InputError(f"There are {len(image)} pictures and {len(mask)} masks: give one mask for each, or one for all.")
    border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], dim=1).mean(dim=1)
    inverted = {"subject": torch.zeros_like(border), "background": torch.ones_like(border)}.get(mask_shows, border) > 0.5
    mask = torch.where(inverted[:, None, None], 1 - mask, mask)
    for index in (mask.flatten(1).amax(dim=1) < 0.5).nonzero().flatten().tolist():
        which = "" if len(mask) == 1 else f" number {index + 1}"
        raise InputError(f"The mask{which} is empty: it shows no subject. Paint the subject, or turn mask_shows around.")
    return (mask.clamp(0, 1) * 255).round().to(torch.uint8).expand(len(image), -1, -1).numpy()


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    image = Image.fromarray(picture.numpy()).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


def to_pil(picture: Tensor) -> Image.Image:
    """A picture uint8 [H, W, 3]."""
    return Image.fromarray(picture.numpy())
