"""Finds golden cases on disk and pairs each with the function that can run its kind.

A case is a folder (or a `00_param_tables` file set) made by the reference implementation; `tests/golden/README.md`
lists the kinds and tolerances. Runners live in `tests/golden_kinds/`, one file an area, and register with `@kind`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

DEFAULT = Path(__file__).parents[1] / "golden"

# Every kind that the golden README names. A case whose name starts with one of these must have a runner.
KNOWN = (
    "ss_flow", "slat_flow", "ss_decoder", "ss_encoder", "sparse_conv3d", "shape_vae_encoder", "tex_vae_encoder",
    "shape_vae_decoder", "tex_vae_decoder", "sampler_dense", "sampler_sparse", "dinov3", "preprocess", "rembg_wrapper",
    "texturing_mesh_preprocess", "train_loss_ss", "train_loss_slat", "pipeline_tiny",
    "00_param_tables", "01_subm_conv3d", "02_block_", "03_fdg_decoder", "04_tex_decoder", "05_fdg_encoder",
    "05_tex_encoder", "06_fdg2mesh", "07_cascade_quantize", "08_mesh2fdg", "09_volattr", "10_grid_sample_3d",
    "11_unsigned_distance", "12_remesh", "13_cumesh_cleanup", "14_simplify_step", "15_charts_uv", "16_to_glb",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One golden folder; its tensors and configs are read on first use."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_known(self) -> bool:
        """Whether its kind is one that must be run."""
        return self.name.startswith(KNOWN)

    def tensors(self, stem: str) -> dict[str, torch.Tensor]:
        return load_file(self.path / f"{stem}.safetensors")

    def json(self, stem: str) -> dict:
        return json.loads((self.path / f"{stem}.json").read_text())

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return self.tensors("inputs")

    @cached_property
    def outputs(self) -> dict[str, torch.Tensor]:
        return self.tensors("outputs")


Runner = Callable[[Case], None]
_RUNNERS: list[tuple[re.Pattern[str], Runner]] = []


def kind(pattern: str) -> Callable[[Runner], Runner]:
    """Register the decorated function for cases whose folder name matches `pattern` from its start to its end."""

    def register(runner: Runner) -> Runner:
        _RUNNERS.append((re.compile(pattern), runner))
        return runner

    return register


@cache
def _load_runners() -> None:
    from tests.reference import kinds as golden_kinds

    for module in pkgutil.iter_modules(golden_kinds.__path__):
        importlib.import_module(f"tests.reference.kinds.{module.name}")


def find_cases(folder: Path) -> Iterator[Case]:
    """All cases in `folder` and below it: folders with files whose name starts with a known kind or that hold outputs.

    A folder inside a case is part of that case.
    """
    if not folder.is_dir():
        return
    inside = sorted(folder.iterdir())
    known = folder.name.startswith(KNOWN) and any(path.is_file() for path in inside)
    if known or (folder / "outputs.safetensors").is_file():
        yield Case(folder)
    else:
        for path in inside:
            yield from find_cases(path)


def runner_for(case: Case) -> Runner | None:
    _load_runners()
    for pattern, runner in _RUNNERS:
        if pattern.fullmatch(case.name):
            return runner
    return None


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float, what: str) -> None:
    """Same shape and max |actual - expected| <= atol; the message names the tensor and the worst error."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel():
        assert torch.isfinite(actual).all(), f"{what}: not finite"
        worst = (actual.double() - expected.double()).abs().max().item()
        assert worst <= atol, f"{what}: off by {worst:.3g}, allowed {atol:.3g}"


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Exact equality of integer (or boolean stored as uint8) tensors."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wrong = int((actual.to(torch.int64) != expected.to(torch.int64)).sum())
    assert wrong == 0, f"{what}: {wrong} of {actual.numel()} entries differ"
