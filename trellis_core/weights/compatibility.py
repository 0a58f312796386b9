"""Do these networks belong together? Every number that two parts of a family share, held against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import WeightsError
from ..roles import DECODER, FLOW_STAGE, IMAGE_ROLE, SHAPE_DECODER, STRUCTURE_DECODER, STRUCTURE_FLOW, TEXTURE_DECODER
from .official import Scale

Fact = tuple[str, object, str, object]
"""What it is, its value, what it must equal, the value of that."""


def check_together(params: Mapping[str, Any], scales: Mapping[int, Scale], shape_channels: int, texture_channels: int) -> int:
    """Check a family; `WeightsError` lists all that differs.

    Args:
        params: of every network, by role.
        scales: by resolution key.
        shape_channels, texture_channels: lengths of the latent normalisations.

    Returns:
        Decoded voxels per latent voxel and axis.
    """
    shape, texture = params[SHAPE_DECODER], params[TEXTURE_DECODER]
    upscale = 2 ** (len(shape.num_blocks) - 1)
    facts = [
        ("shape normalisation", shape_channels, "shape decoder input", shape.latent_channels),
        ("texture normalisation", texture_channels, "texture decoder input", texture.latent_channels),
        ("texture decoder levels", len(texture.num_blocks), "shape decoder levels", len(shape.num_blocks)),
        ("shape decoder output", shape.out_channels, "channels of a dual grid", 7),
        ("texture decoder output", texture.out_channels, "PBR channels", 6),
        ("shape decoder predicting subdivision", shape.pred_subdiv, "its part", True),
        ("texture decoder predicting subdivision", texture.pred_subdiv, "its part", False),
        *_flow_facts(params),
        *_scale_facts(params, scales, upscale),
    ]
    if wrong := [f"{what} is {value}, {other} is {wanted}" for what, value, other, wanted in facts if value != wanted]:
        raise WeightsError(f"These parts do not belong together: {'; '.join(wrong)}.")
    return upscale


def _flow_facts(params: Mapping[str, Any]) -> Iterator[Fact]:
    for role, stage in FLOW_STAGE.items():
        if role not in params:
            continue
        flow, latent = params[role], params[DECODER[stage]].latent_channels
        known = params[SHAPE_DECODER].latent_channels if stage == "texture" else 0
        yield f"{role} condition", flow.cond_channels, "image encoder output", params[IMAGE_ROLE].hidden_size
        yield f"{role} output", flow.out_channels, "its decoder's input", latent
        yield f"{role} input", flow.in_channels, "its latent and what it knows", latent + known


def _scale_facts(params: Mapping[str, Any], scales: Mapping[int, Scale], upscale: int) -> Iterator[Fact]:
    structure, image = params[STRUCTURE_DECODER], params[IMAGE_ROLE]
    fine = params[STRUCTURE_FLOW].resolution * 2 ** (len(structure.channels) - 1)
    for key, scale in scales.items():
        yield f"output at {key}", scale.output, "grid times decoder upscale", scale.structure_grid * upscale
        yield f"image size at {key} over patches, rest", scale.image_size % image.patch_size, "needed", 0
        if key <= 512:  # a structure is pooled to this grid; the cascade only refines to larger ones
            yield f"structure of {fine} over the {key} grid, rest", fine % scale.structure_grid, "needed", 0
