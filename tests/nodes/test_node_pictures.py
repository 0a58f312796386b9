"""What the picture node makes of the host's IMAGE and MASK."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """The module as the host loads it: inside the folder as a package of another name."""
    name = "pack_under_test"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.nodes.pictures")


IMAGE = torch.full((2, 96, 80, 3), 0.5)


def _subject() -> torch.Tensor:
    mask = torch.zeros(1, 96, 80)
    mask[:, 30:60, 20:50] = 1
    return mask


def test_either_side_of_a_mask_may_be_white(pictures: ModuleType) -> None:
    subject, rest = _subject(), 1 - _subject()
    for mask, shows in ((subject, "subject"), (rest, "background"), (subject, "auto"), (rest, "auto")):
        made = pictures.to_pictures(IMAGE, mask, shows)
        assert [p.mode for p in made] == ["RGBA", "RGBA"]
        np.testing.assert_array_equal(np.asarray(made[1])[..., 3], _subject()[0].numpy() * 255)


def test_the_empty_square_of_load_image_is_no_mask(pictures: ModuleType) -> None:
    assert [p.mode for p in pictures.to_pictures(IMAGE, torch.zeros(1, 64, 64))] == ["RGB", "RGB"]


def test_masks_that_cannot_be_meant(pictures: ModuleType) -> None:
    for mask, phrase in (
        (torch.ones(1, 40, 80), "80 x 40"),
        (torch.zeros(1, 96, 80), "empty"),
        (_subject().expand(3, -1, -1), "3 masks"),
        (torch.cat([_subject(), torch.zeros(1, 96, 80)]), "number 2 is empty"),
    ):
        with pytest.raises(pictures.InputError, match=phrase):
            pictures.to_pictures(IMAGE, mask)


def test_pictures_of_many_sizes_make_one_batch(pictures: ModuleType) -> None:
    batch = pictures.to_image((torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((20, 20, 3), 255, dtype=torch.uint8)))
    assert batch.shape == (2, 8, 8, 3)
    assert batch[0].max() == 0 and batch[1].min() == 1
