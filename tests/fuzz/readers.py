"""Every reader: what it is given, damaged, and what is then done with it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fuzz.damage import RAW, damaged_bytes, damaged_json, damaged_safetensors
from tests.helpers import lora_files
from tests.helpers.tiny_family import CONFIGS, make_family, random_tensors
from trellis_core.cli.info import describe_family, describe_file
from trellis_core.cli.lora import split_strength
from trellis_core.context import QUIET
from trellis_core.errors import InputError, TrellisError
from trellis_core.family import Family, load_family

Case = Callable[[Random, Path, Path], None]
"""Random numbers, a folder of things made once, and one for this case alone."""

READERS: dict[str, Case] = {}


def reader(case: Case) -> Case:
    READERS[case.__name__] = case
    return case


@contextmanager
def tolerated() -> Iterator[None]:
    """For a case that goes on after a first refusal."""
    try:
        yield
    except TrellisError:
        pass


@cache
def tiny(base: Path) -> Path:
    return make_family(base / "tiny")


@cache
def whole_family(base: Path) -> Family:
    return load_family(tiny(base))


@cache
def lora_base(base: Path, form: str) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    model = lora_files.network(num_blocks=1)
    layers = [name for name in lora_files.LAYERS if not name.startswith("blocks.1.")]
    wanted = {layer: model.get_submodule(layer).weight.shape for layer in layers}
    generator = torch.Generator().manual_seed(1)
    pairs = {
        name: (torch.randn(4, cols, generator=generator) * 0.2, torch.randn(rows, 4, generator=generator) * 0.2)
        for name, (rows, cols) in wanted.items()
    }
    path = lora_files.write(base / form.replace(" ", "_"), form, pairs)
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    with safe_open(file, framework="pt") as opened:
        notes = dict(opened.metadata() or {})
    return file, load_file(file), notes


def linked(source: Path, target: Path, but: str) -> Path:
    """The folder `source` again, its files linked, all but one."""
    for file in source.rglob("*"):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif str(file.relative_to(source)) != but:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return target


@reader
def lora(random: Random, base: Path, folder: Path) -> None:
    from trellis_core.lora.apply import attach, merge
    from trellis_core.lora.combine import parts_of
    from trellis_core.lora.detect import origin_of
    from trellis_core.lora.names import DTYPES, FORMATS
    from trellis_core.lora.report import describe
    from trellis_core.lora.stack import Lora, match, place, read_cached
    from trellis_core.lora.write import save

    form = random.choice(lora_files.FORMATS)
    whole, tensors, notes = lora_base(base, form)
    file = folder / whole.name
    beside = next(iter(whole.parent.glob("*.json")), None)
    if beside and random.random() < 0.6:
        (folder / beside.name).write_bytes(damaged_json(json.loads(beside.read_text()), random))
        file.symlink_to(whole)
    else:
        file.write_bytes(damaged_safetensors(tensors, notes, random))
    strength = random.choice(("1", "1", "0.5", "-1", "0", "nan", "inf", "1e30", "-100"))
    name, number = split_strength(f"{file}:{strength}")
    one = Lora(Path(name), number, random.choice((None, None, "structure", "shape", "texture")))
    read = read_cached(file)
    describe(read, [origin_of(read, adapter) for adapter in read.adapters])
    with tolerated():
        family = whole_family(base)
        for report in match(family, one):
            report.to_text()
        changed, _ = place(family, [one], family.route(512))
        for role, uses in changed.loras.items():
            model = family.networks[role].load()
            with torch.no_grad():
                for on in (attach(model, uses), merge(model, uses)):
                    lora_files.run(model) if model.params.resolution == 2 else None
                    on.remove()
    with tolerated():
        save(folder / "new.safetensors", parts_of([one]), random.choice(FORMATS), random.choice(list(DTYPES)))
    with tolerated():
        other = Lora(lora_base(base, random.choice(lora_files.FORMATS))[0], random.choice((1.0, -0.5)))
        rank = random.choice((None, 1, 2, 5))
        save(folder / "merged.safetensors", parts_of([one, other], rank), "comfy", "fp32")


@reader
def network(random: Random, base: Path, folder: Path) -> None:
    """One network: config beside weights."""
    from trellis_core.weights.network_file import network_file

    role = random.choice(list(CONFIGS))
    source = tiny(base) / "ckpts" / role
    stem = folder / "net"
    if random.random() < 0.6:
        stem.with_suffix(".safetensors").symlink_to(source.with_suffix(".safetensors"))
        stem.with_suffix(".json").write_bytes(damaged_json(json.loads(source.with_suffix(".json").read_text()), random))
    else:
        stem.with_suffix(".json").symlink_to(source.with_suffix(".json"))
        tensors = load_file(source.with_suffix(".safetensors"))
        stem.with_suffix(".safetensors").write_bytes(damaged_safetensors(tensors, {"format": "pt"}, random))
    with tolerated():
        describe_file(stem)
    found = network_file(stem)
    found.check()
    found.memory()
    found.load()


@reader
def family(random: Random, base: Path, folder: Path) -> None:
    """A weights folder: pipeline.json and configs."""
    from trellis_core.memory.plan import plan_run
    from trellis_core.settings import GenerationSettings

    names = ["pipeline.json"] * 6 + ["dino/config.json", f"ckpts/{random.choice(list(CONFIGS))}.json"]
    name = random.choice(names)
    root = linked(tiny(base), folder / "tiny", name)
    (root / name).write_bytes(damaged_json(json.loads((tiny(base) / name).read_text()), random))
    made = load_family(root)
    describe_family(made)
    settings = GenerationSettings(resolution=made.recommended or made.resolutions[0])
    assert plan_run(made, settings, QUIET).peak > 0
    for stage, sampler in made.samplers.items():
        assert 0 <= sampler.sigma_min < 1, stage


@reader
def repackaged(random: Random, base: Path, folder: Path) -> None:
    """ComfyUI's single files, quantised ones among them."""
    from trellis_core.weights.repackaged import find_networks

    role, prefix = random.choice((
        ("shape_slat_flow_model_512", "model.img2shape_512."), ("shape_slat_decoder", "shape_dec."),
        ("sparse_structure_decoder", "struct_dec."), ("tex_slat_decoder", "txt_dec."),
    ))  # fmt: skip
    name, args = CONFIGS[role]
    tensors = {prefix + key: value for key, value in random_tensors(name, args, 0).items()}
    if role.startswith("shape_slat_flow"):
        for key in [k for k in tensors if k.endswith("mlp.0.weight") and "blocks" in k]:
            layer = key.removesuffix("weight")
            note = {"format": "int8_tensorwise", "convrot": random.random() < 0.5, "convrot_groupsize": 4}
            text = damaged_json(note, random) if random.random() < 0.5 else json.dumps(note).encode()
            tensors |= {
                key: torch.ones(tensors[key].shape, dtype=torch.int8),
                f"{layer}weight_scale": torch.ones(1),
                f"{layer}comfy_quant": torch.frombuffer(bytearray(text), dtype=torch.uint8),
            }
    file = folder / "all.safetensors"
    if random.random() < 0.3:
        save_file(tensors, file)
    else:
        file.write_bytes(damaged_safetensors(tensors, {}, random))
    with tolerated():
        describe_file(file)
    for found in find_networks(file).values():
        found.check()
        found.load()


@reader
def gguf(random: Random, base: Path, folder: Path) -> None:
    from trellis_core.weights.gguf import read_table, read_tensor

    file = folder / "a.gguf"
    file.write_bytes(damaged_bytes(_gguf_bytes(random), random))
    for entry in read_table(file).values():
        read_tensor(file, entry)


def _gguf_bytes(random: Random) -> bytes:
    """A file of three tensors, with facts of every type."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    facts = [
        ("general.alignment", struct.pack("<II", 4, 32)),
        ("general.name", struct.pack("<I", 8) + text("tiny")),
        ("list", struct.pack("<IIQ", 9, 5, 100) + bytes(400)),
        ("texts", struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")),
        ("comfy.gguf.orig_shape.b", struct.pack("<IIQ3i", 9, 5, 3, 2, 4, 8)),
    ]
    kinds = [("a", (32, 4), random.choice((0, 1, 30))), ("b", (8, 8), 0), ("c", (256, 2), random.choice((12, 13, 14, 8, 2)))]
    table, at = b"", 0
    for name, shape, kind in kinds:
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        at += 4096
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(kinds), len(facts)) + b"".join(text(k) + v for k, v in facts) + table
    return head + bytes(-len(head) % 32) + random.randbytes(at)


@reader
def stage_file(random: Random, base: Path, folder: Path) -> None:
    from trellis_core.noise import state_of, streams
    from trellis_core.stage_files import FORMAT, load_stage

    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [1, 0, 0, 7]], dtype=torch.int32)
    tensors = {"coords": coords, "rng": state_of(streams(1, 2)), "feats": torch.zeros(3, 4)}
    note = {"stage": "shape", "resolution": 32, "samples": 2, "made_with": {"seed": 1}}
    (folder / "a").write_bytes(damaged_safetensors(tensors, {FORMAT: json.dumps(note)}, random))
    load_stage(folder / "a")


@cache
def mesh_base(base: Path) -> dict[str, bytes]:
    import numpy as np
    import trimesh

    box = trimesh.creation.box()
    uv = np.random.default_rng(0).random((len(box.vertices), 2))
    picture = Image.new("RGB", (8, 8), (200, 20, 20))
    box.visual = trimesh.visual.TextureVisuals(uv=uv, image=picture)
    plain = trimesh.creation.icosphere(subdivisions=1)
    return {
        "glb": box.export(file_type="glb"),
        "plain.glb": plain.export(file_type="glb"),
        "obj": plain.export(file_type="obj").encode(),
        "ply": plain.export(file_type="ply"),
        "stl": plain.export(file_type="stl"),
        "off": plain.export(file_type="off").encode(),
        "3mf": plain.export(file_type="3mf"),
    }


@reader
def mesh(random: Random, base: Path, folder: Path) -> None:
    from trellis_core.gltf.container import with_extras
    from trellis_core.gltf.read import read_mesh
    from trellis_core.gltf.read_textured import read_textured_mesh

    name = random.choice(("glb", "glb", "glb", "glb", "plain.glb", "obj", "obj", "ply", "stl", "off", "3mf"))
    data, kind = mesh_base(base)[name], name.split(".")[-1]
    if kind == "glb" and random.random() < 0.7:
        size = struct.unpack_from("<I", data, 12)[0]
        text = damaged_json(json.loads(data[20 : 20 + size]), random)
        text += b" " * (-len(text) % 4)
        rest = data[20 + size :]
        data = (
            struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)) + struct.pack("<I4s", len(text), b"JSON") + text + rest
        )
    elif kind in ("obj", "off") and random.random() < 0.7:
        data = _damaged_lines(data, random)
    else:
        data = damaged_bytes(data, random)
    with tolerated():
        read_mesh(data, kind)
    with tolerated():
        read_textured_mesh(data, kind)
    if kind == "glb":
        with_extras(data, {"a": 1})


def _damaged_lines(data: bytes, random: Random) -> bytes:
    lines = [line.split(b" ") for line in data.split(b"\n")]
    words = [
        b"nan",
        b"inf",
        b"1e999",
        b"-1",
        b"0",
        b"999999999999",
        b"9" * 5000,
        b"a",
        b"",
        b"1/2/3/4",
        b"1//",
        b"f",
        b"vt",
        b"\xff",
    ]
    for _ in range(random.choice((1, 2, 5, 30))):
        line = random.choice(lines)
        action = random.randrange(4)
        if action == 0 and line:
            line[random.randrange(len(line))] = random.choice(words)
        elif action == 1 and line:
            line.pop()
        elif action == 2:
            line.append(random.choice(words))
        else:
            lines.insert(random.randrange(len(lines)), list(random.choice(lines)))
    return b"\n".join(b" ".join(line) for line in lines)


PICTURES = (
    ("PNG", "RGBA", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "I;16", {}), ("PNG", "1", {}), ("JPEG", "RGB", {}),
    ("JPEG", "CMYK", {}), ("JPEG", "L", {}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}), ("GIF", "P", {}),
    ("BMP", "RGB", {}), ("TIFF", "RGBA", {"compression": "tiff_lzw"}), ("TIFF", "F", {}), ("TIFF", "RGB", {}),
    ("ICO", "RGBA", {}),
    ("PPM", "RGB", {}), ("TGA", "RGBA", {"compression": "tga_rle"}), ("AVIF", "RGBA", {}), ("JPEG2000", "RGB", {}),
    ("DDS", "RGBA", {}),
    ("ICNS", "RGBA", {}), ("PCX", "L", {}), ("SGI", "RGB", {}), ("QOI", "RGBA", {}),
)  # fmt: skip


@cache
def picture_base(kind: int) -> bytes | None:
    form, mode, options = PICTURES[kind]
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 50, 40), fill=(200, 90, 40, 255))
    image = image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    try:
        image.save(stream, form, **options, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") else {}))
    except (OSError, KeyError, ValueError):
        return None  # this Pillow does not write it
    return stream.getvalue()


@reader
def picture(random: Random, base: Path, folder: Path) -> None:
    from trellis_core.image.matting import key_plain_background
    from trellis_core.image.preprocess import preprocess
    from trellis_core.image.reading import open_picture

    kind = random.randrange(len(PICTURES))
    if not (whole := picture_base(kind)):
        return
    opened = open_picture(io.BytesIO(damaged_bytes(whole, random)))
    with tolerated():
        preprocess(opened)
    preprocess(opened, key_plain_background)


@reader
def request(random: Random, base: Path, folder: Path) -> None:
    """The body of a job for the service."""
    from trellis_core.fal.endpoints import check_payload
    from trellis_core.fal.errors import FalError

    app = random.choice(("fal-ai/trellis-2", "fal-ai/trellis-2-lora"))
    body = {
        "image_url": "https://example.com/a.png", "seed": 3, "resolution": 512, "ss_guidance_strength": 3.0,
        "tex_slat_guidance_interval_start": 0.5, "texture_size": "1024", "texture_lora_url": "a",
    }  # fmt: skip
    try:
        check_payload(app, damaged_json(body, random))
    except FalError as error:
        json.dumps(error.detail).encode()


@reader
def text(random: Random, base: Path, folder: Path) -> None:
    """The gate for JSON by itself."""
    from trellis_core.outside import parse_json

    pieces = [random.choice((*RAW, "[", "]", "{", "}", ",", ":", '"', "\\", " ")) for _ in range(random.randrange(12))]
    value: Any = parse_json("".join(pieces), "it", raising=InputError)
    json.dumps(value).encode()
