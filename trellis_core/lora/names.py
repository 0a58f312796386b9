"""Names: from a key of a LoRA file to a parameter of a flow transformer (docs/method/lora.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..roles import flow_roles
from ..settings import STAGES

FORMATS = ("peft", "comfy", "kohya")
"""How the keys of a file may be spelled."""
DTYPES = ("fp16", "bf16", "fp32")
"""Numbers that a file may be written with."""

_ATTENTION = ("to_out", "q_rms_norm.gamma", "k_rms_norm.gamma")
TARGETS = (
    *(f"blocks.#.self_attn.{name}" for name in ("to_qkv", *_ATTENTION)),
    *(f"blocks.#.cross_attn.{name}" for name in ("to_q", "to_kv", *_ATTENTION)),
    *("blocks.#.mlp.mlp.0", "blocks.#.mlp.mlp.2", "blocks.#.norm2", "blocks.#.modulation", "blocks.#.adaLN_modulation.1"),
    *("t_embedder.mlp.0", "t_embedder.mlp.2", "adaLN_modulation.1", "input_layer", "out_layer"),
)
"""Layers and loose parameters of a flow transformer, `#` standing for the block's number."""

LOOSE = ("gamma", "modulation")
"""Ends of the targets that are parameters themselves and not layers."""

SUBMODELS = {
    **{role: (stage, scale) for stage in STAGES for scale, role in flow_roles(stage).items()},
    **{stage: (stage, None) for stage in STAGES},
    "sparse_structure": ("structure", None),
    "structure_model": ("structure", None),
    "img2shape_512": ("shape", 512),
    "img2shape": ("shape", 1024),
    "geometry": ("shape", None),
    "shape2txt": ("texture", 1024),
}
"""Name of a sub-model in front of a key -> stage and resolution."""

_WRAPPERS = (
    "base_model.model", "base_model", "diffusion_model", "transformer", "unet", "denoiser", "model", "module", "_orig_mod",
    "lora_unet", "lora_transformer", "lycoris",
)  # fmt: skip

# Dots may be underscores in a file, so a name is looked up as a whole and never taken apart at its underscores.
_TABLE = {re.sub(r"[._]", "_", target): target for target in TARGETS}
_TARGET = re.compile(
    r"(?P<prefix>(?:.*?[._])?)(?P<target>"
    + "|".join(target.replace(".", "[._]").replace("#", "[0-9]{1,3}") for target in TARGETS)
    + ")"
)
_WRAPPER = re.compile("(?:" + "|".join(map(re.escape, _WRAPPERS)) + ")[._]")
_SUBMODEL = re.compile("(" + "|".join(sorted(map(re.escape, SUBMODELS), key=len, reverse=True)) + ")[._]")

STRANGERS = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks|img_attn|txt_attn"), "Flux"),
    (re.compile(r"(down|up|input|output|mid|middle)_blocks?[._]|lora_te\d?_|text_model"), "Stable Diffusion (SDXL or 1.5)"),
    (re.compile(r"joint_blocks|transformer_blocks"), "a picture or video model"),
    (re.compile(r"language_model|self_attn[._](q|k|v|o)_proj"), "a language model"),
)
"""What the names of other models' layers look like."""


@dataclass(frozen=True)
class Place:
    """Where a key belongs: a target of `TARGETS` with its block number, and what the prefix says about the stage."""

    target: str
    stage: str | None
    resolution: int | None

    @property
    def weight(self) -> str:
        """Name of the parameter."""
        return self.target if self.target.endswith(LOOSE) else f"{self.target}.weight"


def find_place(name: str) -> Place | None:
    """Where a layer name of a file belongs, None if no flow transformer has such a layer."""
    match = _TARGET.fullmatch(name)
    if match is None:
        return None
    stage = resolution = None
    rest = match["prefix"]
    while rest:
        if found := _SUBMODEL.match(rest):
            stage, resolution = SUBMODELS[found[1]]
        else:
            found = _WRAPPER.match(rest)
        if found is None:
            return None
        rest = rest[found.end() :]
    numbers = re.findall(r"(?<=blocks.)\d+", match["target"])
    key = re.sub(r"[._]", "_", match["target"])
    target = _TABLE[re.sub(r"(?<=blocks_)\d+", "#", key)]
    return Place(target.replace("#", numbers[0]) if numbers else target, stage, resolution)


def stranger(names: list[str]) -> str | None:
    """For which other model files with such keys are made, if that is plain."""
    text = "\n".join(names)
    return next((model for pattern, model in STRANGERS if pattern.search(text)), None)
