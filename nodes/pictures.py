"""Between the host's IMAGE and MASK tensors and the pictures that the core works on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trellis_core.errors import InputError

BACKGROUNDS = ("plain colour", "remove (rembg)", "black, already cropped")
BATCHES = ("several objects", "views of one object")
MASK_SIDES = ("auto", "subject", "background")


def matte_for(background: str) -> Callable[[Image.Image], Image.Image] | None:
    """How the subject is found in pictures that come without a mask.

    Raises:
        InputError: the optional package is not installed.
    """
    from ..trellis_core.image.matting import key_plain_background, load_rembg

    if background == BACKGROUNDS[0]:
        return key_plain_background
    return load_rembg() if background == BACKGROUNDS[1] else None


def check_background(background: str) -> bool | str:
    """True, or why subjects cannot be found in this way."""
    from ..trellis_core.image.matting import check_rembg

    if background not in BACKGROUNDS:
        return f'There is no background "{background}". Choose one of: {", ".join(BACKGROUNDS)}.'
    try:
        if background == BACKGROUNDS[1]:
            check_rembg()
    except InputError as error:
        return str(error)
    return True


def to_pictures(image: Tensor, mask: Tensor | None, mask_shows: str = "auto") -> list[Image.Image]:
    """IMAGE float [B, H, W, 3 or 4] in 0..1, MASK float [B, h, w] -> pictures, RGBA where a mask cuts something away.

    A mask without any white is the one that the host's Load Image gives for pictures without transparency, of one size or
    another: it says nothing. A mask of another size than the picture's is resized to it.

    Args:
        mask_shows: "subject", "background" (as Load Image gives it), or "auto": the side that touches less of the
            picture's border is the subject.

    Raises:
        InputError: there are not as many masks as pictures, or a mask leaves nothing of its picture.
    """
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    alphas = [None] * len(pixels) if mask is None else _alphas(mask, image, mask_shows)
    return [_cut(picture, alpha) for picture, alpha in zip(pixels, alphas, strict=True)]


def _cut(picture: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    if alpha is not None:
        return Image.fromarray(np.dstack([picture[..., :3], alpha]))
    opaque = picture.shape[-1] == 4 and picture[..., 3].min() == 255
    return Image.fromarray(np.ascontiguousarray(picture[..., :3]) if opaque else picture)


def to_image(pictures: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Pictures uint8 [S, S, 3] of any sizes -> IMAGE float32 [B, H, W, 3] of the first one's size."""
    height, width = pictures[0].shape[:2]
    sized = [p if p.shape[:2] == (height, width) else _resized(p, (height, width)) for p in pictures]
    return torch.stack(sized).float() / 255


def _alphas(mask: Tensor, image: Tensor, mask_shows: str) -> list[np.ndarray | None]:
    """For each picture uint8 [H, W], 255 on the subject; None where the mask cuts nothing away."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if not mask.any() and mask_shows != "subject":
        return [None] * len(image)
    if len(mask) != len(image):
        raise InputError(
            f"There are {len(image)} pictures and {len(mask)} {'mask' if len(mask) == 1 else 'masks'}: give one for each. "
            "Without a mask, background says how the subject is found."
        )
    if mask.shape[1:] != image.shape[1:3]:
        mask = torch.nn.functional.interpolate(mask[:, None], tuple(image.shape[1:3]), mode="bilinear")[:, 0]
    return [_alpha(one, mask_shows, "" if len(mask) == 1 else f" number {number}") for number, one in enumerate(mask, 1)]


def _alpha(mask: Tensor, mask_shows: str, which: str) -> np.ndarray | None:
    empty, full = bool(mask.max() < 0.5), bool(mask.min() >= 0.5)
    if (empty and mask_shows != "subject") or (full and mask_shows != "background"):
        return None
    if empty:
        raise InputError(f"The mask{which} is empty: it shows no subject. Paint the subject, or turn mask_shows around.")
    if full:
        raise InputError(f"The mask{which} is full: all of the picture is background. Turn mask_shows around, or leave it out.")
    border = float(torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())
    inverted = mask_shows == "background" or (mask_shows == "auto" and border > 0.5)
    return ((1 - mask if inverted else mask).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    image = Image.fromarray(picture.numpy()).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


def to_pil(picture: Tensor) -> Image.Image:
    """A picture uint8 [H, W, 3]."""
    return Image.fromarray(picture.numpy())
