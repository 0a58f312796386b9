"""What a finished asset is like, in numbers and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from .topology import Array, edges, face_components


@dataclass(frozen=True)
class AssetReport:
    """Facts about one asset.

    Attributes:
        vertices, faces, components: of the surface, before it was cut into charts.
        boundary_edges: edges with one face; non_manifold_edges: with more than two.
        watertight: every edge has two faces that traverse it in opposite directions.
        volume: signed, in object units cubed; positive if the faces look outward.
        charts, exported_vertices: of the unwrapped mesh.
        texture_size: texels along a side.
        atlas_use: share of the atlas that charts cover, overlap: share of covered texels that are covered twice.
        texels_per_face: median.
        alpha_mode, see_through: how alpha is used, and the share of the surface with alpha below 0.9.
        file_bytes: of the GLB.
        seconds: time spent in each step.
    """

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    non_manifold_edges: int
    watertight: bool
    volume: float
    charts: int
    exported_vertices: int
    texture_size: int
    atlas_use: float
    overlap: float
    texels_per_face: float
    alpha_mode: str
    see_through: float
    file_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """A few lines for people, with what they might want to change."""
        state = "watertight" if self.watertight else f"{self.boundary_edges} boundary edges"
        if self.non_manifold_edges:
            state += f", {self.non_manifold_edges} non-manifold edges"
        lines = [
            f"Mesh     {self.vertices:,} vertices, {self.faces:,} faces, {self.components} components, {state}",
            f"Volume   {self.volume:.4f}",
            f"Texture  {self.texture_size} px, {self.charts:,} charts on {self.atlas_use:.0%} of the atlas, "
            f"{self.texels_per_face:g} texels per triangle",
            f"Alpha    {self.alpha_mode}, {self.see_through:.1%} see-through",
            f"File     {self.file_bytes / 1e6:.2f} MB, {self.exported_vertices:,} vertices",
            f"Time     {sum(self.seconds.values()):.2f} s: "
            + ", ".join(f"{step} {seconds:.2f}" for step, seconds in self.seconds.items()),
        ]
        return "\n".join(lines + [f"Note     {warning}" for warning in self.warnings()])

    def warnings(self) -> list[str]:
        """What is likely to be seen as a fault, and what to do about it."""
        found = []
        if self.texels_per_face < 4:
            found.append(
                f"{self.texture_size} px are few texels for {self.faces:,} triangles: raise texture_size or lower "
                "decimation_target."
            )
        if self.overlap > 5e-4:
            found.append(f"Charts overlap on {self.overlap:.2%} of the texture.")
        if self.volume < 0 and self.watertight:
            found.append("The surface is inside out.")
        return found


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
