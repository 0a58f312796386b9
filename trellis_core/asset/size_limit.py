"""Making a file small enough: first its pictures give way, then its vertices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..context import QUIET, RunContext
from ..errors import InputError
from ..gltf.glb import Packing, Part, glb_bytes

SMALLEST = 256
"""Texels along a side below which textures are not worth having."""
FEWEST = 60
"""Vertices below which a model is none."""
_ROUNDS = 6


@dataclass(frozen=True)
class Fitted:
    """A file of the wanted size: its bytes, how its numbers are packed, and what gave way for it, in words, or nothing."""

    data: bytes
    packing: Packing
    note: str


Dress = Callable[[int, int], Sequence[Part]]
"""Makes the parts with at most so many vertices and textures of such a size."""


def fit(
    dress: Dress,
    vertices: int,
    size: int,
    packing: Packing,
    limit: int,
    extras: Mapping[str, Any] | None = None,
    ctx: RunContext = QUIET,
) -> Fitted:
    """The best file of at most `limit` bytes: of full size textures in another format or quality, then of smaller ones, then
    of fewer vertices.

    Args:
        dress: see `Dress`.
        vertices: how many the parts should have.
        size: texels along a side that textures should have.
        packing: the wanted one.

    Raises:
        InputError: not even a small model fits.
    """
    wanted = vertices
    for _ in range(_ROUNDS):
        for texels in _halves(size, max(size // 4, SMALLEST) if vertices == wanted else SMALLEST):
            parts = dress(vertices, texels)
            bare = len(glb_bytes([replace(p, uvs=None, normal_map=None, tangents=None) for p in parts], packing))
            if bare > 0.9 * limit:
                break
            for choice in _choices(packing, parts):
                ctx.check()
                data = glb_bytes(parts, choice, extras)
                if len(data) <= limit:
                    return Fitted(data, choice, _note(limit, size, texels, wanted, vertices, packing, choice))
        least = len(data) if bare <= 0.9 * limit else bare
        vertices = int(min(vertices, len(parts[0].vertices)) * min(0.5, 0.4 * limit / bare))
        if vertices < FEWEST:
            break
    raise InputError(
        f"The model does not fit into {limit / 1e6:g} MB, the smallest file that was tried takes {least / 1e6:.2f} MB: raise "
        "max_file_mb, take fewer lods, or leave out the normal map."
    )


def _halves(size: int, least: int) -> Iterator[int]:
    while size >= least:
        yield size
        size //= 2


def _choices(packing: Packing, parts: Sequence[Part]) -> Iterator[Packing]:
    """The wanted packing, then ever smaller ones; WebP only if it was wanted or where JPEG has no alpha."""
    yield packing
    alpha = any(part.alpha_mode != "OPAQUE" for part in parts)
    kind = "webp" if alpha or packing.image_format == "webp" else "jpeg"
    for quality in (90, 80, 65):
        if packing.image_format == "png" or quality < packing.image_quality:
            yield replace(packing, image_format=kind, image_quality=quality)


def _note(limit: int, size: int, texels: int, wanted: int, vertices: int, packing: Packing, choice: Packing) -> str:
    changes = []
    if choice != packing:
        changes.append(f"textures as {choice.image_format} of quality {choice.image_quality}")
    if texels != size:
        changes.append(f"textures of {texels} px")
    if vertices != wanted:
        changes.append(f"at most {vertices:,} vertices")
    return f"To fit into {limit / 1e6:g} MB: {', '.join(changes)}." if changes else ""
