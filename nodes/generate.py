"""All stages in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.presets import PRESETS, RECOMMENDED
from ..trellis_core.presets import preset as named
from . import condition, fields, host, pictures
from .lora import changed
from .mesh import color_of
from .sample import lora_input, seed_input
from .sockets import Asset, Choice, Family, advanced, glb_file, model_outputs, schema, settings_input

BEFORE = "what connected settings say, else the preset, else the weights"
"""Who says the resolution that is not chosen on a node of whole models."""


def preset_input() -> Any:
    """Settings that go together, for nodes that make whole models."""
    return Choice(
        "preset",
        options=list(PRESETS),
        default=RECOMMENDED,
        optional=True,
        tooltip="Resolution, triangles, textures and file for a purpose. Connected settings nodes change single values of it. "
        "recommended: what the weights recommend.",
    )


def family_or_mini(family: Any) -> Any:
    """The family; where none is connected, the one that comes with the pack."""
    return host.open_family("mini") if family is None else family


class ImageTo3D(io.ComfyNode):
    """Pictures to textured models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Generate",
            "TRELLIS.2 Image to 3D",
            "Makes a textured model of a picture: all stages in one. A batch of pictures makes one model of each.",
            search_aliases=["trellis", "image to 3d", "image to model", "generate mesh"],
            inputs=[
                *condition.picture_inputs(),
                seed_input(),
                Family.Input("family", optional=True, tooltip="The networks, from Load TRELLIS.2. Unconnected: mini."),
                preset_input(),
                fields.resolution(BEFORE),
                *condition.cutting_inputs(),
                *map(advanced, fields.widgets(*fields.ROUTE)),
                lora_input(),
                settings_input(),
            ],
            outputs=[
                *model_outputs(),
                Asset.Output("asset", display_name="asset", is_output_list=True, tooltip="For Asset Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, background: Any = None) -> bool | str:
        return condition.check_background(background)

    @classmethod
    def execute(
        cls,
        image: Any,
        seed: int = 0,
        family: Any = None,
        mask: Any = None,
        preset: str = "",
        background: str = pictures.BACKGROUNDS[0],
        mask_shows: str = pictures.MASK_SIDES[0],
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        family = family_or_mini(family)
        chosen = family.advised(fields.settings(values, settings, named(preset or RECOMMENDED, family.resolutions)))
        made = make(cls, family, image, seed, mask, background, mask_shows, loras, chosen)
        return io.NodeOutput(*handed_out(made, seed), [asset for asset, _ in made])


def make(
    node: type, family: Any, image: Any, seed: int, mask: Any, background: str, mask_shows: str, loras: Any, settings: Any
) -> list[tuple[Any, Any]]:
    """The models of these pictures and a picture of each, with progress and pictures on the node."""
    from ..trellis_core import stages

    family = changed(family, loras, family.route(settings.resolution, settings.cascade))
    run = host.Run(node)
    assets = stages.generate_all(
        family,
        settings=settings,
        seed=seed,
        **condition.cut(image, mask, background, mask_shows),
        on_condition=lambda seen: run.show(pictures.to_pil(seen.pictures[0])),
        on_voxels=run.show_voxels,
        watch=run.watch(family),
        ctx=run.ctx,
    )
    return [(asset, run.show_asset(asset)) for asset in assets]


def handed_out(made: list[tuple[Any, Any]], seed: int) -> tuple[Any, ...]:
    """What `model_outputs` names."""
    colors = [color_of(asset)[..., :3] for asset, _ in made]
    text = "\n\n".join(asset.report.to_text() for asset, _ in made)
    return [glb_file(asset.to_glb_bytes(), picture) for asset, picture in made], colors, seed, text


NODES = [ImageTo3D]
