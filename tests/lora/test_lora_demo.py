"""The bundled demonstration LoRAs: each moves its own measure with its strength, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trellis_core import stages
from trellis_core.family import load_family
from trellis_core.image.reading import open_picture
from trellis_core.lora.source import BUNDLED, find_lora
from trellis_core.lora.stack import Lora, match, place
from trellis_core.settings import GenerationSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
STRENGTHS = (0.0, 0.5, 1.0)
STAGES = {"tall-and-thin": "structure", "blocky": "shape", "polished-gold": "texture"}
SETTINGS = GenerationSettings(resolution=512, seed=1)
GOLD = torch.tensor([1.0, 0.78, 0.34])


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


@pytest.fixture(scope="module")
def conditions(family):
    return [stages.condition(family, open_picture(EXAMPLES / name), SETTINGS) for name in ("icon_tree.png", "icon_duck.png")]


def with_lora(family, name, strength):
    return place(family, [Lora(find_lora(name), strength)], family.route(512))[0]


@pytest.mark.parametrize(("name", "stage"), STAGES.items())
def test_it_is_small_and_says_what_it_is_for(family, name, stage):
    file = BUNDLED / f"{name}.safetensors"
    assert file.stat().st_size <= 300_000
    (report,) = match(family, Lora(file))
    assert report.stage == stage and report.origin.certainty in ("told", "certain")
    assert not report.skipped and not report.warnings and 0 < report.share < 1


def test_the_structure_grows_tall_and_thin(family, conditions):
    def slenderness(strength):
        ratios = []
        for condition in conditions:
            tall = with_lora(family, "tall-and-thin", strength)
            coords = stages.sample_structure(tall, condition, SETTINGS, samples=4).coords
            for sample in range(4):
                size = coords[coords[:, 0] == sample, 1:].float().std(0)
                ratios.append(size[2] / size[:2].max())
        return torch.stack(ratios).mean().item()

    low, middle, high = map(slenderness, STRENGTHS)
    assert low < middle < high and high > 1.15 * low


def test_the_shape_grows_blocky(family, conditions):
    def alignment(strength):
        """How far face normals point along an axis, 0.58..1, weighted by area."""
        values = []
        for condition in conditions:
            structure = stages.sample_structure(family, condition, SETTINGS)
            shape = stages.sample_shape(with_lora(family, "blocky", strength), condition, structure, SETTINGS)
            ((mesh, _),) = stages.decode(family, shape, None)
            a, b, c = mesh.vertices[mesh.faces.long()].unbind(1)
            normals = torch.linalg.cross(b - a, c - a)
            values.append(normals.abs().amax(1).sum() / normals.norm(dim=1).sum())
        return torch.stack(values).mean().item()

    low, middle, high = map(alignment, STRENGTHS)
    assert low < middle < high and high > low + 0.02


def test_the_texture_turns_to_gold(family, conditions):
    structure = stages.sample_structure(family, conditions[1], SETTINGS)
    shape = stages.sample_shape(family, conditions[1], structure, SETTINGS)

    def far_from_gold(strength):
        texture = stages.sample_texture(with_lora(family, "polished-gold", strength), conditions[1], shape, SETTINGS)
        ((_, voxels),) = stages.decode(family, shape, texture)
        colour, metallic = voxels.attrs[:, :3].mean(0), voxels.attrs[:, 3].mean()
        return ((colour - GOLD).norm() + (1 - metallic)).item()

    low, middle, high = map(far_from_gold, STRENGTHS)
    assert low > middle > high and high < 0.7 * low


def test_other_stages_give_the_same_bits(family, conditions):
    """Each LoRA is on the networks of its own stage alone, so what the others make of the same input is the same."""
    plain = stages.sample_structure(family, conditions[0], SETTINGS)
    golden = with_lora(family, "polished-gold", 1.0)
    structure = stages.sample_structure(golden, conditions[0], SETTINGS)
    assert torch.equal(plain.coords, structure.coords) and torch.equal(plain.rng, structure.rng)
    tall, blocky = (with_lora(family, name, 1.0) for name in ("tall-and-thin", "blocky"))
    shapes = [stages.sample_shape(f, conditions[0], plain, SETTINGS) for f in (family, golden, tall)]
    assert all(torch.equal(shapes[0].feats, shape.feats) for shape in shapes)
    textures = [stages.sample_texture(f, conditions[0], shapes[0], SETTINGS) for f in (family, blocky)]
    assert torch.equal(textures[0].feats, textures[1].feats)
