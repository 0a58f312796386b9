"""What a finished asset is like, in numbers and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..mesh.topology import Array, Edges, blocks, edges, face_components, manifold_pairs, same_direction, stable_order
from ..settings import FILE_FIELDS, STAGE_PREFIX, SURFACE_FIELDS, TEXTURE_FIELDS

_FINISH = frozenset((*SURFACE_FIELDS, *TEXTURE_FIELDS, *FILE_FIELDS))
TEXTURE_SIZES = (1024, 2048, 4096, 8192)
EXTRAS = "trellis_core"
"""Key of a GLB's `asset.extras` that holds `made_with`."""
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
        alpha_mode, see_through: how alpha is used, and the share of the surface with alpha below 0.7.
        level_faces: faces of each level of detail, the finest first.
        file_bytes: of the GLB.
        note: what gave way for a limit of the file's size, or nothing.
        seconds: time spent in each step.
        made_with: every setting by its name with the value that was used, and weights, seed and LoRAs where they are known.
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
    made_with: Mapping[str, Any] = field(default_factory=dict)

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
        return "\n".join(lines + [f"Note     {warning}" for warning in self.warnings()] + self._used())

    def _used(self) -> list[str]:
        """What it was made with: a line for each sampler, one for what comes before and one for what comes after."""
        groups: dict[str, list[str]] = {"Made    ": []}
        for name, value in self.made_with.items():
            stage = next((stage for stage, prefix in STAGE_PREFIX.items() if name.startswith(f"{prefix}_")), None)
            key = f"{stage.capitalize():8}" if stage else "Finish  " if name in _FINISH else "Made    "
            short = name.removeprefix(f"{STAGE_PREFIX[stage]}_") if stage else name
            groups.setdefault(key, []).append(f"{short} {_shown(value)}")
        return [f"{key} {', '.join(texts)}" for key, texts in groups.items() if texts]

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


def surface_facts(vertices: Array, faces: Array, found: Edges | None = None) -> dict[str, Any]:
    """The report's fields about a surface float32 [V, 3], int [F, 3], whose edges may be known."""
    found = found or edges(faces)
    pairs = manifold_pairs(found)[1].T
    points = np.ascontiguousarray(vertices.T, np.float64)
    volume = 0.0
    for rows in blocks(len(faces)):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (points.take(faces[rows, k], axis=1) for k in range(3))
        volume += float((ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)).sum()) / 6
    return {
        "vertices": len(vertices),
        "faces": len(faces),
        "components": int(face_components(faces, found).max()) + 1,
        "boundary_edges": int((found.counts == 1).sum()),
        "non_manifold_edges": int((found.counts > 2).sum()),
        "watertight": pairs.shape[1] == len(found.counts) and not same_direction(faces, *pairs).any(),
        "volume": volume,
    }


def stretch(vertices: Array, faces: Array, uvs: Array) -> dict[str, float]:
    """The report's fields about a parametrisation: vertices float32 [V, 3], faces int [F, 3], uvs float32 [V, 2].

    The map from texture to surface stretches each triangle by its two singular values s1 >= s2. Quantiles are weighted by
    area: of s1 / s2, and of s1 over the root mean square of all singular values (Sander et al. 2001's L-infinity, normalised).
    """
    columns = np.ascontiguousarray(np.concatenate([vertices, uvs], axis=1).T, np.float64)
    most, ratio, weight = (np.empty(len(faces)) for _ in range(3))
    total = 0.0
    for rows in blocks(len(faces)):
        a, b, c = (columns.take(faces[rows, k], axis=1) for k in range(3))
        (*e1, u1, v1), (*e2, u2, v2) = b - a, c - a
        p, q, r = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((e1, e1), (e1, e2), (e2, e2)))
        area, det = np.sqrt(np.maximum(p * r - q * q, 0)), u1 * v2 - u2 * v1
        good = (np.abs(det) > 1e-16) & (area > 1e-16)
        inverse = np.divide(1, det * det, out=np.zeros_like(det), where=good)
        # The first fundamental form of the map from texture to surface, and its eigenvalues.
        uu = (p * v2 * v2 - 2 * q * v1 * v2 + r * v1 * v1) * inverse
        vv = (p * u2 * u2 - 2 * q * u1 * u2 + r * u1 * u1) * inverse
        uv = (q * (u1 * v2 + u2 * v1) - p * u2 * v2 - r * u1 * v1) * inverse
        middle, spread = (uu + vv) / 2, np.sqrt(((uu - vv) / 2) ** 2 + uv * uv)
        most[rows] = np.sqrt(middle + spread)
        ratio[rows] = most[rows] / np.sqrt(np.maximum(middle - spread, 1e-30))
        weight[rows] = area * good
        total += float((middle * weight[rows]).sum())
    if not weight.any():
        return {"aniso_median": 1.0, "aniso_95": 1.0, "stretch_99": 1.0}
    median, high = _quantiles(ratio, weight, 0.5, 0.95)
    return {
        "aniso_median": median,
        "aniso_95": high,
        "stretch_99": _quantiles(most, weight, 0.99)[0] / float(np.sqrt(total / weight.sum())),
    }


def _quantiles(values: Array, weight: Array, *shares: float) -> list[float]:
    """Weighted quantiles of positive values [N]."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)  # positive floats are ordered like their bits
    order, _ = stable_order(bits)
    total = np.cumsum(weight[order])
    return [float(values[order[min(np.searchsorted(total, share * total[-1]), len(total) - 1)]]) for share in shares]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else " + ".join(value) if isinstance(value, list) else str(value)


def _short(number: int) -> str:
    for unit, name in ((1_000_000, " M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
