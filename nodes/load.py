"""Where weights come from."""

from __future__ import annotations

from comfy_api.latest import io

from . import host
from .sockets import Family, advanced, schema

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
                io.Combo.Input(
                    "weights",
                    options=host.family_names(),
                    default="mini",
                    tooltip="mini, or what lies in models/trellis2 (a folder with pipeline.json) or, as the host's own "
                    "TRELLIS.2 files, in models/diffusion_models, vae and clip_vision.",
                ),
                advanced(
                    io.Combo.Input(
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
            outputs=[Family.Output("family", display_name="family")],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str, precision: str = AS_STORED) -> str:
        return host.family_stamp(weights)

    @classmethod
    def execute(cls, weights: str, precision: str = AS_STORED) -> io.NodeOutput:
        return io.NodeOutput(host.open_family(weights, None if precision == AS_STORED else precision))


NODES = [LoadFamily]
