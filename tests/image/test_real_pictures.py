"""Pictures as people have them: a right result, or words that say what to do."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, features

from trellis_core.errors import InputError
from trellis_core.image.matting import key_plain_background
from trellis_core.image.preprocess import preprocess
from trellis_core.image.reading import open_picture

EXAMPLES = Path(__file__).parents[2] / "examples"


def saved(picture: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return file


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG of any depth and colour type, with other chunks before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    body = b"".join(chunk(*c) for c in chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + body)


def deep(values: np.ndarray) -> bytes:
    """uint16 [h, w, ...] as rows of a PNG."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_turn_is_undone(form: str, turn: int) -> None:
    """As cameras hold it: a red corner, top left, wherever the file has it."""
    upright = Image.new("RGB", (48, 32), "blue")
    upright.paste("red", (0, 0, 16, 16))
    back = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(turn, [])
    stored = upright
    for method in back:
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = turn
    read = open_picture(saved(stored, form, exif=exif))
    assert read.size == (48, 32)
    red, blue = read.getpixel((5, 5)), read.getpixel((40, 25))
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "L"])
def test_a_turned_tiff_of_any_colours_is_undone(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(saved(Image.new(mode, (40, 20)), "TIFF", exif=exif)).size == (20, 40)


def test_16_bits() -> None:
    values = np.zeros((16, 16, 3), np.uint16)
    values[..., 0], values[..., 1] = 0xC0FF, 0x4000
    assert open_picture(png(16, 16, 16, 2, deep(values))).getpixel((3, 3)) == (0xC0, 0x40, 0)
    alpha = np.full((16, 16, 1), 0xFFFF, np.uint16)
    alpha[:8] = 0
    read = open_picture(png(16, 16, 16, 6, deep(np.concatenate([values, alpha], 2))))
    assert read.getpixel((3, 3)) == (0xC0, 0x40, 0, 0) and read.getpixel((3, 12)) == (0xC0, 0x40, 0, 255)
    grey = np.concatenate([values[..., :1], alpha], 2)
    read = open_picture(png(16, 16, 16, 4, deep(grey)))
    assert read.getpixel((3, 3))[3] == 0 and read.getpixel((3, 12)) == (0xC0, 0xC0, 0xC0, 255)


def test_16_bits_with_one_transparent_colour() -> None:
    values = np.full((16, 16, 3), 0x1234, np.uint16)
    values[4:12, 4:12] = 0x0080, 0x8000, 0x80
    key = (b"tRNS", struct.pack(">HHH", 0x1234, 0x1234, 0x1234))
    read = open_picture(png(16, 16, 16, 2, deep(values), key))
    assert read.mode == "RGBA" and read.getpixel((0, 0))[3] == 0 and read.getpixel((6, 6)) == (0, 0x80, 0, 255)
    grey = values[..., 1]
    read = open_picture(png(16, 16, 16, 0, deep(grey), (b"tRNS", struct.pack(">H", 0x1234))))
    assert read.mode == "RGBA" and read.getpixel((0, 0))[3] == 0 and read.getpixel((6, 6)) == (0x80, 0x80, 0x80, 255)


def test_8_bits_with_one_transparent_colour_and_1_bit() -> None:
    rows = b"".join(b"\0" + bytes([7, 7, 7] * 8 + [200, 0, 0] * 8) for _ in range(16))
    read = open_picture(png(16, 16, 8, 2, rows, (b"tRNS", struct.pack(">HHH", 7, 7, 7))))
    assert read.getpixel((0, 0))[3] == 0 and read.getpixel((12, 0)) == (200, 0, 0, 255)
    rows = b"".join(b"\0\x00\xff" for _ in range(16))
    read = open_picture(png(16, 16, 1, 0, rows, (b"tRNS", struct.pack(">H", 0))))
    assert read.getpixel((0, 0))[3] == 0 and read.getpixel((12, 0)) == (255, 255, 255, 255)


def test_inks_with_and_without_a_profile() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for form in ("TIFF", "JPEG"):
        red = open_picture(saved(inks, form)).getpixel((3, 3))
        assert red[0] > 200 and red[1] < 60


def test_palettes_with_transparency() -> None:
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30, 5, 5, 5])
    palette.paste(2, (0, 0, 16, 4))
    read = open_picture(saved(palette, transparency=bytes([255, 255, 100])))
    assert read.getpixel((0, 0))[3] == 100 and read.getpixel((5, 9)) == (10, 200, 30, 255)
    read = open_picture(saved(palette, "GIF", transparency=2))
    assert read.getpixel((0, 0))[3] == 0 and read.getpixel((5, 9)) == (10, 200, 30, 255)
    assert open_picture(saved(palette)).mode == "RGB"


def soft(colour: tuple[int, int, int]) -> Image.Image:
    """A disc with a soft edge, straight alpha."""
    big = Image.new("L", (512, 512))
    ImageDraw.Draw(big).ellipse((96, 96, 416, 416), fill=255)
    picture = Image.new("RGBA", (64, 64), (*colour, 0))
    picture.putalpha(big.resize((64, 64), Image.Resampling.BOX))
    return picture


@pytest.mark.parametrize("colour", [(230, 60, 40), (250, 250, 250), (20, 22, 25), (90, 200, 255)])
def test_colours_that_were_multiplied_with_their_alpha(colour: tuple[int, int, int]) -> None:
    straight = np.asarray(soft(colour)).astype(np.float64)
    multiplied = straight.copy()
    multiplied[..., :3] *= straight[..., 3:] / 255
    rim = (straight[..., 3] > 40) & (straight[..., 3] < 220)
    for stored in (straight, multiplied):
        read = np.asarray(open_picture(saved(Image.fromarray(stored.round().astype(np.uint8)))), np.float64)
        assert np.array_equal(read[..., 3], straight[..., 3])
        if max(colour) > 40 or stored is straight:  # on a nearly black subject the two look alike, and it does not matter
            assert np.abs(read[rim][:, :3] - colour).max() <= 8, "a dark rim"
    data = saved(Image.fromarray(multiplied.round().astype(np.uint8)), "TIFF").getvalue()
    assert (unassociated := struct.pack("<HHIHH", 338, 3, 1, 2, 0)) in data
    tiff = io.BytesIO(data.replace(unassociated, struct.pack("<HHIHH", 338, 3, 1, 1, 0)))
    assert np.abs(np.asarray(open_picture(tiff), np.float64)[rim][:, :3] - colour).max() <= 4


def test_straight_pictures_stay_as_they_are() -> None:
    """Real cut-outs, and a bright subject with a black, soft shadow."""
    shadow = Image.new("RGBA", (64, 64))
    for y in range(64):
        for x in range(64):
            distance = np.hypot(x - 32, y - 36)
            shadow.putpixel((x, y), (0, 0, 0, int(max(0, 180 - 8 * distance))))
    shadow.paste((250, 240, 60, 255), (20, 12, 44, 36))
    pictures = [shadow, *(Image.open(path) for path in sorted(EXAMPLES.glob("*.png")))]
    for picture in pictures:
        if picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 205:
            assert np.array_equal(np.asarray(open_picture(saved(picture))), np.asarray(picture))


def test_alpha_of_one_bit() -> None:
    hard = Image.new("RGBA", (32, 32))
    hard.paste((200, 10, 10, 255), (8, 8, 24, 24))
    square = np.asarray(preprocess(open_picture(saved(hard))))
    assert square.shape == (14, 14, 3) and (square == (200, 10, 10)).all()


def test_alpha_that_is_nowhere_quite_opaque_or_quite_transparent() -> None:
    faint = np.zeros((64, 64, 4), np.uint8)
    faint[..., :3], faint[..., 3] = (200, 120, 40), 1
    faint[16:48, 16:48, 3] = 254
    square = np.asarray(preprocess(open_picture(saved(Image.fromarray(faint)))))
    assert square.shape == (30, 30, 3) and np.abs(square.astype(int) - (199, 119, 39)).max() <= 1
    faint[..., 3] = 254
    even = open_picture(saved(Image.fromarray(faint)))
    assert even.mode == "RGB", "such an alpha shows no subject"
    with pytest.raises(InputError, match="no transparent background"):
        preprocess(even)
    faint[..., 3] = 100
    with pytest.raises(InputError, match="transparent everywhere"):
        open_picture(saved(Image.fromarray(faint)))


@pytest.mark.parametrize("box", [(0, 10, 20, 40), (30, 0, 64, 64), (0, 0, 64, 30), (0, 0, 64, 64)])
def test_a_subject_at_the_border(box: tuple[int, int, int, int]) -> None:
    picture = Image.new("RGBA", (64, 64))
    picture.paste((10, 200, 30, 255), box)
    picture.putpixel((32, 63) if box[3] < 64 else (0, 63), (0, 0, 0, 0))
    square = np.asarray(preprocess(open_picture(saved(picture))))
    assert square.shape[0] == square.shape[1] and abs(square.shape[0] - max(box[2] - box[0], box[3] - box[1])) <= 2
    assert square[..., 1].max() == 200
    opaque = Image.new("RGB", (64, 64), "white")
    opaque.paste((10, 120, 30), (0, 20, 30, 50))
    assert np.asarray(preprocess(opaque, key_plain_background))[..., 1].max() == 120


def test_a_small_subject_in_a_large_picture() -> None:
    picture = Image.new("RGBA", (4000, 3000))
    picture.paste((200, 10, 10, 255), (1000, 2000, 1005, 2005))
    with pytest.raises(InputError, match=r"few pixels wide \(5 x 5 of 4000 x 3000\)"):
        preprocess(picture)
    picture.paste((200, 10, 10, 255), (3900, 2900, 4000, 3000))
    picture.paste((0, 0, 0, 0), (900, 1900, 1100, 2100))
    square = np.asarray(preprocess(picture))
    assert square.shape[0] in (98, 99, 100) and (square[3:-3, 3:-3] == (200, 10, 10)).all(), "it keeps all its pixels"


def test_white_on_white() -> None:
    white = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(white).ellipse((16, 16, 48, 48), fill=(253, 253, 253))
    with pytest.raises(InputError, match="Nothing in the picture differs"):
        preprocess(open_picture(saved(white)), key_plain_background)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(form: str) -> None:
    frames = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(3)]
    for frame, colour in zip(frames, ("red", "green", "blue"), strict=True):
        frame.paste(colour, (4, 4, 12, 12))
        frame.putpixel((3, 3), (90, 90, 90, 100))
    lossless = {"lossless": True} if form == "WEBP" else {}
    read = open_picture(saved(frames[0], form, save_all=True, append_images=frames[1:], **lossless))
    assert read.getpixel((8, 8)) == (255, 0, 0, 255) and read.getpixel((1, 1))[3] == 0


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif() -> None:
    picture = Image.new("RGBA", (32, 32))
    picture.paste((200, 40, 20, 255), (8, 8, 24, 24))
    read = open_picture(saved(picture, "AVIF", quality=100))
    assert read.getpixel((1, 1))[3] == 0 and np.abs(np.subtract(read.getpixel((16, 16)), (200, 40, 20, 255))).max() < 12


def brand(kind: bytes) -> io.BytesIO:
    return io.BytesIO(b"\0\0\0\x18ftyp" + kind + b"\0\0\0\0mif1" + kind + bytes(64))


@pytest.mark.parametrize("kind", [b"heic", b"heix", b"mif1"])
def test_heic_names_the_package(kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(brand(kind).getvalue())
    for source in (path, brand(kind)):
        with pytest.raises(InputError, match="HEIC.*pip install pillow-heif"):
            open_picture(source)


def test_heic_is_read_where_the_package_is() -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 32), (200, 40, 20))).save(file, exif=exif.tobytes())
    read = open_picture(file)
    assert read.size in ((64, 32), (32, 64)) and np.abs(np.subtract(read.getpixel((16, 16)), (200, 40, 20))).max() < 12
    with pytest.raises(InputError, match="damaged"):
        open_picture(brand(b"heic"))


def test_avif_without_a_reader_and_drawings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_core.image.reading.features.check", lambda name: False)
    with pytest.raises(InputError, match="AVIF.*pillow>=11.3|cannot be read"):
        open_picture(brand(b"avif"))
    with pytest.raises(InputError, match="SVG.*PNG"):
        open_picture(io.BytesIO(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'))


@pytest.mark.parametrize(("width", "height"), [(20_000, 16), (16, 20_000), (20_000, 3000)])
def test_20000_pixels(width: int, height: int) -> None:
    picture = Image.new("RGBA", (width, height))
    picture.paste((200, 10, 10, 255), (0, 0, width, height - 4))
    if min(width, height) < 500:
        with pytest.raises(InputError, match="Crop it to the object"):
            preprocess(picture)
    else:
        assert preprocess(picture).size[0] <= 1024 and np.asarray(preprocess(picture))[..., 0].max() >= 200


def matrix_profile(red: tuple[float, float, float], gamma: float) -> bytes:
    """An ICC profile of matrix and curve: sRGB's primaries, but for red, with another gamma."""

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def text(words: str) -> bytes:
        return b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words.encode() + bytes(80)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": text("somebody's own"), b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642, 1, 0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + s15(*red), b"gXYZ": b"XYZ \0\0\0\0" + s15(0.3851, 0.7169, 0.0971),
        b"bXYZ": b"XYZ \0\0\0\0" + s15(0.1431, 0.0606, 0.7141), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + s15(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


SRGB_RED = (0.4361, 0.2225, 0.0139)


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow converts no profiles")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_profiles_are_obeyed(form: str) -> None:
    """With gamma 1 the middle value is half the light, which is 188 in sRGB."""
    options = {"lossless": True} if form == "WEBP" else {}
    linear = saved(Image.new("RGB", (16, 16), (128, 128, 128)), form, icc_profile=matrix_profile(SRGB_RED, 1.0), **options)
    assert np.abs(np.subtract(open_picture(linear).getpixel((4, 4)), 188)).max() <= 3
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = saved(Image.new("RGB", (16, 16), (128, 60, 9)), "PNG", icc_profile=usual)
    assert open_picture(same).getpixel((4, 4)) == (128, 60, 9)


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow converts no profiles")
@pytest.mark.parametrize("make", [lambda p: p, lambda p: p[: len(p) // 2], lambda p: b"not a profile"])
def test_profiles_keep_the_alpha_and_broken_ones_are_passed_over(make: Callable[[bytes], bytes]) -> None:
    profile = make(matrix_profile(SRGB_RED, 1.0))
    picture = Image.new("RGBA", (16, 16), (128, 128, 128, 0))
    picture.paste((128, 128, 128, 255), (4, 4, 12, 12))
    read = open_picture(saved(picture, icc_profile=profile))
    assert read.getpixel((0, 0))[3] == 0 and read.getpixel((8, 8))[3] == 255
    assert read.getpixel((8, 8))[0] in ((187, 188, 189) if len(profile) > 400 else (128,))
    grey = open_picture(saved(Image.new("L", (16, 16), 90), icc_profile=profile))
    assert grey.mode == "RGB" and len(set(grey.getpixel((3, 3)))) == 1
