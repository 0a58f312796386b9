"""`python -m trellis_core generate`: everything that can be wrong is checked before the first network is read."""

from __future__ import annotations

import argparse
import sys
import time
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from .. import stages
from ..asset.asset import Asset
from ..context import RunContext
from ..errors import InputError
from ..family import Family, load_family
from ..files import check_writable, write_whole
from ..image.matting import key_plain_background, load_rembg
from ..image.preprocess import Matte, preprocess
from ..image.reading import open_picture
from ..lora.source import default_folders, loras_of
from ..lora.stack import place
from ..memory.plan import plan_run, with_budget
from ..preview.asset import draw_asset
from ..settings import GenerationSettings, resolve_seed
from .lora import parse_lora

PRINTED = "-"
"""Value of `--report` without a file."""


def run(options: argparse.Namespace) -> None:
    """Make a GLB of a picture; see `trellis_core.cli.main` for the options."""
    settings = read_settings(options)
    check_output(options.output, ".glb")
    if options.preview:
        check_output(options.preview, ".png")
    if options.report not in (None, PRINTED):
        check_output(Path(options.report), ".json")
    picture = preprocess(open_picture(options.picture), _matte(options))
    family = load_family(options.weights, precision=options.precision)
    settings = family.advised(settings)
    family = _with_loras(family, settings, options)
    if options.plan:
        ctx = RunContext(_device(options.device), memory_budget=_budget(options))
        print(plan_run(family, settings, with_budget(ctx, family)).text())
        return
    with Progress() as progress:
        ctx = RunContext(
            _device(options.device),
            memory_budget=_budget(options),
            attention=options.attention,
            convolution=options.convolution,
            on_progress=progress,
        )
        asset = stages.generate(family, picture, settings, cropped=True, ctx=ctx)
        preview = draw_preview(asset, ctx.part(1.0, 1.0, "preview")) if options.preview else None
    asset.save(options.output)
    print(f"Model    {options.output} ({options.output.stat().st_size / 1e6:.2f} MB, seed {settings.seed})")
    if preview is not None:
        write_whole(options.preview, preview)
        print(f"Preview  {options.preview}")
    if options.report == PRINTED:
        print(asset.report.to_text())
    elif options.report is not None:
        write_whole(options.report, asset.report.to_json().encode())
        print(f"Report   {options.report}")


def read_settings(options: argparse.Namespace) -> GenerationSettings:
    """The settings given as flags, with a seed in any case; `InputError` names the flags that are wrong."""
    given = {n: getattr(options, n) for n in GenerationSettings.model_fields if getattr(options, n, None) is not None}
    try:
        chosen = GenerationSettings(**given)
    except ValidationError as error:
        lines = [
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']} (given: {e['input']})" for e in error.errors(include_url=False)
        ]
        raise InputError("; ".join(lines)) from error
    return chosen.model_copy(update={"seed": resolve_seed(chosen.seed)})


def check_output(path: Path, suffix: str) -> None:
    """Raise `InputError` if a file of this name cannot be written."""
    if path.suffix.lower() != suffix:
        raise InputError(f"{path} must end in {suffix}.")
    check_writable(path)


def draw_preview(asset: Asset, ctx: RunContext, size: int = 768) -> bytes:
    """A picture of the finished asset, as PNG."""
    buffer = BytesIO()
    Image.fromarray(draw_asset(asset, size=size, ctx=ctx)).save(buffer, "PNG")
    return buffer.getvalue()


def _with_loras(family: Family, settings: GenerationSettings, options: argparse.Namespace) -> Family:
    """The family with the LoRAs of `--lora` and of the settings, after saying how they match."""
    folders = (*options.lora_folder, *default_folders())
    loras = [parse_lora(text, folders) for text in options.lora] + loras_of(settings, folders)
    if not loras:
        return family
    route = family.route(settings.resolution, settings.cascade)
    family, reports = place(family, loras, route, measured=True)
    print("\n".join(report.to_text() for report in reports), file=sys.stderr)
    return family


class Progress:
    """A bar for the whole run that names the stage, and a line with its time when a stage is over."""

    def __enter__(self) -> Progress:
        self.bar = tqdm(total=100, bar_format="{desc:<10} {percentage:3.0f}% |{bar}| {elapsed}", disable=None, leave=False)
        self.stage, self.began = "", time.perf_counter()
        return self

    def __call__(self, fraction: float, stage: str) -> None:
        if stage != self.stage:
            self._end_stage()
            self.stage = stage
            self.bar.set_description_str(stage, refresh=False)
        self.bar.n = round(100 * fraction)
        self.bar.refresh()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._end_stage()
        self.bar.close()

    def _end_stage(self) -> None:
        now = time.perf_counter()
        if self.stage:
            tqdm.write(f"{self.stage:<10} {now - self.began:6.1f} s", file=sys.stderr)
        self.began = now


def _matte(options: argparse.Namespace) -> Matte | None:
    if options.matting:
        return load_rembg()
    return key_plain_background if options.key_background else None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f'The device "{name}" cannot be used: {str(error).splitlines()[0]}') from error
    return device


def _budget(options: argparse.Namespace) -> int | None:
    if options.memory_budget is None:
        return None
    if not options.memory_budget > 0:
        raise InputError(f"--memory-budget must be a number of gigabytes above 0, not {options.memory_budget}.")
    return int(options.memory_budget * 1e9)
