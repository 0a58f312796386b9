"""Pictures: what is accepted, what is refused and how, the crop, the mattes, the encoder."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, features

from trellis_core.errors import InputError, WeightsError
from trellis_core.image import reading
from trellis_core.image.dino import DinoV3Encoder, DinoV3Params, image_to_pixels
from trellis_core.image.matting import key_plain_background, load_rembg, matte_by_network
from trellis_core.image.preprocess import preprocess
from trellis_core.image.reading import open_picture


def saved(picture: Image.Image, form: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return file


def png_header(width: int, height: int) -> io.BytesIO:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("side", [20_000, 9_500, 12_000])
def test_a_huge_picture_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(InputError, match="80 megapixels"):
        open_picture(png_header(side, side))


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (2000, 3)])
def test_a_tiny_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        open_picture(png_header(*size))


def test_missing_files_folders_and_non_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture file .*nowhere.png"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="folder"):
        open_picture(tmp_path)
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(InputError, match="notes.png is not a picture"):
        open_picture(tmp_path / "notes.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_cut_off_file_is_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), form).getvalue()
    with pytest.raises(InputError, match="damaged|cannot be read|not a picture"):
        open_picture(io.BytesIO(data[: len(data) // 2]))


def test_damaged_directions_in_a_whole_picture_are_refused_in_words() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.new("RGB", (16, 16)), "WEBP", exif=exif.tobytes()).getvalue()
    assert open_picture(io.BytesIO(data)).size == (16, 16)
    with pytest.raises(InputError, match="damaged"):
        open_picture(io.BytesIO(data.replace(b"MM\0*", b"MMy*")))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_refused_in_words() -> None:
    data = bytearray(saved(Image.effect_noise((64, 64), 50).convert("RGB"), "AVIF").getvalue())
    data[data.index(b"mdat") + 4 :] = bytes(len(data) - data.index(b"mdat") - 4)
    with pytest.raises(InputError, match="damaged"):
        open_picture(io.BytesIO(bytes(data)))


def test_a_fully_transparent_picture_is_refused() -> None:
    with pytest.raises(InputError, match="transparent everywhere"):
        open_picture(saved(Image.new("RGBA", (32, 32), (200, 10, 10, 100))))


def test_grey_alpha_palette_and_cmyk_become_8_bit_colour() -> None:
    grey_alpha = Image.new("LA", (16, 16), (90, 255))
    grey_alpha.putpixel((0, 0), (90, 0))
    assert open_picture(saved(grey_alpha)).getpixel((0, 0)) == (90, 90, 90, 0)
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((0, 0), 0)
    opened = open_picture(saved(palette, transparency=0))
    assert opened.getpixel((0, 0))[3] == 0 and opened.getpixel((5, 5)) == (10, 200, 30, 255)
    cmyk = open_picture(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"))
    assert cmyk.mode == "RGB" and cmyk.getpixel((3, 3))[0] > 200 and cmyk.getpixel((3, 3))[1] < 60


def test_16_bit_grey_keeps_its_brightness() -> None:
    ramp = np.linspace(0, 65535, 32 * 16).astype(np.uint16).reshape(16, 32)
    opened = np.asarray(open_picture(saved(Image.fromarray(ramp))))
    assert opened.shape == (16, 32, 3)
    assert np.array_equal(opened[..., 0], ramp >> 8)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    assert open_picture(saved(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).size == (20, 40)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    red = open_picture(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert red.convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_an_opaque_picture_needs_a_matte_and_the_message_says_how() -> None:
    picture = Image.new("RGB", (32, 32), "white")
    with pytest.raises(InputError, match=r"rembg.*plain"):
        preprocess(picture)

    def left_half(rgb: Image.Image) -> Image.Image:
        alpha = Image.new("L", rgb.size, 0)
        alpha.paste(255, (0, 0, 17, 32))
        rgb.putalpha(alpha)
        return rgb

    square = np.asarray(preprocess(picture, left_half))
    assert square.shape == (30, 30, 3)
    assert (square[:, :7] == 0).all() and (square[:, 8:23] == 255).all()


def test_a_matte_without_subject_and_a_speck_are_refused() -> None:
    picture = Image.new("RGB", (32, 32), "white")

    def matte(dots: int):
        def apply(rgb: Image.Image) -> Image.Image:
            alpha = Image.new("L", rgb.size, 0)
            for i in range(dots):
                alpha.putpixel((5 + i, 5), 255)
            rgb.putalpha(alpha)
            return rgb

        return apply

    with pytest.raises(InputError, match="No subject"):
        preprocess(picture, matte(0))
    with pytest.raises(InputError, match="few pixels"):
        preprocess(picture, matte(2))


def test_keying_finds_a_disc_and_unmixes_its_rim() -> None:
    big = Image.new("RGB", (384, 384), (240, 240, 250))
    ImageDraw.Draw(big).ellipse((96, 96, 288, 288), fill=(180, 30, 20))
    picture = big.resize((96, 96), Image.Resampling.BOX)
    rgba = np.asarray(key_plain_background(picture)).astype(int)
    truth = np.asarray(big.resize((96, 96), Image.Resampling.BOX).getchannel("G")).astype(float)
    alpha = (240 - truth) / 210 * 255
    assert np.abs(rgba[..., 3] - alpha).max() <= 6
    seen = rgba[rgba[..., 3] > 0][:, :3]
    assert np.abs(seen - [180, 30, 20]).max() <= 3, "the old background shines through at the rim"


def test_keying_refuses_a_busy_border_and_an_empty_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="not plain"):
        key_plain_background(Image.fromarray(noise))
    with pytest.raises(InputError, match="Nothing"):
        key_plain_background(Image.new("RGB", (48, 48), "grey"))


def test_missing_rembg_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match="pip install rembg"):
        load_rembg()


def tiny_encoder() -> DinoV3Encoder:
    torch.manual_seed(0)
    return DinoV3Encoder(DinoV3Params(32, 64, 2, 2, patch_size=8)).eval()


def test_tokens_are_normalised_and_counted() -> None:
    tokens = tiny_encoder().encode(torch.rand(2, 3, 32, 32))
    assert tokens.shape == (2, 1 + 4 + 16, 32)
    assert tokens.mean(-1).abs().max() < 1e-5
    assert (tokens.var(-1, correction=0) - 1).abs().max() < 1e-2


def test_the_encoder_tells_where_things_are() -> None:
    pixels = image_to_pixels(Image.new("RGB", (10, 10)), 32)[None]
    bright = pixels.clone()
    bright[..., :8, :8] = 1
    moved = bright.flip(-1)
    encoder = tiny_encoder()
    assert (encoder(bright)[:, 0] - encoder(moved)[:, 0]).abs().max() > 1e-4


def test_other_variants_of_the_encoder_are_refused() -> None:
    with pytest.raises(WeightsError):
        DinoV3Params.from_args({"hidden_size": 8, "use_gated_mlp": True})


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "CMYK"])
def test_large_pictures_are_shrunk_as_they_are_read(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    ImageDraw.Draw(whole).rectangle((30, 20, 269, 179), fill=(200, 90, 40, 255))
    stored = whole if mode == "RGBA" else whole.convert(mode)
    file = saved(stored, "TIFF" if mode == "CMYK" else "PNG")
    before = open_picture(io.BytesIO(file.getvalue()))
    monkeypatch.setattr(reading, "FINE_PIXELS", 6000)
    read = open_picture(file)
    assert (
        read.width * read.height <= 6000 and read.mode == before.mode and read.width / read.height == pytest.approx(1.5, 0.05)
    )
    middle, corner = (read.width // 2, read.height // 2), (1, 1)
    for place, there in ((middle, (150, 100)), (corner, (3, 3))):
        assert np.abs(np.subtract(read.getpixel(place), before.getpixel(there))).max() <= 2


def test_a_small_subject_of_a_large_picture_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    subject = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    subject[..., 3] = 255
    whole.paste(Image.fromarray(subject), (210, 150))
    monkeypatch.setattr(reading, "FINE_PIXELS", 6000)
    read = np.asarray(open_picture(saved(whole)))
    rows, columns = np.nonzero(read[..., 3])
    assert np.array_equal(read[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], subject)
    assert read.shape[0] <= 60 and read.shape[1] <= 60


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint16, 1), (np.float32, 1 / 65535)])
def test_deep_greys_are_the_same_in_blocks(dtype: type, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.arange(40 * 30).reshape(30, 40) * 54 * scale).astype(dtype)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    whole = open_picture(io.BytesIO(file.getvalue()))
    monkeypatch.setattr(reading, "BLOCK_PIXELS", 100)
    assert np.array_equal(np.asarray(open_picture(io.BytesIO(file.getvalue()))), np.asarray(whole))
    largest = values.max() // 256 if dtype == np.uint16 else int(values.max() * 255)
    assert np.asarray(whole)[..., 0].max() == largest


def test_a_matting_network_sees_what_it_was_trained_on_and_its_last_answer_counts() -> None:
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[:, 30:] = (255, 128, 64)
    seen = []

    def network(pixels: torch.Tensor) -> list[torch.Tensor]:
        seen.append(pixels)
        logits = torch.full((1, 1, 1024, 1024), -2.0)
        logits[..., 512:] = 3.0
        return [torch.zeros(1, 1, 4, 4), logits]

    made = matte_by_network(Image.fromarray(colours), network)
    assert seen[0].shape == (1, 3, 1024, 1024) and seen[0].dtype == torch.float32
    black = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]  # the ImageNet statistics of every network of this kind
    right = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (64 / 255 - 0.406) / 0.225]
    assert torch.allclose(seen[0][0, :, 500, 5], torch.tensor(black), atol=1e-5)
    assert torch.allclose(seen[0][0, :, 500, 1000], torch.tensor(right), atol=1e-5)
    assert made.mode == "RGBA" and made.size == (60, 40) and np.array_equal(np.asarray(made)[..., :3], colours)
    alpha = np.asarray(made)[..., 3]
    assert alpha[20, 5] == int(255 / (1 + np.exp(2))) and alpha[20, 55] == int(255 / (1 + np.exp(-3)))


def test_the_encoder_normalises_with_the_statistics_that_it_was_trained_with() -> None:
    encoder = DinoV3Encoder(DinoV3Params(16, 32, 0, 2, patch_size=8))
    with torch.no_grad():
        encoder.embeddings.patch_embeddings.weight.zero_()
        encoder.embeddings.patch_embeddings.weight[:3, :, 0, 0] = torch.eye(3)
        encoder.embeddings.patch_embeddings.bias.zero_()
        token = encoder(torch.ones(1, 3, 8, 8))[0, -1]
    white = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225, *[0.0] * 13])
    assert torch.allclose(token, torch.nn.functional.layer_norm(white, (16,)), atol=1e-5)
