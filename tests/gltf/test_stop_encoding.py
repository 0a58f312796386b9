"""A stop is heard while textures are encoded, and what was encoded until then is not written."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from trellis_core.context import RunContext, obeying
from trellis_core.errors import Cancelled
from trellis_core.gltf import images
from trellis_core.gltf.images import encode_image

NOISE = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)


def test_png_asks_between_blocks() -> None:
    asked: list[int] = []
    ctx = RunContext(is_cancelled=lambda: asked.append(1) or len(asked) > 2)
    with pytest.raises(Cancelled), obeying(ctx):
        encode_image(NOISE)
    assert len(asked) == 3


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_others_are_left_to_their_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LISTEN", 0.001)
    ctx = RunContext(is_cancelled=lambda: True)
    with pytest.raises(Cancelled), obeying(ctx):
        encode_image(NOISE, kind)


def test_blocks_make_the_picture_that_it_is() -> None:
    small = NOISE[:300, :77]
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_image(small)))), small)
    assert encode_image(NOISE) == encode_image(NOISE.copy())
