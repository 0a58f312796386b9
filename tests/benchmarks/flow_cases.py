"""Flow networks to measure shortcuts and precision on: mini's, of the golden data's size, and a wide one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.gpu_cases import surface
from tests.reference.golden_harness import Case
from tests.reference.kinds.flow import known_latent, load
from trellis_core import stages
from trellis_core.family import load_family
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.image.preprocess import preprocess
from trellis_core.image.reading import open_picture
from trellis_core.settings import GenerationSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "icon_tree.png"
WIDE = dict(
    resolution=64, in_channels=32, out_channels=32, mlp_ratio=5.3334, pe_mode="rope", share_mod=True, qk_rms_norm=True,
    qk_rms_norm_cross=True,
)  # fmt: skip


@dataclass(frozen=True)
class FlowCase:
    """A latent flow and what it may be asked: rows [T, C] on coords of one sample, a picture's tokens [1, L, Cc]."""

    name: str
    model: SLatFlowModel
    coords: Tensor
    rows: Tensor
    cond: Tensor
    known: Tensor | None = None


def mini() -> FlowCase:
    """The bundled shape flow, on a structure of its own, with a real picture."""
    family, settings = load_family("mini"), GenerationSettings(resolution=512)
    seen = stages.condition(family, preprocess(open_picture(EXAMPLE)), settings, cropped=True)
    structure = stages.sample_structure(family, seen, settings, seed=1)
    model = family.networks["shape_slat_flow_model_512"].load()
    rows = torch.randn(len(structure.coords), model.params.in_channels, generator=torch.Generator().manual_seed(1))
    return FlowCase("mini, shape 512", model, structure.coords, rows, seen.tokens[512])


@torch.no_grad()
def of_width(width: int, blocks: int, tokens: int, context: int, cond: int = 1024, heads: int | None = None) -> FlowCase:
    """With random weights that keep numbers near 1."""
    generator = torch.Generator().manual_seed(0)
    params = SLatFlowParams(
        **WIDE, model_channels=width, cond_channels=cond, num_blocks=blocks, num_heads=heads or max(1, width // 128)
    )
    model = SLatFlowModel(params).eval().requires_grad_(False)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    coords = surface(max(4, round((tokens / 2.6) ** 0.5)), tokens)[:tokens]
    rows, seen = (torch.randn(shape, generator=generator) for shape in ((len(coords), 32), (1, context, cond)))
    return FlowCase(f"width {width}, {blocks} layers, {len(coords)} tokens", model, coords, rows, seen)


def golden(folder: Path | None) -> list[FlowCase]:
    """The latent flows of the golden data, or one of their size."""
    found = sorted(folder.rglob("slat_flow_*/model.json")) if folder else []
    cases = []
    for case in (Case(path.parent) for path in found):
        inputs, model = case.inputs, load(case)
        first, known = inputs["coords"][:, 0] == 0, known_latent(inputs)
        known = None if known is None else known[first]
        cases.append(
            FlowCase(f"golden {case.name}", model, inputs["coords"][first], inputs["feats"][first], inputs["cond"][:1], known)
        )
    return cases or [of_width(128, 3, 64, 21, 48, 4)]
