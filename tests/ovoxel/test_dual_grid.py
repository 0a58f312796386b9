"""Dual grid -> mesh: every quad is a crossed grid edge, whatever the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.errors import InputError
from trellis_core.ovoxel.brick_table import BrickTable, find_rows_reference
from trellis_core.ovoxel.dual_grid import dual_grid_quads, dual_grid_to_mesh

SEEDS = st.integers(0, 2**31)


def random_grid(seed: int, size: int, share: float) -> tuple[torch.Tensor, ...]:
    """Shuffled active voxels of a random grid with random vertices, flags and weights."""
    rng = torch.Generator().manual_seed(seed)
    coords = (torch.rand(size, size, size, generator=rng) < share).nonzero()
    coords = coords[torch.randperm(len(coords), generator=rng)].int()
    n = len(coords)
    return coords, torch.rand(n, 3, generator=rng), torch.rand(n, 3, generator=rng) < 0.5, torch.rand(n, 1, generator=rng) + 0.1


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 19), st.floats(0, 1))
def test_brick_table_agrees_with_sorted_search(seed: int, size: int, share: float) -> None:
    coords = random_grid(seed, size, share)[0]
    query = torch.randint(-12, size + 12, (500, 3), generator=torch.Generator().manual_seed(seed))
    found = BrickTable.build(coords, size).find(*query.unbind(1))
    assert torch.equal(found.long(), find_rows_reference(coords, query))


def test_first_of_equal_coordinates_wins() -> None:
    coords = torch.tensor([[1, 2, 3], [0, 0, 0], [1, 2, 3]])
    for found in (BrickTable.build(coords, 4).find(*coords.unbind(1)), find_rows_reference(coords, coords)):
        assert found.tolist() == [0, 1, 0]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 10))
def test_quads_surround_their_edge(seed: int, size: int) -> None:
    coords, dual, flags, _ = random_grid(seed, size, 0.6)
    quads = dual_grid_quads(coords, flags, size)
    corners = coords[quads.long()]
    steps = corners - corners[:, :1]
    assert ((steps == 0) | (steps == 1)).all()
    axis = (steps.amax(1) == 0).int().argmax(1)
    assert flags[quads[:, 0].long(), axis].all()
    # And every flag whose four voxels are active has its quad.
    active = torch.zeros(size + 1, size + 1, size + 1, dtype=torch.bool)
    active[tuple(coords.long().unbind(1))] = True
    wanted = 0
    for along in range(3):
        b, c = torch.eye(3, dtype=torch.int64)[[(along + 1) % 3, (along + 2) % 3]]
        around = [active[tuple((coords + step).long().unbind(1))] for step in (0 * b, b, c, b + c)]
        wanted += int((flags[:, along] & torch.stack(around).all(0)).sum())
    assert len(quads) == wanted
    mesh = dual_grid_to_mesh(coords, dual, flags, None, size)
    assert len(mesh.faces) == 2 * len(quads)
    # Each face stays with its quad, and points to minus the axis when vertices sit at voxel centres.
    centred = dual_grid_to_mesh(coords, torch.full_like(dual, 0.5), flags, None, size)
    a, b, c = centred.vertices[centred.faces.long()].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    assert (normal.gather(1, axis.repeat_interleave(2)[:, None]) < 0).all()


def test_without_weights_the_flatter_split_wins() -> None:
    coords = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]])
    flags = torch.zeros(4, 3, dtype=torch.bool)
    flags[0, 2] = True
    dual = torch.full((4, 3), 0.5)
    dual[2] = torch.tensor([0.5, 0.5, 0.95])  # one lifted corner: cutting it off along q1-q3 bends less
    bent = {}
    for quirks in (False, True):
        mesh = dual_grid_to_mesh(coords, dual, flags, None, 2, reference_quirks=quirks)
        a, b, c = mesh.vertices[mesh.faces.long()].unbind(1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
        bent[quirks] = float(normal[0] @ normal[1])
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert bent[False] > bent[True] + 1e-3


def test_train_mesh_carries_gradients() -> None:
    coords, dual, flags, weight = random_grid(0, 6, 0.8)
    dual.requires_grad_(), weight.requires_grad_()
    mesh = dual_grid_to_mesh(coords, dual, flags, weight, 6, train=True)
    assert len(mesh.faces) == 4 * (len(mesh.vertices) - len(coords))
    mesh.vertices.square().sum().backward()
    assert dual.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0


def test_empty_grid_gives_empty_mesh() -> None:
    none = torch.zeros(0, 3)
    mesh = dual_grid_to_mesh(none.int(), none, none.bool(), none[:, :1], 8)
    assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    coords, dual, flags, weight = random_grid(0, 4, 0.8)
    with pytest.raises(InputError, match="belong together"):
        dual_grid_to_mesh(coords, dual[1:], flags, weight, 4)
