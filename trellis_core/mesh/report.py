"""What a finished asset is like, in numbers and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from .topology import Array, edges, face_components

TEXTURE_SIZES = (1024, 2048, 4096, 8192)
_FEW_TEXELS = 4
"""Texels of the median triangle below which colours are averages over triangles."""


@dataclass(frozen=True)
class AssetReport:
    """Facts about one asset.

    Attributes:
        vertices, faces, components: of the surface, before it was cut into charts.
        boundary_edges: edges with one face; non_manifold_edges: with more than two.
        watertight: every edge has two faces that traverse it in opposite directions.
        volume: signed, in object units cubed; positive if the faces look outward.
        aniso_median, aniso_95, stretch_99: how unevenly the texture is stretched over the surface, see `stretch`.
        charts, exported_vertices: of the unwrapped mesh.
        texture_size: texels along a side.
        atlas_use: share of the atlas that charts cover, overlap: share of covered texels that are covered twice.
        texels_per_face: median.
        alpha_mode, see_through: how alpha is used, and the share of the surface with alpha below 0.9.
        level_faces: faces of each level of detail, the finest first.
        file_bytes: of the GLB.
        note: what gave way for a limit of the file's size, or nothing.
        seconds: time spent in each step.
    """

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    non_manifold_edges: int
    watertight: bool
    volume: float
    aniso_median: float
    aniso_95: float
    stretch_99: float
    charts: int
    exported_vertices: int
    texture_size: int
    atlas_use: float
    overlap: float
    texels_per_face: float
    alpha_mode: str
    see_through: float
    level_faces: tuple[int, ...]
    file_bytes: int
    note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """All fields as a JSON object, and `warnings`."""
        return json.dumps(asdict(self) | {"warnings": self.warnings()}, indent=2)

    def to_text(self) -> str:
        """A few lines for people, with what they might want to change."""
        state = "watertight" if self.watertight else f"{self.boundary_edges:,} boundary edges"
        if self.non_manifold_edges:
            state += f", {self.non_manifold_edges:,} non-manifold edges"
        lines = [
            f"Mesh     {self.vertices:,} vertices, {self.faces:,} faces, {_count(self.components, 'component')}, {state}",
            f"Volume   {self.volume:.4f}",
            f"Texture  {self.texture_size} px, {_count(self.charts, 'chart')} on {self.atlas_use:.0%} of the atlas, "
            f"{self.texels_per_face:g} texels per triangle",
            f"Stretch  {self.aniso_median:.2f} in the middle, {self.aniso_95:.2f} at 95 %, {self.stretch_99:.2f} at most",
            f"Alpha    {self.alpha_mode}, {self.see_through:.1%} see-through",
            f"File     {self.file_bytes / 1e6:.2f} MB, {self.exported_vertices:,} vertices",
            f"Time     {sum(self.seconds.values()):.2f} s: "
            + ", ".join(f"{step} {seconds:.2f}" for step, seconds in self.seconds.items()),
        ]
        if len(self.level_faces) > 1:
            lines.insert(-1, "Levels   " + ", ".join(f"{faces:,}" for faces in self.level_faces) + " faces")
        return "\n".join(lines + [f"Note     {warning}" for warning in self.warnings()])

    def warnings(self) -> list[str]:
        """What is likely to be seen as a fault, and what to do about it; and what was changed unasked."""
        found = [self.note] if self.note else []
        if self.texels_per_face < _FEW_TEXELS:
            found.append(self._few_texels())
        if self.overlap > 5e-4:
            found.append(
                f"Charts overlap on {self.overlap:.2%} of the texture: lower uv_unwrap_angle_threshold_deg for flatter ones."
            )
        if self.aniso_95 > 2:
            found.append(
                f"Textures are stretched {self.aniso_95:.1f} times on some slopes: lower uv_unwrap_angle_threshold_deg."
            )
        if self.non_manifold_edges:
            found.append(
                f"{self.non_manifold_edges:,} edges have more than two faces, which slicers and physics engines may refuse: "
                "turn remesh on."
            )
        if self.volume < 0 and self.watertight:
            found.append("The surface is inside out: turn remesh on.")
        return found

    def _few_texels(self) -> str:
        """Advice on an atlas whose triangles are small: the next size that would do, or how many triangles would."""
        lack = _FEW_TEXELS / max(self.texels_per_face, 0.5)
        needed = self.texture_size * lack**0.5
        larger = next((size for size in TEXTURE_SIZES if size >= needed and size > self.texture_size), None)
        fewer = max(int(self.faces / lack), 1)
        fewer = round(fewer, 1 - len(str(fewer)))
        advice = f"use {larger} or {_short(fewer)} triangles" if larger else f"use {_short(fewer)} triangles"
        return f"Atlas of {self.texture_size} px too small for {_short(self.faces)} triangles: {advice}."


def surface_facts(vertices: Array, faces: Array) -> dict[str, object]:
    """The report's fields about a surface float32 [V, 3], int [F, 3]."""
    found = edges(faces)
    directed = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2).astype(np.int64)
    key = directed[:, 0] * (len(vertices) + 1) + directed[:, 1]
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return {
        "vertices": len(vertices),
        "faces": len(faces),
        "components": int(face_components(faces, found).max()) + 1,
        "boundary_edges": int((found.counts == 1).sum()),
        "non_manifold_edges": int((found.counts > 2).sum()),
        "watertight": bool((found.counts == 2).all()) and len(np.unique(key)) == len(key),
        "volume": float((np.cross(a, b) * c).sum() / 6),
    }


def stretch(vertices: Array, faces: Array, uvs: Array) -> dict[str, float]:
    """The report's fields about a parametrisation: vertices float32 [V, 3], faces int [F, 3], uvs float32 [V, 2].

    The map from texture to surface stretches each triangle by its two singular values s1 >= s2. Quantiles are weighted by
    area: of s1 / s2, and of s1 over the root mean square of all singular values (Sander et al. 2001's L-infinity, normalised).
    """
    points, flat = vertices[faces].astype(np.float64), uvs[faces].astype(np.float64)
    e1, e2 = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    (u1, v1), (u2, v2) = (flat[:, 1] - flat[:, 0]).T, (flat[:, 2] - flat[:, 0]).T
    det = u1 * v2 - u2 * v1
    area = np.linalg.norm(np.cross(e1, e2), axis=1)
    good = (np.abs(det) > 1e-16) & (area > 1e-16)
    if not good.any():
        return {"aniso_median": 1.0, "aniso_95": 1.0, "stretch_99": 1.0}
    inverse = np.divide(1, det, out=np.zeros_like(det), where=good)[:, None]
    along_u, along_v = (e1 * v2[:, None] - e2 * v1[:, None]) * inverse, (e2 * u1[:, None] - e1 * u2[:, None]) * inverse
    a, b, c = (along_u**2).sum(1), (along_u * along_v).sum(1), (along_v**2).sum(1)
    spread = np.sqrt(((a - c) / 2) ** 2 + b**2)
    most, least = np.sqrt((a + c) / 2 + spread), np.sqrt(np.maximum((a + c) / 2 - spread, 1e-30))
    weight = area * good
    mean = np.sqrt(((a + c) / 2 * weight).sum() / weight.sum())
    order = np.argsort(most / least, kind="stable")
    return {
        "aniso_median": _quantile((most / least)[order], weight[order], 0.5),
        "aniso_95": _quantile((most / least)[order], weight[order], 0.95),
        "stretch_99": _quantile(np.sort(most / mean), weight[np.argsort(most / mean)], 0.99),
    }


def _quantile(ascending: Array, weight: Array, share: float) -> float:
    total = np.cumsum(weight)
    return float(ascending[min(np.searchsorted(total, share * total[-1]), len(total) - 1)])


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _short(number: int) -> str:
    for unit, name in ((1_000_000, " M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
