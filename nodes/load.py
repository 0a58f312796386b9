"""Where weights come from."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .fields import ENDINGS
from .sockets import Choice, Family, advanced, schema

AS_STORED = "as stored"


class LoadFamily(io.ComfyNode):
    """The first node of every graph of ours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadFamily",
            "Load TRELLIS.2",
            "Finds a family of networks and checks that its files are whole and belong together. Nothing is read into "
            "memory before a stage needs it. 'mini' is small, ships with this pack and needs no download.",
            search_aliases=["trellis", "image to 3d", "3d model loader"],
            inputs=[
                Choice(
                    "weights",
                    options=host.family_names(),
                    default="mini",
                    tooltip="mini, or what lies in models/trellis2 (a folder with pipeline.json) or, as the host's own "
                    "TRELLIS.2 files, in models/diffusion_models, vae and clip_vision.",
                ),
                advanced(
                    Choice(
                        "precision",
                        options=[AS_STORED, *host.PRECISIONS],
                        default=AS_STORED,
                        optional=True,
                        tooltip="int8 and fp8 round the flow networks as they are read and halve their memory. int8 costs "
                        "hardly any quality; fp8 a little more, and is quicker on GPUs that multiply float8. "
                        "LoRAs act unrounded.",
                    )
                ),
            ],
            outputs=[
                Family.Output("family", display_name="family", tooltip="The networks, for all nodes that compute with them.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str, precision: str = AS_STORED) -> str:
        return host.family_stamp(weights)

    @classmethod
    def execute(cls, weights: str, precision: str = AS_STORED) -> io.NodeOutput:
        family = host.open_family(weights, None if precision == AS_STORED else precision)
        return io.NodeOutput(family, ui=host.shown(cls, advice(family)))


def advice(family: Any) -> str:
    """What the weights recommend, in a few lines."""
    from ..trellis_core.sampling import sampler_values
    from ..trellis_core.settings import STAGE_PREFIX, GenerationSettings

    lines = [f"{family.name} recommends:"]
    if family.recommended:
        lines.append(f"resolution {family.recommended}")
    for stage, prefix in STAGE_PREFIX.items():
        values = sampler_values(GenerationSettings(), stage, family.samplers[stage].params)
        steps, guidance, rescale, start, end, rescale_t = (f"{values[f'{prefix}_{ending}']:g}" for ending in ENDINGS)
        lines.append(f"{stage}: {steps} steps, guidance {guidance} from {start} to {end}, rescale {rescale}, early {rescale_t}")
    return "\n".join(lines)


NODES = [LoadFamily]
