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
        from ..trellis_core.asset.asset import make_asset

        settings = chosen(values, settings)
        family = changed(family, loras, family.route(settings.resolution, settings.cascade))
        run = host.Run(cls)
        ctx, watch = run.ctx, run.watch(family)
        seen = condition.see(family, image, mask, background, mask_shows, settings, ctx.part(0.0, 0.08))
        run.show(pictures.to_pil(seen.pictures[0]))
        structure = stages.sample_structure(family, seen, settings, seed, watch=watch, ctx=ctx.part(0.08, 0.25))
        shape = stages.sample_shape(family, seen, structure, settings, watch=watch, ctx=ctx.part(0.25, 0.5))
        texture = stages.sample_texture(family, seen, shape, settings, ctx=ctx.part(0.5, 0.6))
        pairs = stages.decode(family, shape, texture, ctx=ctx.part(0.6, 0.7))
        assets = []
        for index, (mesh, voxels) in enumerate(pairs):
            part = ctx.part(0.7 + 0.3 * index / len(pairs), 0.7 + 0.3 * (index + 1) / len(pairs))
            assets.append(make_asset(mesh, voxels, settings, part))
        colors = [color_of(asset)[..., :3] for asset in assets]
        glbs = [asset.to_glb_bytes() for asset in assets]
        text = "\n\n".join(asset.report.to_text() for asset in assets)
        return io.NodeOutput([glb_file(glb) for glb in glbs], colors, keep_models(glbs), seed, text, assets)


NODES = [ImageTo3D]
