"""Facts about the published TRELLIS.2 weights that weights without a pipeline.json leave out (docs/method/networks.md)."""

from __future__ import annotations

from dataclasses import dataclass

from ..network_params import Side
from ..roles import SHAPE_ENCODER, STRUCTURE_ENCODER, TEXTURE_ENCODER


@dataclass(frozen=True)
class Scale:
    """What one pipeline resolution means for a family.

    Attributes:
        image_size: pixels per side of the picture that the tokens are made from.
        structure_grid: voxels per axis of the latent grid.
        output: voxels per axis of the decoded object.
    """

    image_size: Side
    structure_grid: Side
    output: Side


SCALES = {
    "512": Scale(image_size=512, structure_grid=32, output=512),
    "1024": Scale(image_size=1024, structure_grid=64, output=1024),
    "1536": Scale(image_size=1024, structure_grid=96, output=1536),
}
"""Pixels of the picture, voxels of the latent grid and of the decoded object, per resolution."""

COMFY_FOLDERS = ("diffusion_models", "vae", "clip_vision")
"""Where ComfyUI keeps the parts of a repackaged family."""

GGUF_FOLDERS = ("refiner", "shape", "texture", "decoders/Stage1", "decoders/Stage2", "encoders")
"""Where a GGUF pack in use (Aero-Ex/Trellis2-GGUF) keeps the networks that its pipeline.json looks for under `ckpts`."""

SAME_ENCODER = {
    "facebook/dinov3-vitl16-pretrain-lvd1689m": (
        "timm/vit_large_patch16_dinov3.lvd1689m", "PIA-SPACE-LAB/dinov3-vitl-pretrain-lvd1689m", "Aero-Ex/Dinov3",
        "camenduru/dinov3-vitl16-pretrain-lvd1689m",
    )
}  # fmt: skip
"""A picture encoder that is given out after a request only -> where the same weights are to be had without one."""

SHAPE_NORM = (
    (
        0.781296, 0.018091, -0.495192, -0.558457, 1.06053, 0.093252, 1.518149, -0.933218,
        -0.732996, 2.604095, -0.118341, -2.143904, 0.495076, -2.179512, -2.130751, -0.996944,
        0.261421, -2.217463, 1.260067, -0.150213, 3.790713, 1.481266, -1.046058, -1.523667,
        -0.059621, 2.22078, 1.621212, 0.87723, 0.567247, -3.175944, -3.186688, 1.578665,
    ),
    (
        5.972266, 4.706852, 5.44501, 5.209927, 5.32022, 4.547237, 5.020802, 5.444004,
        5.226681, 5.683095, 4.831436, 5.286469, 5.652043, 5.367606, 5.525084, 4.730578,
        4.805265, 5.124013, 5.530808, 5.619001, 5.10393, 5.41767, 5.269677, 5.547194,
        5.634698, 5.235274, 6.110351, 5.511298, 6.237273, 4.879207, 5.347008, 5.405691,
    ),
)  # fmt: skip
"""Mean and spread of the 32 shape latent channels."""

TEXTURE_NORM = (
    (
        3.501659, 2.212398, 2.226094, 0.251093, -0.026248, -0.687364, 0.439898, -0.928075,
        0.029398, -0.339596, -0.869527, 1.038479, -0.972385, 0.126042, -1.129303, 0.455149,
        -1.209521, 2.069067, 0.544735, 2.569128, -0.323407, 2.293, -1.925608, -1.217717,
        1.213905, 0.971588, -0.023631, 0.10675, 2.021786, 0.250524, -0.662387, -0.768862,
    ),
    (
        2.665652, 2.743913, 2.765121, 2.595319, 3.037293, 2.291316, 2.144656, 2.911822,
        2.969419, 2.501689, 2.154811, 3.163343, 2.621215, 2.381943, 3.186697, 3.021588,
        2.295916, 3.234985, 3.233086, 2.26014, 2.874801, 2.810596, 3.29272, 2.674999,
        2.680878, 2.372054, 2.451546, 2.353556, 2.995195, 2.379849, 2.786195, 2.77519,
    ),
)  # fmt: skip
"""Mean and spread of the 32 texture latent channels."""

ENCODERS = {
    STRUCTURE_ENCODER: "microsoft/TRELLIS-image-large/ckpts/ss_enc_conv3d_16l8_fp16",
    SHAPE_ENCODER: "ckpts/shape_enc_next_dc_f16c32_fp16",
    TEXTURE_ENCODER: "ckpts/tex_enc_next_dc_f16c32_fp16",
}
"""Where the official encoders lie, which pipeline.json does not name."""
