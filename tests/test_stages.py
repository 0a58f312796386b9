from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_family import LATENT, make_family, picture
from trellis_core import sampling, stages
from trellis_core.context import RunContext
from trellis_core.errors import Cancelled, EmptyResultError, InputError
from trellis_core.family import Family, load_family
from trellis_core.settings import GenerationSettings
from trellis_core.values import Condition, Shape, Structure

STEPS = {f"{p}_sampling_steps": 2 for p in ("ss", "shape_slat", "tex_slat")}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(make_family(tmp_path_factory.mktemp("weights") / "tiny"))


@pytest.fixture(scope="module")
def seen(family: Family) -> Condition:
    return stages.condition(family, picture())


def settings(**values: object) -> GenerationSettings:
    return GenerationSettings(**{**STEPS, "resolution": 512, **values})


def shape_of(family: Family, seen: Condition, chosen: GenerationSettings, seed: int = 3, samples: int = 1) -> Shape:
    structure = stages.sample_structure(family, seen, chosen, seed, samples=samples)
    return stages.sample_shape(family, seen, structure, chosen)


def test_condition_makes_the_tokens_that_a_resolution_needs(family: Family, seen: Condition) -> None:
    assert set(seen.tokens) == {512, 1024}
    assert seen.tokens[512].shape == (1, 1 + 4 + 16, 16) and seen.tokens[512].dtype == torch.float32
    assert seen.pictures[0].dtype == torch.uint8 and seen.pictures[0].shape[0] == seen.pictures[0].shape[1]
    alone = stages.condition(family, picture(), settings(resolution=512))
    assert set(alone.tokens) == {512} and torch.equal(alone.tokens[512], seen.tokens[512])


def test_cropped_pictures_are_taken_as_they_are(family: Family, seen: Condition) -> None:
    from PIL import Image

    square = Image.fromarray(seen.pictures[0].numpy())
    assert torch.equal(stages.condition(family, square, cropped=True).tokens[512], seen.tokens[512])
    with pytest.raises(InputError, match="transparent background"):
        stages.condition(family, square)


def test_noise_is_drawn_in_the_published_order(family: Family, seen: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = sampling.sample

    def sample(model, noise, *args, **kwargs):
        drawn.append(noise)
        return original(model, noise, *args, **kwargs)

    monkeypatch.setattr(sampling, "sample", sample)
    chosen = settings(resolution=1024)
    shape = shape_of(family, seen, chosen, seed=2**32 - 1)
    stages.sample_texture(family, seen, shape, chosen)
    torch.manual_seed(2**32 - 1)
    assert [tuple(n.shape[1:]) for n in drawn] == [(LATENT, 4, 4, 4)] + [(LATENT,)] * 3
    for noise in drawn:
        assert torch.equal(noise, torch.randn(noise.shape))


def test_a_stage_depends_on_its_inputs_alone(family: Family, seen: Condition) -> None:
    chosen = settings(resolution=1024)
    structure = stages.sample_structure(family, seen, chosen, 5)
    first = stages.sample_shape(family, seen, structure, chosen)
    torch.manual_seed(0)
    torch.randn(100)
    again = stages.sample_shape(family, seen, structure, chosen)
    assert torch.equal(first.feats, again.feats) and torch.equal(first.coords, again.coords)
    assert torch.equal(first.rng, again.rng) and not torch.equal(first.rng, structure.rng)
    other = stages.sample_structure(family, seen, chosen, 6)
    assert not torch.equal(structure.rng, other.rng)


def test_grids_of_the_four_pipelines(family: Family, seen: Condition) -> None:
    for chosen, grid, latent, output in (
        (settings(resolution=512), 4, 4, 16),
        (settings(resolution=1024, cascade=False), 8, 8, 32),
        (settings(resolution=1024), 4, 8, 32),
        (settings(resolution=1536), 4, 12, 48),
    ):
        structure = stages.sample_structure(family, seen, chosen, 1)
        shape = stages.sample_shape(family, seen, structure, chosen)
        assert structure.grid == grid and int(structure.coords[:, 1:].max()) < grid
        assert shape.resolution == output and latent // 2 <= int(shape.coords[:, 1:].max()) < latent
        texture = stages.sample_texture(family, seen, shape, chosen)
        assert texture.feats.shape == (len(shape.coords), LATENT)


def test_token_limit_lowers_the_resolution_step_by_step(family: Family) -> None:
    full = torch.cartesian_prod(torch.arange(1), *[torch.arange(16)] * 3).int()
    for limit, expected in ((12**3 + 1, 48), (12**3, 44), (11**3, 40), (10**3, 36), (9**3, 32), (1, 32)):
        coords, resolution = stages.refine_coords(full, family, 512, 1024, 48, limit)
        assert resolution == expected and len(coords) == (expected // 4) ** 3


def test_several_samples_of_one_picture(family: Family, seen: Condition) -> None:
    chosen = settings(resolution=1024)
    shape = shape_of(family, seen, chosen, samples=3)
    counts = torch.bincount(shape.coords[:, 0].long())
    assert shape.samples == 3 and len(counts) == 3 and counts.min() > 0
    order = [tuple(row) for row in shape.coords.tolist()]
    assert order == sorted(order)
    texture = stages.sample_texture(family, seen, shape, chosen)
    together = stages.decode(family, shape, texture)
    rows = shape.coords[:, 0] == 1
    alone = replace(shape, coords=shape.coords[rows] * torch.tensor([0, 1, 1, 1], dtype=torch.int32), samples=1)
    alone = replace(alone, feats=shape.feats[rows])
    ((mesh, voxels),) = stages.decode(family, alone, replace(texture, feats=texture.feats[rows]))
    assert torch.equal(mesh.faces, together[1][0].faces) and torch.equal(voxels.coords, together[1][1].coords)
    assert torch.equal(voxels.attrs, together[1][1].attrs), "objects of a batch come out as they do alone, to the bit"


def test_one_object_for_each_of_several_pictures(family: Family) -> None:
    several = stages.condition(family, [picture(), picture().rotate(90).resize((60, 60))], settings())
    assert several.tokens[512].shape[0] == 2 and len(several.pictures) == 2
    assert stages.sample_structure(family, several, settings(), 0).samples == 2
    with pytest.raises(InputError, match="No picture"):
        stages.condition(family, [])


def test_decoded_values(family: Family, seen: Condition) -> None:
    chosen = settings()
    shape = shape_of(family, seen, chosen)
    texture = stages.sample_texture(family, seen, shape, chosen)
    ((mesh, voxels),) = stages.decode(family, shape, texture)
    assert mesh.vertices.dtype == torch.float32 and mesh.faces.dtype == torch.int32
    assert len(mesh.vertices) == len(voxels.coords) == len(voxels.attrs)
    assert int(mesh.faces.max()) < len(mesh.vertices)
    # A dual vertex leaves its voxel by half a voxel at most, and attributes are 0.5 out + 0.5.
    centres = (voxels.coords + 0.5) / voxels.resolution - 0.5
    assert (mesh.vertices - centres).abs().max() <= 1 / voxels.resolution + 1e-6
    assert voxels.resolution == 16 and voxels.attrs.shape[1] == 6 and voxels.coords.shape[1] == 3
    assert abs(float(voxels.attrs.mean()) - 0.5) < 0.5


def test_only_one_network_is_in_memory(family: Family, seen: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 0, 0
    original = Family.network

    class Counted:
        def __init__(self, *args):
            self.inner = original(*args)

        def __enter__(self):
            nonlocal held, most
            held += 1
            most = max(most, held)
            return self.inner.__enter__()

        def __exit__(self, *error):
            nonlocal held
            held -= 1
            return self.inner.__exit__(*error)

    monkeypatch.setattr(Family, "network", lambda *args: Counted(*args))
    chosen = settings(resolution=1024)
    shape = shape_of(family, seen, chosen)
    stages.decode(family, shape, stages.sample_texture(family, seen, shape, chosen))
    assert (most, held) == (1, 0)


def silence(root: Path, role: str, key: str) -> None:
    """Make a decoder say no everywhere."""
    file = root / "ckpts" / f"{role}.safetensors"
    tensors = load_file(file)
    tensors[f"{key}.weight"].zero_()
    tensors[f"{key}.bias"].fill_(-1)
    save_file(tensors, file)


def test_empty_structure_is_said_in_words(tmp_path: Path, seen: Condition) -> None:
    root = make_family(tmp_path / "tiny")
    silence(root, "sparse_structure_decoder", "out_layer.2")
    with pytest.raises(EmptyResultError, match="The structure came out empty.*another seed"):
        stages.sample_structure(load_family(root), seen, settings(), 0)
    with pytest.raises(EmptyResultError, match="The structure of object 1 of 2 came out empty"):
        stages.sample_structure(load_family(root), seen, settings(), 0, samples=2)


def test_empty_sample_among_others_is_found() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 0]], dtype=torch.int32)
    with pytest.raises(EmptyResultError, match="object 2 of 3"):
        stages._refuse_empty(coords, 3, "The structure")


def test_shape_without_surface_is_said_in_words(tmp_path: Path, seen: Condition) -> None:
    root = make_family(tmp_path / "tiny")
    silence(root, "shape_slat_decoder", "output_layer")
    family = load_family(root)
    shape = shape_of(family, seen, settings())
    with pytest.raises(EmptyResultError, match="no surface"):
        stages.decode(family, shape, stages.sample_texture(family, seen, shape, settings()))


def test_values_of_another_resolution_are_refused(family: Family, seen: Condition) -> None:
    structure = stages.sample_structure(family, seen, settings(resolution=1024, cascade=False), 0)
    with pytest.raises(InputError, match="grid of 8, resolution 512 starts from one of 4"):
        stages.sample_shape(family, seen, structure, settings())
    coarse = stages.sample_structure(family, seen, settings(), 0)
    with pytest.raises(InputError, match="tokens for scale 512, not 1024"):
        stages.sample_shape(family, Condition({512: seen.tokens[512]}, ()), coarse, settings(resolution=1024))


def test_sampler_settings_reach_the_sampler(family: Family, seen: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = sampling.sample

    def sample(model, noise, params, **kwargs):
        used.append(params)
        return original(model, noise, params, **kwargs)

    monkeypatch.setattr(sampling, "sample", sample)
    chosen = GenerationSettings(resolution=512, ss_sampling_steps=2, ss_guidance_strength=2.5, tex_slat_sampling_steps=1)
    shape = shape_of(family, seen, chosen)
    stages.sample_texture(family, seen, shape, chosen)
    assert [p.steps for p in used] == [2, 3, 1], "3 is the tiny family's own default for the shape"
    assert used[0].guidance_strength == 2.5 and used[1].guidance_strength == 7.5


def test_cancel_and_progress(family: Family, seen: Condition) -> None:
    said: list[float] = []
    stages.sample_structure(family, seen, settings(), 0, ctx=RunContext(on_progress=lambda f, _: said.append(f)))
    assert said == sorted(said) and said[-1] == 1.0 and len(said) > 5
    calls = iter(range(1000))
    with pytest.raises(Cancelled):
        stages.sample_structure(family, seen, settings(), 0, ctx=RunContext(is_cancelled=lambda: next(calls) > 3))


def test_values_can_be_saved_without_pickles(family: Family, seen: Condition, tmp_path: Path) -> None:
    structure = stages.sample_structure(family, seen, settings(), 0)
    tensors = {"coords": structure.coords, "rng": structure.rng}
    save_file(tensors, tmp_path / "s.safetensors", metadata={"meta": json.dumps([structure.grid, structure.samples])})
    back = load_file(tmp_path / "s.safetensors")
    again = Structure(back["coords"], structure.grid, structure.samples, back["rng"])
    first, second = (stages.sample_shape(family, seen, s, settings()).feats for s in (structure, again))
    assert np.array_equal(first.numpy(), second.numpy())
