"""Nodes of version 0.1, so that workflows of it load and give the same models. They no longer stand in the menu.

On these, a value left at its default counts as not given: it follows what the weights recommend. What was used is in the
report and in the file. The widgets keep their order, for that is how the editor saves their values; none is added.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trellis_core.settings import STAGE_PREFIX, GenerationSettings
from . import condition, fal, fields, generate, pictures, sample
from .mesh import bake, baked_outputs, baking_inputs, detail_input
from .save import keep_models
from .sockets import Asset, Family, Settings, Shape, Structure, Texture, model_outputs, schema

SAMPLERS = {stage: tuple(f"{prefix}_{end}" for end in fields.ENDINGS) for stage, prefix in STAGE_PREFIX.items()}
ALL_SAMPLERS = tuple(name for names in SAMPLERS.values() for name in names)
ROUTE = ("resolution", "cascade", "max_num_tokens")
MESH = ("decimation_target", "remesh", "remesh_band", "remesh_project")
ATLAS = (
    "texture_size", "uv_unwrap_angle_threshold_deg", "uv_unwrap_refine_iterations", "uv_unwrap_global_iterations",
    "uv_unwrap_smooth_strength",
)  # fmt: skip
FINISH = (
    "alpha_mode", "image_format", "normal_map", "occlusion_map", "image_quality", "compression", "pivot", "size_meters",
    "up_axis", "lods", "max_file_mb",
)  # fmt: skip
SHARED = ("resolution", *ALL_SAMPLERS, *MESH, *ATLAS)
"""What the settings node has in common with the nodes that it stands in for."""

_FOLLOWS = " Left at its default it follows what the weights recommend."


def _widgets(*names: str) -> list[Any]:
    words = {name: GenerationSettings.model_fields[name].description or "" for name in names}
    return [fields.widget(name, text + (_FOLLOWS if name in ALL_SAMPLERS else "")) for name, text in words.items()]


def _schema(node_id: str, name: str, description: str, **more: Any) -> io.Schema:
    said = f"{description} Kept for workflows of version 0.1; new ones take the node of the same name without that number."
    return schema(node_id, f"TRELLIS.2 {name} (0.1)", said, is_deprecated=True, hidden=[io.Hidden.unique_id], **more)


def _settings(values: dict[str, Any]) -> GenerationSettings:
    """Settings of what widgets say, where they say something else than their defaults."""
    complete, usual = fields.checked(values), GenerationSettings()
    return fields.checked({key: getattr(complete, key) for key in values if getattr(complete, key) != getattr(usual, key)})


def _chosen(values: dict[str, Any], connected: GenerationSettings | None) -> GenerationSettings:
    """What the widgets say, where a connected settings node does not say it; that one speaks for all that it has."""
    if connected is None:
        return _settings(values)
    return connected.over(_settings({name: value for name, value in values.items() if name not in SHARED}))


def _settings_input() -> Any:
    return Settings.Input("settings", optional=True, tooltip="From Settings: stands in for the widgets that it has.")


def _model_outputs() -> list[Any]:
    glb, color, *rest = model_outputs()
    path = io.String.Output("path", display_name="path", is_output_list=True, tooltip="The files, in the temporary folder.")
    return [glb, color, path, *rest]


class ImageTo3D(io.ComfyNode):
    """Pictures to textured models, with all settings on one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ImageTo3D",
            "Image to 3D",
            "Makes a textured model of a picture: all stages in one. A batch of pictures makes one model of each.",
            inputs=[
                Family.Input("family", optional=True, tooltip="The networks, from Load TRELLIS.2. Unconnected: mini."),
                *condition.picture_inputs(),
                sample.seed_input(),
                *_widgets(*ROUTE, *ALL_SAMPLERS, *MESH, *ATLAS),
                *condition.cutting_inputs(),
                *_widgets(*FINISH, "faces"),
                sample.lora_input(),
                _settings_input(),
                *_widgets("rasterizer", "step_caching"),
            ],
            outputs=[
                *_model_outputs(),
                Asset.Output("asset", display_name="asset", is_output_list=True, tooltip="For Asset Report."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        background: Any = None,
        ss_guidance_interval_start: Any = None,
        ss_guidance_interval_end: Any = None,
        shape_slat_guidance_interval_start: Any = None,
        shape_slat_guidance_interval_end: Any = None,
        tex_slat_guidance_interval_start: Any = None,
        tex_slat_guidance_interval_end: Any = None,
    ) -> bool | str:
        intervals = {name: value for name, value in locals().items() if name.endswith(("_start", "_end"))}
        found = fields.check(**intervals)
        return condition.check_background(background) if found is True else found

    @classmethod
    def execute(
        cls,
        image: Any,
        seed: int = 0,
        family: Any = None,
        mask: Any = None,
        background: str = pictures.BACKGROUNDS[0],
        mask_shows: str = pictures.MASK_SIDES[0],
        loras: Any = None,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        family, chosen = generate.family_or_mini(family), _chosen(values, settings)
        made = generate.make(cls, family, image, seed, mask, background, mask_shows, loras, chosen)
        glbs, colors, seed, text = generate.handed_out(made, seed)
        assets = [asset for asset, _ in made]
        return io.NodeOutput(glbs, colors, keep_models([a.to_glb_bytes() for a in assets]), seed, text, assets)


class SampleStructure(io.ComfyNode):
    """Condition to structure."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SampleStructure",
            "Sample Structure",
            "Finds the rough form: which voxels of a coarse grid the object fills.",
            inputs=[
                sample.family_input(),
                sample.condition_input(),
                sample.seed_input(),
                *_widgets(*SAMPLERS["structure"]),
                sample.cascade_input(),
                sample.lora_input(),
                *_widgets("step_caching"),
            ],
            outputs=sample.structure_outputs(),
        )

    @classmethod
    def validate_inputs(cls, ss_guidance_interval_start: Any = None, ss_guidance_interval_end: Any = None) -> bool | str:
        start, end = ss_guidance_interval_start, ss_guidance_interval_end
        return fields.check(ss_guidance_interval_start=start, ss_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, seed: int = 0, cascade: bool = True, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        return sample.sample_structure(cls, family, condition, seed, cascade, loras, _settings(values))


class SampleShape(io.ComfyNode):
    """Structure to shape latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SampleShape",
            "Sample Shape",
            "Forms the surface on the structure. Above 512 coarsely first, then refined (cascade).",
            inputs=[
                sample.family_input(),
                sample.condition_input(),
                Structure.Input("structure", tooltip="The rough form, from Sample Structure."),
                *_widgets("resolution", *SAMPLERS["shape"], "cascade", "max_num_tokens"),
                sample.variant_input("shape"),
                sample.lora_input(),
                *_widgets("step_caching"),
            ],
            outputs=[Shape.Output("shape", display_name="shape", tooltip="The surface as a latent.")],
        )

    @classmethod
    def validate_inputs(
        cls, shape_slat_guidance_interval_start: Any = None, shape_slat_guidance_interval_end: Any = None
    ) -> bool | str:
        start, end = shape_slat_guidance_interval_start, shape_slat_guidance_interval_end
        return fields.check(shape_slat_guidance_interval_start=start, shape_slat_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, structure: Any, variant: int = 0, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        return sample.sample_shape(cls, family, condition, structure, variant, loras, _settings(values))


class SampleTexture(io.ComfyNode):
    """Shape to texture latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SampleTexture",
            "Sample Texture",
            "Paints the shape: colour, metalness, roughness and opacity. The shape stays as it is.",
            inputs=[
                sample.family_input(),
                sample.condition_input(),
                Shape.Input("shape", tooltip="The surface to paint, from Sample Shape."),
                *_widgets(*SAMPLERS["texture"]),
                sample.variant_input("texture"),
                sample.lora_input(),
                *_widgets("step_caching"),
            ],
            outputs=[Texture.Output("texture", display_name="texture", tooltip="Colour and material as a latent.")],
        )

    @classmethod
    def validate_inputs(
        cls, tex_slat_guidance_interval_start: Any = None, tex_slat_guidance_interval_end: Any = None
    ) -> bool | str:
        start, end = tex_slat_guidance_interval_start, tex_slat_guidance_interval_end
        return fields.check(tex_slat_guidance_interval_start=start, tex_slat_guidance_interval_end=end)

    @classmethod
    def execute(
        cls, family: Any, condition: Any, shape: Any, variant: int = 0, loras: Any = None, **values: Any
    ) -> io.NodeOutput:
        return sample.sample_texture(cls, family, condition, sample.varied(shape, variant), loras, _settings(values))


class BakeTextures(io.ComfyNode):
    """Mesh and voxels to a textured model, with all settings on one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "BakeTextures",
            "Bake Textures",
            "Unwraps the mesh, bakes the voxels into textures, and makes a GLB of it.",
            inputs=[*baking_inputs(), *_widgets(*ATLAS, *FINISH), detail_input(), *_widgets("rasterizer")],
            outputs=baked_outputs(),
        )

    @classmethod
    def validate_inputs(cls, rasterizer: Any = None, image_format: Any = None, max_file_mb: Any = None) -> bool | str:
        return fields.check_finishing(rasterizer=rasterizer, image_format=image_format, max_file_mb=max_file_mb)

    @classmethod
    def execute(cls, mesh: Any, voxels: Any, detail: Any = None, **values: Any) -> io.NodeOutput:
        return bake(cls, mesh, voxels, detail, _settings(values))


class SettingsNode(io.ComfyNode):
    """All settings in one value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Settings",
            "Settings",
            "Seed, sampling and mesh settings for several nodes: the same for Image to 3D here and at fal.ai.",
            inputs=[sample.seed_input(), *_widgets(*SHARED)],
            outputs=[
                Settings.Output("settings", display_name="settings", tooltip="For the nodes of version 0.1."),
                io.Int.Output("seed_out", display_name="seed", tooltip="The seed."),
            ],
        )

    @classmethod
    def validate_inputs(cls, ss_guidance_interval_start: Any = None, ss_guidance_interval_end: Any = None) -> bool | str:
        start, end = ss_guidance_interval_start, ss_guidance_interval_end
        return fields.check(ss_guidance_interval_start=start, ss_guidance_interval_end=end)

    @classmethod
    def execute(cls, seed: int = 0, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(_settings(values), seed)


class FalApi(io.ComfyNode):
    """Pictures to textured models, elsewhere, with all settings on one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "FalApi",
            "Image to 3D (fal)",
            "Has the model made at fal.ai, or on a server of your own, with the same settings as Image to 3D.",
            inputs=[
                *condition.picture_inputs(),
                sample.seed_input(),
                fal.endpoint_input(),
                *_widgets(*SHARED),
                *condition.cutting_inputs(),
                sample.lora_input(),
                *fal.server_inputs(),
                _settings_input(),
            ],
            outputs=_model_outputs(),
        )

    @classmethod
    def validate_inputs(cls, background: Any = None) -> bool | str:
        return condition.check_background(background)

    @classmethod
    async def execute(
        cls,
        image: Any,
        seed: int = 0,
        endpoint: str = fal.ENDPOINTS[0],
        mask: Any = None,
        background: str = pictures.BACKGROUNDS[0],
        mask_shows: str = pictures.MASK_SIDES[0],
        loras: Any = None,
        base_url: str = "",
        request_id: str = "",
        submit_anew: bool = False,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        asked = {"endpoint": endpoint, "mask": mask, "background": background, "mask_shows": mask_shows, "loras": loras}
        asked |= {"base_url": base_url, "request_id": request_id, "submit_anew": submit_anew}
        *made, text = await fal.have_made(cls, image, seed, _chosen(values, settings), **asked)
        glbs, colors, seed = fal.handed_out(made)
        paths = keep_models([model.glb for model in made])
        return io.NodeOutput(glbs, colors, paths, seed, text, ui={"text": [text]})


NODES = [ImageTo3D, SampleStructure, SampleShape, SampleTexture, BakeTextures, SettingsNode, FalApi]
