"""Textured models from files: triangles with materials, in our frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..mesh.frames import texturing_mesh_preprocess, y_up_to_z_up
from ..mesh.topology import Array
from ..ovoxel.mipmap import Texture2D
from ..ovoxel.textured_mesh import BLEND, MASK, OPAQUE, Material, TexturedMesh
from .beside import Beside
from .images import check_picture, decoded
from .plain import COLORS
from .read import read_parts, release

MAX_SIDE = 2048


def read_textured_mesh(data: bytes, kind: str, beside: Beside | None = None) -> TexturedMesh:
    """A model with its materials and vertex colours, its bounding box fitted into the unit cube, z up.

    Files are taken to be y up. Colours of vertices and factors of materials count as they are written.

    Args:
        kind: one of `read.FORMATS`.
        beside: where materials and pictures of the file lie.

    Raises:
        InputError: damaged, without triangles, or without a file that it refers to.
    """
    beside = beside or Beside()
    parts = read_parts(data, kind, beside, textured=True)
    if beside.missing:
        raise InputError(
            f"The model refers to {', '.join(map(repr, dict.fromkeys(beside.missing)))}, not found beside it: put the file "
            "there, save the model as GLB, or take the name out of it."
        )
    for path in beside.used if kind.lower().lstrip(".") not in ("glb", "gltf") else ():
        if path.suffix.lower() != ".mtl":
            check_picture(path.read_bytes(), path.name)  # trimesh goes on without a picture that it cannot open
    corners = [torch.from_numpy(np.asarray(p.vertices, np.float64)[p.faces]) for p in parts]
    normals = [torch.from_numpy(np.array(p.vertex_normals, np.float32)[p.faces]) for p in parts]
    colors = [_colors(p) for p in parts]
    placed = texturing_mesh_preprocess(torch.cat(corners).flatten(0, 1)).view(-1, 3, 3)
    ids = [torch.full((len(p.faces),), number) for number, p in enumerate(parts)]
    mesh = TexturedMesh(
        placed.float(), y_up_to_z_up(torch.cat(normals)), torch.cat([_uvs(p) for p in parts]), torch.cat(ids),
        tuple(_material(p, c is not None) for p, c in zip(parts, colors, strict=True)),
        _joined(colors, [len(p.faces) for p in parts]),
    )  # fmt: skip
    release(parts)
    return mesh


def _colors(part: Any) -> Array | None:
    """Colours of the corners float32 [F, 3, 3], None where none are written."""
    visual = part.visual
    if visual.kind == "face":
        return np.repeat(visual.face_colors[:, None, :3].astype(np.float32) / 255, 3, 1)
    if visual.kind == "vertex":
        return visual.vertex_colors[:, :3].astype(np.float32)[part.faces] / 255
    found = part.vertex_attributes.get(COLORS)
    return None if found is None else np.asarray(found, np.float32)[:, :3][part.faces]


def _joined(colors: list[Array | None], counts: list[int]) -> Tensor | None:
    if all(found is None for found in colors):
        return None
    white = [np.ones((count, 3, 3), np.float32) if c is None else c for c, count in zip(colors, counts, strict=True)]
    return torch.from_numpy(np.concatenate(white))


def _uvs(part: Any) -> Tensor:
    uvs = getattr(part.visual, "uv", None)
    if uvs is None or len(uvs) != len(part.vertices):
        return torch.zeros(len(part.faces), 3, 2)
    return torch.from_numpy(np.asarray(uvs, np.float32)[part.faces])


def _material(part: Any, painted: bool) -> Material:
    """`painted`: whether its vertices or faces have colours."""
    found = getattr(part.visual, "material", None)
    if found is None:
        colour = (1.0, 1.0, 1.0) if painted else tuple(np.asarray(part.visual.main_color[:3]) / 255)
        return Material(base_color_factor=colour, metallic_factor=0.0, roughness_factor=0.6)
    plain = not hasattr(found, "baseColorFactor")
    mtl = getattr(found, "kwargs", {})
    written = {key: value[0] for key, value in mtl.items() if key in ("pm", "pr") and len(value)}
    uncoloured = plain and "kd" not in mtl  # trimesh would darken the texture by its own grey
    found = found.to_pbr() if plain else found
    white = uncoloured or found.baseColorFactor is None
    factor = np.ones(4) if white else np.asarray(found.baseColorFactor, np.float64)
    factor = factor / 255 if factor.max() > 1 else factor
    colour = _picture(found.baseColorTexture, "RGBA")
    mixed = _picture(found.metallicRoughnessTexture, "RGB")
    mode = {"MASK": MASK, "BLEND": BLEND}.get(str(found.alphaMode).upper(), OPAQUE)
    return Material(
        base_color_factor=(float(factor[0]), float(factor[1]), float(factor[2])),
        base_color=None if colour is None else Texture2D.build(colour[..., :3].contiguous()),
        metallic_factor=_number(written.get("pm", 0.0) if plain else found.metallicFactor, 1.0),
        metallic=None if mixed is None else Texture2D.build(mixed[..., 2].contiguous()),
        roughness_factor=_number(written.get("pr", 0.6) if plain else found.roughnessFactor, 1.0),
        roughness=None if mixed is None else Texture2D.build(mixed[..., 1].contiguous()),
        alpha_mode=mode,
        alpha_cutoff=_number(found.alphaCutoff, 0.5),
        alpha_factor=float(factor[3]) if len(factor) > 3 else 1.0,
        alpha=None if colour is None or mode == OPAQUE else Texture2D.build(colour[..., 3].contiguous()),
    )


def _picture(picture: Image.Image | None, mode: str) -> Tensor | None:
    """uint8 [S, S, C], its side a power of two as filtered lookup needs it."""
    if picture is None:
        return None
    side = min(1 << (max(picture.size) - 1).bit_length(), MAX_SIDE)
    return torch.from_numpy(np.asarray(decoded(picture, mode).resize((side, side), Image.Resampling.BILINEAR)).copy())


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)
