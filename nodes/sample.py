"""The three samplers: structure, shape, texture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import Types, io

from ..trellis_core.noise import state_of, streams
from ..trellis_core.settings import SEED_LIMIT
from . import fields, host
from .lora import changed
from .sockets import Condition, Family, Loras, Shape, Structure, Texture, advanced, schema


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


def _variant_input(stage: str) -> Any:
    return io.Int.Input(
        "variant",
        default=0,
        min=0,
        max=2**31 - 1,
        optional=True,
        tooltip=f"0 goes on from the seed. Any other number makes another {stage} on the same input.",
    )


def _varied(value: Any, variant: int) -> Any:
    """The value with the streams of noise that `variant` asks for."""
    if variant == 0:
        return value
    return replace(value, rng=state_of(streams(variant, value.samples)))


class SampleStructure(io.ComfyNode):
    """Condition to structure."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SampleStructure",
            "TRELLIS.2 Sample Structure",
            "Finds the rough form: which voxels of a coarse grid the object fills.",
            inputs=[
                Family.Input("family"),
                Condition.Input("condition"),
                seed_input(),
                *fields.widgets(*fields.SAMPLERS["structure"]),
                advanced(
                    io.Boolean.Input(
                        "cascade",
                        default=True,
                        optional=True,
                        tooltip="Must agree with Sample Shape: off only where that samples 1024 directly.",
                    )
                ),
                lora_input(),
                *fields.widgets(*fields.CACHING),
            ],
            outputs=[
                Structure.Output("structure", display_name="structure"),
                io.Voxel.Output("voxels", display_name="voxels", tooltip="The same as a dense 0/1 volume, y up."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, ss_guidance_interval_start: float, ss_guidance_interval_end: float) -> bool | str:
        start, end = ss_guidance_interval_start, ss_guidance_interval_end
        return fields.check(ss_guidance_interval_start=start, ss_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, seed: int, cascade: bool = True, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        from ..trellis_core import stages

        coarse = cascade and 512 in family.resolutions
        settings = fields.settings({**values, "resolution": 512 if coarse else 1024, "cascade": cascade})
        family = changed(family, loras, family.route(settings.resolution, cascade))
        run = host.Run(cls)
        structure = stages.sample_structure(family, condition, settings, seed, watch=run.watch(family), ctx=run.ctx)
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
            "SampleShape",
            "TRELLIS.2 Sample Shape",
            "Forms the surface on the structure. Above 512 coarsely first, then refined (cascade).",
            inputs=[
                Family.Input("family"),
                Condition.Input("condition"),
                Structure.Input("structure"),
                *fields.widgets("resolution", *fields.SAMPLERS["shape"], "cascade", "max_num_tokens"),
                _variant_input("shape"),
                lora_input(),
                *fields.widgets(*fields.CACHING),
            ],
            outputs=[Shape.Output("shape", display_name="shape")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, shape_slat_guidance_interval_start: float, shape_slat_guidance_interval_end: float) -> bool | str:
        start, end = shape_slat_guidance_interval_start, shape_slat_guidance_interval_end
        return fields.check(shape_slat_guidance_interval_start=start, shape_slat_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, structure: Any, variant: int = 0, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        from ..trellis_core import stages

        settings = fields.settings(values)
        family = changed(family, loras, family.route(settings.resolution, settings.cascade))
        run = host.Run(cls)
        structure = _varied(structure, variant)
        shape = stages.sample_shape(family, condition, structure, settings, watch=run.watch(family), ctx=run.ctx)
        return io.NodeOutput(shape)


class SampleTexture(io.ComfyNode):
    """Shape to texture latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SampleTexture",
            "TRELLIS.2 Sample Texture",
            "Paints the shape: colour, metalness, roughness and opacity. The shape stays as it is.",
            inputs=[
                Family.Input("family"),
                Condition.Input("condition"),
                Shape.Input("shape"),
                *fields.widgets(*fields.SAMPLERS["texture"]),
                _variant_input("texture"),
                lora_input(),
                *fields.widgets(*fields.CACHING),
            ],
            outputs=[Texture.Output("texture", display_name="texture")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, tex_slat_guidance_interval_start: float, tex_slat_guidance_interval_end: float) -> bool | str:
        start, end = tex_slat_guidance_interval_start, tex_slat_guidance_interval_end
        return fields.check(tex_slat_guidance_interval_start=start, tex_slat_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, shape: Any, variant: int = 0, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        from ..trellis_core import stages

        settings = fields.settings(values)
        family = changed(family, loras, stages.texture_route(family, shape))
        run = host.Run(cls)
        texture = stages.sample_texture(family, condition, _varied(shape, variant), settings, ctx=run.ctx)
        return io.NodeOutput(texture)


NODES = [SampleStructure, SampleShape, SampleTexture]
