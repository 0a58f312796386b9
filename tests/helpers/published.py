"""The published files as hole files: their tables of contents are right, their numbers are not there and take no space."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path

HERE = Path(__file__).parents[1] / "weights" / "published"
"""The published configs, and `keys.txt`: a line for tensors of one shape, `#` for their numbers, which follow as ranges."""

CKPTS = "ckpts/"
STRUCTURE = "TRELLIS-image-large/ckpts/ss_dec_conv3d_16l8_fp16"
ENCODER = {
    "model_type": "dinov3_vit", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "num_register_tokens": 4, "patch_size": 16, "num_channels": 3, "key_bias": False,
    "query_bias": True, "value_bias": True, "mlp_bias": True, "proj_bias": True, "hidden_act": "gelu", "use_gated_mlp": False,
    "layer_norm_eps": 1e-05, "rope_theta": 100.0, "layerscale_value": 1.0,
}  # fmt: skip
"""What the published encoder's config.json says of its shape."""

Table = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> dtype and shape."""


def tables() -> dict[str, Table]:
    """The tensors of every file whose list is known, by its name."""
    found: dict[str, Table] = {}
    for line in (HERE / "keys.txt").read_text().splitlines():
        if line.startswith("== "):
            found[line[3:]] = table = {}
            continue
        name, dtype, shape, *ranges = line.split(" ")
        entry = dtype.upper(), tuple(map(int, shape.split(",")))
        for numbers in _numbers(ranges[0]) if ranges else [()]:
            key = name
            for number in numbers:
                key = key.replace("#", str(number), 1)
            table[key] = entry
    return found


def _numbers(ranges: str) -> Iterator[tuple[int, ...]]:
    for text in ranges.split(","):
        ends = [[int(end) for end in part.split("-")] for part in text.split(".")]
        yield from product(*(range(end[0], end[-1] + 1) for end in ends))


def hugging_face_encoder(layers: int = 24, width: int = 1024) -> Table:
    """Names and shapes of the encoder as its own repository has them."""
    shapes = {
        "embeddings.cls_token": (1, 1, width), "embeddings.mask_token": (1, 1, width),
        "embeddings.register_tokens": (1, 4, width), "embeddings.patch_embeddings.weight": (width, 3, 16, 16),
        "embeddings.patch_embeddings.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for layer in (f"layer.{i}." for i in range(layers)):
        for name, (rows, columns) in {
            "attention.q_proj": (width, width), "attention.k_proj": (width, width), "attention.v_proj": (width, width),
            "attention.o_proj": (width, width), "mlp.up_proj": (4 * width, width), "mlp.down_proj": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (rows,)}
        del shapes[f"{layer}attention.k_proj.bias"]
        vectors = [f"norm{i}.{kind}" for i in "12" for kind in ("weight", "bias")]
        vectors += ["layer_scale1.lambda1", "layer_scale2.lambda1"]
        shapes |= {layer + name: (width,) for name in vectors}
    return {key: ("F32", shape) for key, shape in shapes.items()}


def hole_file(file: Path, table: Mapping[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A safetensors file of these tensors whose numbers are a hole, in the order in which the library writes them."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2}
    header, at = {}, 0
    for key, (dtype, shape) in sorted(table.items(), key=lambda item: (-sizes[item[1][0]], item[0])):
        end = at + prod(shape) * sizes[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + at)
    return file


def replica(home: Path) -> Path:
    """All published files in `home`, in the folders that `python -m trellis_core download` makes; returns the one to load."""
    root, known = home / "TRELLIS.2-4B", tables()
    (root / "ckpts").mkdir(parents=True)
    shutil.copy(HERE / "pipeline.json", root)
    for config in HERE.glob("*.json"):
        stem = root / CKPTS / config.stem if not config.stem.startswith("ss_dec") else home / STRUCTURE
        table = known.get(f"ckpts/{config.stem}") or known.get(f"tilarge/ckpts/{config.stem}")
        table = table or known.get(f"ckpts/{config.stem}".replace("_1024_", "_512_"))  # both scales have one shape
        if config.stem != "pipeline" and table:
            hole_file(stem.with_name(stem.name + ".safetensors"), table)
            shutil.copy(config, stem.with_name(stem.name + ".json"))
    encoder = home / "dinov3-vitl16-pretrain-lvd1689m"
    hole_file(encoder / "model.safetensors", hugging_face_encoder())
    (encoder / "config.json").write_text(json.dumps(ENCODER))
    return root
