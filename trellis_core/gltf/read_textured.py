"""Textured models from files: triangles with materials, in our frame (GLB, OBJ and what else `trimesh` reads)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..mesh.frames import texturing_mesh_preprocess, y_up_to_z_up
from ..ovoxel.mipmap import Texture2D
from ..ovoxel.textured_mesh import BLEND, MASK, OPAQUE, Material, TexturedMesh

MAX_SIDE = 2048


def read_textured_mesh(data: bytes, kind: str, resolver: Any = None) -> TexturedMesh:
    """A model with its materials, its bounding box fitted into the unit cube, z up; files are taken to be y up.

    Args:
        kind: "glb", "obj", ...
        resolver: how an OBJ finds its materials and pictures: `trimesh.resolvers`.

    Raises:
        InputError: damaged, without triangles, or trimesh is not installed.
    """
    try:
        import trimesh
    except ImportError:
        raise InputError("Reading textured models needs the trimesh package: pip install trimesh.") from None
    try:
        scene = trimesh.load(io.BytesIO(data), file_type=kind, force="scene", resolver=resolver, process=False)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError) as error:
        raise InputError(f"The file cannot be read as .{kind}: {error}.") from error
    if not parts:
        raise InputError("The file holds no triangles.")
    corners = [torch.from_numpy(np.asarray(p.vertices, np.float64)[p.faces]) for p in parts]
    normals = [torch.from_numpy(np.array(p.vertex_normals, np.float32)[p.faces]) for p in parts]
    placed = texturing_mesh_preprocess(torch.cat(corners).flatten(0, 1)).view(-1, 3, 3)
    ids = [torch.full((len(p.faces),), number) for number, p in enumerate(parts)]
    return TexturedMesh(
        placed.float(), y_up_to_z_up(torch.cat(normals)), torch.cat([_uvs(p) for p in parts]), torch.cat(ids),
        tuple(_material(p) for p in parts),
    )  # fmt: skip


def _uvs(part: Any) -> Tensor:
    uvs = getattr(part.visual, "uv", None)
    if uvs is None or len(uvs) != len(part.vertices):
        return torch.zeros(len(part.faces), 3, 2)
    return torch.from_numpy(np.asarray(uvs, np.float32)[part.faces])


def _material(part: Any) -> Material:
    found = getattr(part.visual, "material", None)
    if found is None:  # colours of vertices or faces: their mean
        colour = np.asarray(part.visual.main_color[:3], np.float64) / 255
        return Material(base_color_factor=tuple(colour), metallic_factor=0.0, roughness_factor=0.6)
    plain = not hasattr(found, "baseColorFactor")
    written = {key: value[0] for key, value in getattr(found, "kwargs", {}).items() if key in ("pm", "pr") and len(value)}
    found = found.to_pbr() if plain else found
    factor = np.ones(4) if found.baseColorFactor is None else np.asarray(found.baseColorFactor, np.float64)
    factor = factor / 255 if factor.max() > 1 else factor
    colour = _picture(found.baseColorTexture, "RGBA")
    mixed = _picture(found.metallicRoughnessTexture, "RGB")
    mode = {"MASK": MASK, "BLEND": BLEND}.get(str(found.alphaMode).upper(), OPAQUE)
    return Material(
        base_color_factor=tuple(map(float, factor[:3])),
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
    return torch.from_numpy(np.asarray(picture.convert(mode).resize((side, side), Image.Resampling.BILINEAR)).copy())


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)
