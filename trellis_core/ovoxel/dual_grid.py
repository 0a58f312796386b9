"""Flexible dual grid -> triangle mesh (docs/method/mesh.md): one vertex a voxel, one quad a crossed grid edge."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..values import Mesh
from .brick_table import BrickTable

# The four voxels around the grid edge that flag `axis` of voxel q0 stands for: steps from q0, in winding order.
_QUAD_STEPS = (
    ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
)
UNIT_CUBE = ((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))


def dual_grid_to_mesh(
    coords: Tensor,
    dual_vertices: Tensor,
    intersected: Tensor,
    split_weight: Tensor | None,
    grid_size: int,
    *,
    aabb: tuple[tuple[float, ...], tuple[float, ...]] = UNIT_CUBE,
    train: bool = False,
    reference_quirks: bool = False,
) -> Mesh:
    """Connect the dual vertices around every crossed grid edge (docs/method/mesh.md).

    Args:
        coords: integer [N, 3] active voxels, each in 0..grid_size-1, no duplicates, any order.
        dual_vertices: float [N, 3] position inside the voxel, in voxels (nominally 0..1).
        intersected: bool [N, 3]; flag a of a voxel: the surface crosses the grid edge along axis a at the voxel's far corner.
        split_weight: positive float [N, 1], or None to split every quad where its two triangles are most co-planar.
        grid_size: voxels per axis of `aabb`.
        aabb: low and high corner of the grid in object space.
        train: keep quads whole by a weighted mid vertex and four triangles; differentiable in vertices and weights.
        reference_quirks: without split weights, split as the reference does, which never compares the two triangles.

    Returns:
        Vertices float32 [N, 3], row n belongs to voxel n even if no face uses it ([N + Q, 3] in train mode), and faces int32
        [2Q, 3] ([4Q, 3]). A quad's normal points along minus its axis whatever is inside: orientation is the caller's.

    Raises:
        InputError: the tensors do not belong together.
    """
    if not len(coords) == len(dual_vertices) == len(intersected):
        rows = f"{len(coords)} coords, {len(dual_vertices)} vertices, {len(intersected)} flags"
        raise InputError(f"The parts of the dual grid do not belong together: {rows}.")
    low, high = torch.tensor(aabb, dtype=torch.float32, device=coords.device)
    vertices = (coords + dual_vertices.float()) * ((high - low) / grid_size) + low
    quads = dual_grid_quads(coords, intersected, grid_size)
    if train:
        return _fan_quads(vertices, quads, split_weight)
    along_02 = _split_along_02(vertices, quads, split_weight, reference_quirks)
    q0, q1, q2, q3 = quads.unbind(1)
    faces = torch.where(along_02[:, None], torch.stack([q0, q1, q2, q0, q2, q3], 1), torch.stack([q0, q1, q3, q3, q1, q2], 1))
    return Mesh(vertices, faces.view(-1, 3), coords.int())


def dual_grid_quads(coords: Tensor, intersected: Tensor, grid_size: int) -> Tensor:
    """Voxel rows int32 [Q, 4] around each crossed edge whose four voxels are all active; by voxel row, then axis."""
    row, axis = intersected.nonzero(as_tuple=True)
    steps = torch.tensor(_QUAD_STEPS, dtype=torch.int32, device=coords.device)
    table = BrickTable.build(coords, grid_size)
    quads = torch.empty(len(row), 4, dtype=torch.int32, device=coords.device)
    quads[:, 0] = row
    origin = coords.int()[row]
    for corner in range(1, 4):
        quads[:, corner] = table.find(*(origin + steps[axis, corner]).unbind(1))
    return quads[(quads >= 0).all(1)]


def _split_along_02(vertices: Tensor, quads: Tensor, split_weight: Tensor | None, reference_quirks: bool) -> Tensor:
    """True where the diagonal q0-q2 is taken, False for q1-q3."""
    if split_weight is not None:
        w0, w1, w2, w3 = split_weight.flatten()[quads].unbind(1)
        return w0 * w2 > w1 * w3
    v0, v1, v2, v3 = vertices[quads].unbind(1)
    first = _normal(v0, v1, v2)
    if reference_quirks:
        return first.square().sum(1) > 0
    unit = torch.nn.functional.normalize
    bend_02 = (unit(first) * unit(_normal(v0, v2, v3))).sum(1)
    bend_13 = (unit(_normal(v0, v1, v3)) * unit(_normal(v3, v1, v2))).sum(1)
    return bend_02 >= bend_13


def _normal(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.linalg.cross(b - a, c - a, dim=1)


def _fan_quads(vertices: Tensor, quads: Tensor, split_weight: Tensor | None) -> Mesh:
    """Four triangles around a mid vertex that slides between the two diagonals' mid points."""
    weight = torch.ones_like(vertices[:, 0]) if split_weight is None else split_weight.flatten()
    w0, w1, w2, w3 = weight[quads].unbind(1)
    v0, v1, v2, v3 = vertices[quads].unbind(1)
    w02, w13 = (w0 * w2)[:, None], (w1 * w3)[:, None]
    middle = (w02 * (v0 + v2) + w13 * (v1 + v3)) / (2 * (w02 + w13))
    m = torch.arange(len(vertices), len(vertices) + len(quads), dtype=quads.dtype, device=quads.device)
    q0, q1, q2, q3 = quads.unbind(1)
    faces = torch.stack([q0, q1, m, q1, q2, m, q2, q3, m, q3, q0, m], 1).view(-1, 3)
    return Mesh(torch.cat([vertices, middle]), faces)
