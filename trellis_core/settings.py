"""Every knob of a generation, its default and its range, once.

Names, defaults and ranges are those of the hosted endpoints `fal-ai/trellis-2`, `…/multi`, `…/retexture` and
`fal-ai/trellis-2-lora` (docs/method/fal.md); `GenerationSettings` is the union of all, `fal.endpoints.ENDPOINTS` says which of
them speaks which field. The graph nodes, the command line and the service are generated from the fields' types and
descriptions.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticKnownError


def number_from_text(value: Any) -> Any:
    """Page prose shows the two enums as strings, the schema as integers: both come in, integers go out."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _not_before_its_start(end: float, info: ValidationInfo) -> float:
    start = info.data.get(str(info.field_name).replace("_end", "_start"))
    if start is not None and end < start:
        raise PydanticKnownError("greater_than_equal", {"ge": start})
    return end


Resolution = Annotated[Literal[512, 1024, 1536], BeforeValidator(number_from_text)]
TextureSize = Annotated[Literal[1024, 2048, 4096, 8192], BeforeValidator(number_from_text)]
Strength = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
IntervalEnd = Annotated[Unit, AfterValidator(_not_before_its_start)]
Steps = Annotated[int, Field(ge=1, le=50)]
RescaleT = Annotated[float, Field(ge=1, le=6, allow_inf_nan=False)]
MOST_VIEWS = 8
Views = Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_VIEWS)]
AlphaMode = Literal["auto", "OPAQUE", "MASK", "BLEND"]
ImageFormat = Literal["png", "jpeg", "webp"]
Compression = Literal["none", "quantize", "meshopt"]
Pivot = Literal["origin", "center", "ground"]
UpAxis = Literal["y", "z"]
Rasterizer = Literal["torch", "nvdiffrast"]
Unwrapper = Literal["ours", "xatlas"]
RemeshMethod = Literal["solid", "narrow_band"]

STAGES = ("structure", "shape", "texture")
STAGE_PREFIX = {"structure": "ss", "shape": "shape_slat", "texture": "tex_slat"}
"""Stage -> prefix of its settings."""
LORA_FIELD = {"structure": "sparse_structure_lora_url", "shape": "geometry_lora_url", "texture": "texture_lora_url"}
"""Stage -> setting that names its LoRA."""

SAMPLER_FIELDS = {
    "steps": ("sampling_steps",),
    "guidance_strength": ("guidance_strength",),
    "guidance_rescale": ("guidance_rescale",),
    "guidance_interval": ("guidance_interval_start", "guidance_interval_end"),
    "rescale_t": ("rescale_t",),
}
"""Sampler parameter -> endings of the settings that make it."""

SEED_LIMIT = 2**64


class GenerationSettings(BaseModel):
    """All settings of one generation. Immutable; unknown names and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_url: str | None = Field(default=None, description="Where the picture is: a web address or a data URI.")
    image_urls: Views | None = Field(
        default=None,
        description="Where several pictures of one object are, seen from different sides: web addresses or data URIs.",
    )
    mesh_url: str | None = Field(
        default=None, description="Where the model is that gets a new texture: a web address of a GLB, OBJ, PLY or STL file."
    )
    sparse_structure_lora_url: str | None = Field(
        default=None, description="LoRA (.safetensors) for the structure stage: changes the rough form and its proportions."
    )
    geometry_lora_url: str | None = Field(
        default=None, description="LoRA (.safetensors) for the shape stage: changes the style of the surface detail."
    )
    texture_lora_url: str | None = Field(
        default=None, description="LoRA (.safetensors) for the texture stage: changes the style of colour and material."
    )
    seed: int | None = Field(
        default=None, ge=0, lt=SEED_LIMIT, description="Same seed and settings, same model. Left out: a new one every time."
    )
    resolution: Resolution = Field(
        default=1024, description="Voxels per axis of the finished model. More shows finer detail and takes far longer."
    )

    ss_guidance_strength: Strength = Field(
        default=7.5, description="How closely the rough form keeps to the picture. 1 is free, too high makes it exaggerated."
    )
    ss_guidance_rescale: Unit = Field(
        default=0.7, description="Tames the overshoot of strong guidance in the rough form. 0 leaves guidance as it is."
    )
    ss_guidance_interval_start: Unit = Field(
        default=0.6, description="Guidance of the rough form acts while flow time (1 noise, 0 done) is at or above this."
    )
    ss_guidance_interval_end: IntervalEnd = Field(
        default=1.0, description="Guidance of the rough form acts while flow time (1 noise, 0 done) is at or below this."
    )
    ss_sampling_steps: Steps = Field(
        default=12, description="Steps that find the rough form. More is slower and a little surer."
    )
    ss_rescale_t: RescaleT = Field(
        default=5.0, description="Spends more of the steps on the noisy start, where the rough form is decided."
    )

    shape_slat_guidance_strength: Strength = Field(
        default=7.5, description="How closely the surface keeps to the picture. Higher is crisper, too high makes artefacts."
    )
    shape_slat_guidance_rescale: Unit = Field(
        default=0.5, description="Tames the overshoot of strong guidance in the surface. 0 leaves guidance as it is."
    )
    shape_slat_guidance_interval_start: Unit = Field(
        default=0.6, description="Guidance of the surface acts while flow time (1 noise, 0 done) is at or above this."
    )
    shape_slat_guidance_interval_end: IntervalEnd = Field(
        default=1.0, description="Guidance of the surface acts while flow time (1 noise, 0 done) is at or below this."
    )
    shape_slat_sampling_steps: Steps = Field(default=12, description="Steps that form the surface. More is slower and finer.")
    shape_slat_rescale_t: RescaleT = Field(
        default=3.0, description="Spends more of the steps on the noisy start, where the surface's larger features are decided."
    )

    tex_slat_guidance_strength: Strength = Field(
        default=1.0, description="How strongly colours keep to the picture. 1 is off and fastest; 0 ignores the picture."
    )
    tex_slat_guidance_rescale: Unit = Field(
        default=0.0, description="Tames over-saturated colours of strong guidance. No effect while the strength is 1."
    )
    tex_slat_guidance_interval_start: Unit = Field(
        default=0.6, description="Guidance of the texture acts while flow time (1 noise, 0 done) is at or above this."
    )
    tex_slat_guidance_interval_end: IntervalEnd = Field(
        default=0.9, description="Guidance of the texture acts while flow time (1 noise, 0 done) is at or below this."
    )
    tex_slat_sampling_steps: Steps = Field(default=12, description="Steps that paint the model. More is slower and cleaner.")
    tex_slat_rescale_t: RescaleT = Field(
        default=3.0, description="Spends more of the steps on the noisy start, where the overall colouring is decided."
    )

    decimation_target: int = Field(
        default=500_000, ge=5_000, le=2_000_000, description="Vertices that the finished mesh may have at most."
    )
    texture_size: TextureSize = Field(default=2048, description="Pixels per side of the baked textures.")
    remesh: bool = Field(
        default=True,
        description="Rebuild the surface evenly and watertight before decimation; off keeps the decoded triangles.",
    )
    remesh_band: float = Field(
        default=1.0, ge=0, le=4, allow_inf_nan=False,
        description="How far, in voxels, remeshing may move vertices from the surface. More smooths more; 0 moves none.",
    )  # fmt: skip
    remesh_project: Unit = Field(
        default=0.0,
        description="How far remeshed vertices are pulled back onto the decoded surface: 0 smooth and even, 1 exactly on it.",
    )
    uv_unwrap_angle_threshold_deg: float = Field(
        default=90.0, ge=0, le=180, allow_inf_nan=False,
        description="How far normals may turn inside one UV chart. Smaller makes more, flatter charts.",
    )  # fmt: skip
    uv_unwrap_refine_iterations: int = Field(default=0, ge=0, le=10, description="Rounds that tidy the borders of UV charts.")
    uv_unwrap_global_iterations: int = Field(
        default=1, ge=1, le=10, description="Rounds that grow and merge all UV charts anew."
    )
    uv_unwrap_smooth_strength: float = Field(
        default=1.0, ge=0, le=10, allow_inf_nan=False, description="How strongly borders of UV charts are straightened."
    )

    cascade: bool = Field(
        default=True, description="Reach 1024 by refining a 512 shape; off samples 1024 directly, for resolution 1024 only."
    )
    max_num_tokens: int = Field(
        default=49152,
        ge=1,
        description="Latent voxels that a 1536 shape may have before its resolution is lowered step by step.",
    )
    step_caching: int = Field(
        default=0,
        ge=0,
        le=3,
        description="Steps in a row that may guess from earlier ones: faster, a little less exact. 0: none.",
    )

    faces: int = Field(
        default=0,
        ge=0,
        le=4_000_000,
        description="Triangles of the finished mesh, instead of a number of vertices. 0: not used.",
    )
    normal_map: bool = Field(
        default=False, description="Bake the detail that decimation takes away into a normal map. Best with few vertices."
    )
    occlusion_map: bool = Field(
        default=False, description="Bake how much of the surroundings each point sees, which darkens hollows and gaps."
    )
    alpha_mode: AlphaMode = Field(
        default="auto",
        description="How opacity is used: not at all, as a cut-out, or as glass. auto decides by what was painted.",
    )
    image_format: ImageFormat = Field(
        default="png", description="png loses nothing, jpeg and webp are smaller. Not every program opens webp."
    )
    image_quality: int = Field(
        default=90, ge=1, le=100, description="Quality of jpeg and webp textures: smaller files below, finer pictures above."
    )
    compression: Compression = Field(
        default="none",
        description="Smaller geometry: quantize rounds numbers, meshopt packs them as well. Not every program opens these.",
    )
    pivot: Pivot = Field(
        default="origin", description="Point of the model that becomes its origin: that of the voxels, its middle, or its foot."
    )
    size_meters: float = Field(
        default=0.0,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
        description="Longest side of the model in metres. 0 keeps the voxels' unit.",
    )
    up_axis: UpAxis = Field(
        default="y", description="Axis that points up in the file: y as glTF wants it, z for programs that do not convert."
    )
    lods: int = Field(
        default=0,
        ge=0,
        le=4,
        description="Coarser levels of detail in the same file, each of a quarter of the vertices (MSFT_lod).",
    )
    rasterizer: Rasterizer = Field(
        default="torch",
        description="What fills triangles with texels: our own, or nvdiffrast where it is installed with a GPU.",
    )
    unwrap: Unwrapper = Field(
        default="ours",
        description="Who cuts the UV charts: ours; or xatlas, where that package is installed, with charts that many know, in "
        "minutes where ours takes seconds. The other settings of charts are for ours only.",
    )
    picture_detail: Unit = Field(
        default=0.0,
        description="How much of the picture's own fine detail is projected onto the texture where the picture shows it: "
        "0 none, 1 all. Coarse colours stay the model's. Bake Textures alone knows no picture.",
    )
    remesh_method: RemeshMethod = Field(
        default="solid",
        description="solid keeps the decoded surface and makes one closed wall of it; narrow_band is the published method: a "
        "new double wall around the surface, slower and coarser.",
    )
    max_file_mb: float = Field(
        default=0.0, ge=0, le=4000, allow_inf_nan=False,
        description="Largest file, in megabytes: texture format, quality, size, then vertices give way. 0: no limit.",
    )  # fmt: skip

    def over(self, other: GenerationSettings) -> GenerationSettings:
        """These settings where they were given, else those that `other` was given."""
        given = {n: getattr(layer, n) for layer in (other, self) for n in layer.model_fields_set}
        return GenerationSettings(**given)


MESH_GRID = (16, 2048)
"""Voxels along the longest side of a mesh that was not decoded here, when it is remeshed: fewest and most."""
JUDGED_MESH_GRID = (256, 1024)
"""The same where it is left to the mesh's own edges."""

SOURCE_FIELDS = ("image_url", "image_urls", "mesh_url")
"""Fields that name what is worked on."""
LORA_FIELDS = tuple(LORA_FIELD.values())
MESH_FIELDS = tuple(n for n in GenerationSettings.model_fields if n.startswith(("remesh", "uv_unwrap_")))
FINISH_FIELDS = (
    "faces", "normal_map", "occlusion_map", "alpha_mode", "image_format", "image_quality", "compression", "pivot",
    "size_meters", "up_axis", "lods", "max_file_mb",
)  # fmt: skip
"""Fields about the finished file."""
LOCAL_FIELDS = (
    "cascade",
    "max_num_tokens",
    "step_caching",
    "rasterizer",
    "unwrap",
    "remesh_method",
    "picture_detail",
    *FINISH_FIELDS,
)
"""Fields that no endpoint has: ours alone."""

ROUTE_FIELDS = ("resolution", "cascade", "max_num_tokens", "step_caching")
SURFACE_FIELDS = ("decimation_target", "faces", *(name for name in MESH_FIELDS if name.startswith("remesh")))
FILE_FIELDS = (
    "image_format", "image_quality", "compression", "pivot", "size_meters", "up_axis", "lods", "max_file_mb",
)  # fmt: skip
_ELSEWHERE = ("seed", *SOURCE_FIELDS, *LORA_FIELDS, *ROUTE_FIELDS, *SURFACE_FIELDS, *FILE_FIELDS)
TEXTURE_FIELDS = tuple(
    name for name in GenerationSettings.model_fields if not name.startswith((*_ELSEWHERE, *STAGE_PREFIX.values()))
)
"""Who looks at what: the way to the latents, the surface, the finished file, and everything about charts and textures."""


def resolve_seed(seed: int | None) -> int:
    """The seed itself, or a random 31-bit one for None."""
    return secrets.randbits(31) if seed is None else seed
