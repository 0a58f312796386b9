"""Which networks a family has: their roles in pipeline.json, typed by class, and the stages that they belong to.

A stage is called "structure", "shape" or "texture" everywhere; what the published files call its parts is said here only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from .settings import STAGE_PREFIX, STAGES

if TYPE_CHECKING:
    from torch import nn

    from .flow.slat import SLatFlowModel
    from .flow.structure import SparseStructureFlowModel
    from .image.dino import DinoV3Encoder
    from .vae.sparse_unet import FlexiDualGridVaeDecoder, FlexiDualGridVaeEncoder, SparseUnetVaeDecoder, SparseUnetVaeEncoder
    from .vae.structure import SparseStructureDecoder, SparseStructureEncoder

Network = TypeVar("Network", bound="nn.Module")


class Role(str, Generic[Network]):
    """A network's name in pipeline.json, typed by the class of the network that has it."""

    __slots__ = ()


SAMPLER_KEY = {"structure": "sparse_structure_sampler", "shape": "shape_slat_sampler", "texture": "tex_slat_sampler"}
NORMALIZATION_KEY = {"shape": "shape_slat_normalization", "texture": "tex_slat_normalization"}
"""Stage -> its entry in pipeline.json."""

IMAGE_ROLE: Role[DinoV3Encoder] = Role("image_cond_model")
STRUCTURE_FLOW: Role[SparseStructureFlowModel] = Role("sparse_structure_flow_model")
STRUCTURE_DECODER: Role[SparseStructureDecoder] = Role("sparse_structure_decoder")
SHAPE_DECODER: Role[FlexiDualGridVaeDecoder] = Role("shape_slat_decoder")
TEXTURE_DECODER: Role[SparseUnetVaeDecoder] = Role("tex_slat_decoder")
STRUCTURE_ENCODER: Role[SparseStructureEncoder] = Role("sparse_structure_encoder")
SHAPE_ENCODER: Role[FlexiDualGridVaeEncoder] = Role("shape_slat_encoder")
TEXTURE_ENCODER: Role[SparseUnetVaeEncoder] = Role("tex_slat_encoder")

SCALES = (512, 1024)
"""Resolutions that a shape or texture network is made for."""


def flow_role(stage: str, scale: int) -> Role[SLatFlowModel]:
    """The flow network of "shape" or "texture" for `scale`, one of `SCALES`."""
    return Role(f"{STAGE_PREFIX[stage]}_flow_model_{scale}")


def flow_roles(stage: str) -> dict[int | None, Role]:
    """Scale -> role of a stage's flow networks; None for the structure, which has one for all."""
    return {None: STRUCTURE_FLOW} if stage == "structure" else {scale: flow_role(stage, scale) for scale in SCALES}


FLOW_STAGE = {role: stage for stage in STAGES for role in flow_roles(stage).values()}
"""Role of every flow network -> its stage."""
DECODER = {"structure": STRUCTURE_DECODER, "shape": SHAPE_DECODER, "texture": TEXTURE_DECODER}
NEEDED = (STRUCTURE_FLOW, *DECODER.values(), IMAGE_ROLE)
"""Roles that every family has, besides flow networks of shape and texture for one scale at least."""
