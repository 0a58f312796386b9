"""Where a finished model stands: its origin, its size, and which way is up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..mesh.topology import Array


@dataclass(frozen=True)
class Placement:
    """From object space (z up) to the space of a file: (point - pivot) * scale, then the axes of the file.

    Attributes:
        pivot: the point of object space that becomes the origin.
        scale: file units (metres in glTF) per object unit.
        up_axis: "y" turns the model upright for glTF, as (x, z, -y); "z" leaves the axes.
    """

    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    up_axis: str = "y"

    @classmethod
    def of(cls, vertices: Array, pivot: str = "origin", size: float = 0.0, up_axis: str = "y") -> Placement:
        """Place vertices float [V, 3].

        Args:
            pivot: "origin" keeps that of the voxels; "center" is the middle of the bounding box; "ground" the middle of its
                lower side, so that the model stands on the floor.
            size: the longest side of the bounding box in metres; 0 keeps the unit.
            up_axis: "y" or "z".
        """
        low, high = vertices.min(0).astype(np.float64), vertices.max(0).astype(np.float64)
        point = np.zeros(3) if pivot == "origin" else (low + high) / 2
        if pivot == "ground":
            point[2] = low[2]
        longest = float((high - low).max())
        x, y, z = point.tolist()
        return cls((x, y, z), size / longest if size > 0 and longest > 0 else 1.0, up_axis)

    def points(self, points: Array) -> Array:
        """Positions [N, 3] in the file, float32."""
        if self.pivot == (0.0, 0.0, 0.0) and self.scale == 1:
            return self.directions(points)
        return self.directions((points - np.array(self.pivot)) * self.scale)

    def directions(self, vectors: Array) -> Array:
        """Normals or tangents [N, 3] in the file, float32."""
        turned = np.stack([vectors[:, 0], vectors[:, 2], -vectors[:, 1]], axis=1) if self.up_axis == "y" else vectors
        return np.ascontiguousarray(turned, np.float32)
