"""The three samplers: structure, shape, texture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import Types, io

from ..trellis_core.noise import state_of, streams
from ..trellis_core.settings import ROUTE_FIELDS, SEED_LIMIT
from . import fields, host
from .lora import changed
from .memo import remembered, stage_key
from .sockets import Condition, Family, Loras, Shape, Structure, Texture, advanced, schema, settings_input


def seed_input() -> Any:
    """The seed of everything that follows."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=SEED_LIMIT - 1,
        control_after_generate=True,
        tooltip="Same seed, same inputs: same model, to the bit on the same machine.",
    )


def lora_input() -> Any:
    return Loras.Input("loras", optional=True, tooltip="LoRAs from Load LoRA nodes; those for other stages are left alone.")


def variant_input(stage: str) -> Any:
    return io.Int.Input(
        "variant",
        default=0,
        min=0,
        max=2**31 - 1,
        optional=True,
        tooltip=f"0 goes on from the seed. Any other number makes another {stage} on the same input.",
    )


def varied(value: Any, variant: int) -> Any:
    """The value with the streams of noise that `variant` asks for."""
    if variant == 0:
        return value
    return replace(value, rng=state_of(streams(variant, value.samples)))


def cascade_input() -> Any:
    """Whether the structure is for a cascade."""
    return advanced(
        io.Boolean.Input(
            "cascade",
            default=True,
            optional=True,
            tooltip="Must agree with Sample Shape: off only where that samples 1024 directly.",
        )
    )


def family_input() -> Any:
    return Family.Input("family", tooltip="The networks, from Load TRELLIS.2.")


def condition_input() -> Any:
    return Condition.Input("condition", tooltip="What the networks see of the picture, from Image Conditioner.")


def structure_outputs() -> list[Any]:
    return [
        Structure.Output("structure", display_name="structure", tooltip="The rough form, for Sample Shape."),
        io.Voxel.Output("voxels", display_name="voxels", tooltip="The same as a dense 0/1 volume, y up."),
    ]


class SampleStructure(io.ComfyNode):
    """Condition to structure."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "StructureSampler",
            "TRELLIS.2 Sample Structure",
            "Finds the rough form: which voxels of a coarse grid the object fills.",
            inputs=[
                family_input(),
                condition_input(),
                seed_input(),
                cascade_input(),
                *fields.widgets("step_caching"),
                lora_input(),
                settings_input(),
            ],
            outputs=structure_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        family: Any,
        condition: Any,
        seed: int = 0,
        cascade: bool = True,
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        return sample_structure(cls, family, condition, seed, cascade, loras, fields.settings(values, settings))


def sample_structure(
    node: type, family: Any, condition: Any, seed: int, cascade: bool, loras: Any, settings: Any
) -> io.NodeOutput:
    """The structure, and the same as voxels."""
    from ..trellis_core import stages

    coarse = cascade and 512 in family.resolutions
    settings = settings.model_copy(update={"resolution": 512 if coarse else 1024, "cascade": cascade})
    family = changed(family, loras, family.route(settings.resolution, cascade))
    run = host.Run(node, "structure")
    key = seed, stage_key(family, "structure", settings, ("resolution", "cascade", "step_caching"))
    structure = remembered(
        (node.hidden.unique_id, "structure"),
        key,
        (condition,),
        lambda: stages.sample_structure(family, condition, settings, seed, watch=run.watch(family), ctx=run.ctx),
    )
    return io.NodeOutput(structure, Types.VOXEL(_dense(structure)))


def _dense(structure: Any) -> torch.Tensor:
    """Float32 [B, X, Y, Z] of a structure, turned y up: (x, y, z) -> (x, z, -y)."""
    sample, x, y, z = structure.coords.long().unbind(1)
    volume = torch.zeros(structure.samples, *[structure.grid] * 3)
    volume[sample, x, z, structure.grid - 1 - y] = 1
    return volume


class SampleShape(io.ComfyNode):
    """Structure to shape latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ShapeSampler",
            "TRELLIS.2 Sample Shape",
            "Forms the surface on the structure. Above 512 coarsely first, then refined (cascade).",
            inputs=[
                family_input(),
                condition_input(),
                Structure.Input("structure", tooltip="The rough form, from Sample Structure."),
                fields.resolution("what the weights recommend"),
                *fields.widgets(*fields.ROUTE),
                variant_input("shape"),
                lora_input(),
                settings_input(),
            ],
            outputs=[Shape.Output("shape", display_name="shape", tooltip="The surface as a latent.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        family: Any,
        condition: Any,
        structure: Any,
        variant: int = 0,
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        chosen = family.advised(fields.settings(values, settings))
        return sample_shape(cls, family, condition, structure, variant, loras, chosen)


def sample_shape(
    node: type, family: Any, condition: Any, structure: Any, variant: int, loras: Any, settings: Any
) -> io.NodeOutput:
    """The shape latent."""
    from ..trellis_core import stages

    family = changed(family, loras, family.route(settings.resolution, settings.cascade))
    run = host.Run(node, "shape")
    key = variant, stage_key(family, "shape", settings, ROUTE_FIELDS)
    shape = remembered(
        (node.hidden.unique_id, "shape"),
        key,
        (condition, structure),
        lambda: stages.sample_shape(
            family, condition, varied(structure, variant), settings, watch=run.watch(family), ctx=run.ctx
        ),
    )
    return io.NodeOutput(shape)


class SampleTexture(io.ComfyNode):
    """Shape to texture latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "TextureSampler",
            "TRELLIS.2 Sample Texture",
            "Paints the shape: colour, metalness, roughness and opacity. The shape stays as it is.",
            inputs=[
                family_input(),
                condition_input(),
                Shape.Input("shape", tooltip="The surface to paint, from Sample Shape."),
                variant_input("texture"),
                *fields.widgets("step_caching"),
                lora_input(),
                settings_input(),
            ],
            outputs=[Texture.Output("texture", display_name="texture", tooltip="Colour and material as a latent.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        family: Any,
        condition: Any,
        shape: Any,
        variant: int = 0,
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        return sample_texture(cls, family, condition, varied(shape, variant), loras, fields.settings(values, settings))


def sample_texture(node: type, family: Any, condition: Any, shape: Any, loras: Any, settings: Any) -> io.NodeOutput:
    """The texture latent."""
    from ..trellis_core import stages

    family = changed(family, loras, stages.texture_route(family, shape))
    run = host.Run(node, "texture")
    return io.NodeOutput(stages.sample_texture(family, condition, shape, settings, watch=run.watch(family), ctx=run.ctx))


NODES = [SampleStructure, SampleShape, SampleTexture]
