"""All stages in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import condition, fields, host, pictures
from .lora import changed
from .mesh import color_of
from .sample import lora_input, seed_input
from .save import keep_models
from .settings import chosen, settings_input
from .sockets import Asset, Family, glb_file, model_outputs, schema


class ImageTo3D(io.ComfyNode):
    """Pictures to textured models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        samplers = [name for names in fields.SAMPLERS.values() for name in names]
        return schema(
            "ImageTo3D",
            "TRELLIS.2 Image to 3D",
            "Makes a textured model of a picture: all stages in one. A batch of pictures makes one model of each.",
            search_aliases=["trellis", "image to 3d", "generate mesh"],
            inputs=[
                Family.Input("family"),
                *condition.picture_inputs(),
                seed_input(),
                *fields.widgets(*fields.ROUTE, *samplers, *fields.MESH, *fields.ATLAS),
                *condition.cutting_inputs(),
                *fields.widgets(*fields.FINISH, "faces"),
                lora_input(),
                settings_input(),
                *fields.widgets(*fields.BAKER, *fields.CACHING),
            ],
            outputs=[*model_outputs(), Asset.Output("asset", display_name="asset", is_output_list=True)],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        family: Any,
        image: Any,
        seed: int,
        mask: Any = None,
        background: str = pictures.BACKGROUNDS[0],
        mask_shows: str = pictures.MASK_SIDES[0],
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        from ..trellis_core import stages

        settings = chosen(values, settings)
        family = changed(family, loras, family.route(settings.resolution, settings.cascade))
        run = host.Run(cls)
        assets = stages.generate_all(
            family,
            settings=settings,
            seed=seed,
            **condition.cut(image, mask, background, mask_shows),
            on_condition=lambda seen: run.show(pictures.to_pil(seen.pictures[0])),
            watch=run.watch(family),
            ctx=run.ctx,
        )
        colors = [color_of(asset)[..., :3] for asset in assets]
        glbs = [asset.to_glb_bytes() for asset in assets]
        text = "\n\n".join(asset.report.to_text() for asset in assets)
        return io.NodeOutput([glb_file(glb) for glb in glbs], colors, keep_models(glbs), seed, text, assets)


NODES = [ImageTo3D]
