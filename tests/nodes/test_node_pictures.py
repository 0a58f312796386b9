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


def load(module: str) -> ModuleType:
    """A module of nodes/ as the host loads it: inside the folder as a package of another name."""
    name = "pack_under_test"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        sys.modules[name] = pack = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
    return importlib.import_module(f"{name}.nodes.{module}")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load("pictures")


IMAGE = torch.full((1, 96, 80, 3), 0.5)


def _subject(height: int = 96, width: int = 80) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 3 : height // 2, width // 4 : width // 2] = 1
    return mask


def test_either_side_of_a_mask_may_be_white(pictures: ModuleType) -> None:
    subject, rest = _subject(), 1 - _subject()
    for mask, shows in ((subject, "subject"), (rest, "background"), (subject, "auto"), (rest, "auto")):
        (made,) = pictures.to_pictures(IMAGE, mask, shows)
        assert made.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(made)[..., 3], _subject()[0].numpy() * 255)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 80), (7, 300)])
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("channels", [3, 4])
def test_the_empty_mask_of_load_image_says_nothing(
    pictures: ModuleType, height: int, width: int, side: int, channels: int
) -> None:
    """Load Image gives one of 64 x 64 for pictures without alpha, and one of their own size for opaque ones with alpha."""
    image = torch.ones(2, side, side, channels)
    for shows in ("auto", "background"):
        assert [p.mode for p in pictures.to_pictures(image, torch.zeros(1, height, width), shows)] == ["RGB", "RGB"]


@pytest.mark.parametrize("shows", ["auto", "subject"])
def test_a_full_mask_cuts_nothing_away(pictures: ModuleType, shows: str) -> None:
    (made,) = pictures.to_pictures(IMAGE, torch.ones(1, 96, 80), shows)
    assert made.mode == "RGB"


def test_a_mask_of_another_size_is_resized(pictures: ModuleType) -> None:
    (made,) = pictures.to_pictures(IMAGE, _subject(192, 160), "subject")
    alpha = np.asarray(made)[..., 3]
    assert alpha.shape == (96, 80)
    assert np.abs(alpha.astype(int) - (_subject()[0].numpy() * 255).astype(int)).mean() < 8


def test_one_mask_for_each_picture(pictures: ModuleType) -> None:
    two = IMAGE.expand(2, -1, -1, -1)
    made = pictures.to_pictures(two, torch.cat([_subject(), torch.zeros(1, 96, 80)]))
    assert [p.mode for p in made] == ["RGBA", "RGB"]
    for masks in (_subject(), _subject().expand(3, -1, -1)):
        with pytest.raises(pictures.InputError, match=f"2 pictures and {len(masks)} mask"):
            pictures.to_pictures(two, masks)


def test_masks_that_leave_nothing(pictures: ModuleType) -> None:
    for mask, shows, phrase in (
        (torch.zeros(1, 96, 80), "subject", "is empty"),
        (torch.ones(1, 96, 80), "background", "is full"),
    ):
        with pytest.raises(pictures.InputError, match=phrase):
            pictures.to_pictures(IMAGE, mask, shows)


def test_pictures_of_many_sizes_make_one_batch(pictures: ModuleType) -> None:
    batch = pictures.to_image((torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((20, 20, 3), 255, dtype=torch.uint8)))
    assert batch.shape == (2, 8, 8, 3)
    assert batch[0].max() == 0 and batch[1].min() == 1
