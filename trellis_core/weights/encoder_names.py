"""DINOv3 under its two sets of names: Hugging Face's, which are ours, and timm's (its weights need no licence click).

timm keeps queries, keys and values as one matrix, leaves their biases out where these are zero, as they are in the
published ViT-L/16, and has no mask token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .header import Stored

OWN = ("embeddings.", "layer.", "norm.")
"""How names of the encoder begin; ComfyUI's files may hold other networks beside it, an upsampler under `naf.` for example."""
HEAD_WIDTH = 64
"""Of every published DINOv3 vision transformer: the one number of a config that no tensor's shape tells."""

_ENDS = {"cls_token": "embeddings.cls_token", "reg_token": "embeddings.register_tokens"}
_ENDS |= {f"patch_embed.proj.{kind}": f"embeddings.patch_embeddings.{kind}" for kind in ("weight", "bias")}
_ENDS |= {f"norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
_INNER = {
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm1": "norm1",
    "norm2": "norm2",
}
_LAYER = re.compile(r"blocks\.([0-9]{1,3})\.(.+)")


@dataclass(frozen=True)
class Part:
    """Where a parameter lies in a file.

    Attributes:
        key: the tensor; stored: the parameter's own dtype, shape and bytes.
        third: which third of the tensor's rows it is, None for all of them.
    """

    key: str
    stored: Stored
    third: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The parameter, of the whole tensor."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]


def is_timm(header: Mapping[str, Any]) -> bool:
    return "patch_embed.proj.weight" in header and "reg_token" in header


def parts_of(header: Mapping[str, Stored]) -> dict[str, Part]:
    """Our name of every parameter -> where it lies; what is not the encoder's is left aside."""
    if not is_timm(header):
        return {key: Part(key, stored) for key, stored in header.items() if key.startswith(OWN)}
    found = {}
    for key, stored in header.items():
        layer = _LAYER.fullmatch(key)
        if layer:
            found |= _of_layer(f"layer.{layer[1]}.", layer[2], Part(key, stored))
        elif key in _ENDS:
            found[_ENDS[key]] = Part(key, stored)
    return found


def _of_layer(front: str, name: str, part: Part) -> dict[str, Part]:
    stem, _, kind = name.rpartition(".")
    if name in ("attn.qkv.weight", "attn.qkv.bias") and part.stored.shape and part.stored.shape[0] % 3 == 0:
        rows, *rest = part.stored.shape
        third = replace(part.stored, shape=(rows // 3, *rest), size=part.stored.size // 3)
        return {f"{front}attention.{p}_proj.{kind}": Part(part.key, third, i) for i, p in enumerate("qkv")}
    if name in ("attn.q_bias", "attn.v_bias"):
        return {f"{front}attention.{name[5]}_proj.bias": part}
    if name in ("gamma_1", "gamma_2"):
        return {f"{front}layer_scale{name[-1]}.lambda1": part}
    return {f"{front}{_INNER[stem]}.{kind}": part} if stem in _INNER else {}


def read_args(header: Mapping[str, Stored]) -> dict[str, Any]:
    """The config of an encoder, read off the shapes of its tensors.

    Raises:
        KeyError, ValueError, IndexError: a tensor that tells is missing or has other axes.
    """
    shapes = {key: part.stored.shape for key, part in parts_of(header).items()}
    width, channels, patch, _ = shapes["embeddings.patch_embeddings.weight"]
    biases = {
        f"{name}_bias": f"layer.0.attention.{part}_proj.bias" for name, part in (("query", "q"), ("key", "k"), ("value", "v"))
    }
    return {
        "hidden_size": width,
        "intermediate_size": shapes["layer.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": sum(1 for key in shapes if re.fullmatch(r"layer\.[0-9]+\.norm1\.weight", key)),
        "num_attention_heads": width // HEAD_WIDTH,
        "num_register_tokens": shapes["embeddings.register_tokens"][-2],
        "patch_size": patch,
        "num_channels": channels,
        **{name: key in shapes for name, key in biases.items()},
    }
