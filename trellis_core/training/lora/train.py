"""`python -m trellis_core train-lora`: LoRAs for the stages, trained through PEFT (docs/method/sampling.md).

A run is a folder: OUT/prepared.safetensors, and for every stage OUT/STAGE.safetensors with its loss curve, its samples, a
picture before and after, and what it needs to go on after an interruption. The same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...context import RunContext
from ...errors import InputError
from ...family import Family, load_family
from ...files import locked, make_folder, write_picture, write_state, write_whole
from ...lora.deltas import Delta, LowRank
from ...lora.write import save
from ...roles import flow_roles
from ..losses import TimeSchedule, diffuse, drop_condition
from .data import Prepared, Views, prepare
from .loss_plot import draw_curve
from .progress import Progress
from .samples import above_each_other, change_between, draw_sample

TIMES = {
    "structure": TimeSchedule("logitNormal", 1.0, 1.0),
    "shape": TimeSchedule("uniform"),
    "texture": TimeSchedule("uniform"),
}
TARGETS = {
    "attention": r"blocks\.\d+\.(self_attn\.(to_qkv|to_out)|cross_attn\.(to_q|to_kv|to_out))",
    "all": r"blocks\.\d+\.(self_attn\.(to_qkv|to_out)|cross_attn\.(to_q|to_kv|to_out)|mlp\.mlp\.[02])",
}
P_UNCOND = 0.1
CLIP = 1.0
WARM_UP = 20
SAVE_EVERY = 50
ADAPTER = "default"
BEFORE_AFTER = "before_after.png"
HARDLY = 0.02
"""Change between the pictures before and after below which a LoRA is said to hardly act."""


@dataclass(frozen=True)
class Recipe:
    """How a LoRA is trained; names and ranges of the hosted trainer (docs/method/fal.md).

    Attributes:
        rank: 16, 32 or 64; learning_rate: 1e-6..1e-2; steps: 100..10000.
        targets: "attention", or "all" for the feed-forward layers too.
        batch: objects of a step.
        sample_every: steps between two pictures of what the LoRA makes by then.
    """

    rank: int = 32
    learning_rate: float = 1e-4
    steps: int = 1000
    targets: str = "attention"
    batch: int = 8
    seed: int = 0
    sample_every: int = 200

    def check(self) -> None:
        """Raise `InputError` for values out of range."""
        for name, value, low, high in (
            ("learning-rate", self.learning_rate, 1e-6, 1e-2),
            ("steps", self.steps, 100, 10_000),
            ("batch", self.batch, 1, 1024),
            ("sample-every", self.sample_every, 1, 10_000),
        ):
            if not low <= value <= high:
                raise InputError(f"--{name} must be from {low:g} to {high:g}, not {value:g}.")


def run(options: argparse.Namespace) -> None:
    """The command; see `options.add_train_command` for its options."""
    _peft()
    family = load_family(options.weights)
    usual = family.lora_training
    rate, steps, views, azimuth = (
        getattr(usual, name) if getattr(options, name) is None else getattr(options, name)
        for name in ("learning_rate", "steps", "views", "azimuth")
    )
    recipe = Recipe(options.rank, rate, steps, options.targets, options.batch, options.seed, options.sample_every)
    recipe.check()
    if views < 1:
        raise InputError(f"--views must be 1 or more, not {views}.")
    if options.resolution not in family.resolutions:
        raise InputError(f"The weights {family.name} have no networks for {options.resolution}.")
    try:
        with locked(make_folder(options.out) / ".lock", wait=False):
            _run(options, family, recipe, Views(views, azimuth))
    except BlockingIOError:
        raise InputError(f"Another training runs in {options.out}: wait for it, or choose another --out.") from None


def _run(options: argparse.Namespace, family: Family, recipe: Recipe, views: Views) -> None:
    print(
        f"Recipe   {recipe.steps} steps at a rate of {recipe.learning_rate:g}, rank {recipe.rank}, "
        f"{views.count} pictures of each model",
        file=sys.stderr,
    )
    bar = tqdm(total=1.0, bar_format="preparing {percentage:3.0f}% |{bar}| {elapsed} {postfix}", disable=None, leave=False)
    with bar:
        ctx = RunContext(torch.device(options.device), on_progress=lambda done, name: _move(bar, done, name))
        data = prepare(
            options.data, family, options.resolution, views, options.seed,
            options.out / "prepared.safetensors", ctx,
        )  # fmt: skip
    print(f"Data     {len(data)} objects, {len(data.coords)} latent voxels", file=sys.stderr)
    ctx = RunContext(torch.device(options.device))
    for stage in dict.fromkeys(options.stage):
        file = train(family, stage, data, options.resolution, recipe, options.out, ctx)
        print(f"LoRA     {file} ({file.stat().st_size / 1e3:.0f} kB)")
        changed = json.loads((options.out / stage / "change.json").read_text())["change"]
        print(f"Picture  {options.out / stage / BEFORE_AFTER}: before and after, {changed:.1%} of the picture changed")
        if changed < HARDLY:
            print(
                f"Warning  The LoRA hardly acts: its model looks nearly as before. Give more --steps than {recipe.steps}, or a "
                f"--learning-rate above {recipe.learning_rate:g}, and another --out.",
                file=sys.stderr,
            )


def train(family: Family, stage: str, data: Prepared, resolution: int, recipe: Recipe, out: Path, ctx: RunContext) -> Path:
    """Train a LoRA for one stage, or go on with it; returns the file.

    Raises:
        InputError: PEFT is not installed, or the folder holds a run with another recipe.
    """
    peft = _peft()
    roles = flow_roles(stage)
    role = roles.get(resolution) or roles[None]
    folder = out / stage
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    with family.network(role, ctx) as model:
        config = peft.LoraConfig(
            r=recipe.rank, lora_alpha=recipe.rank, target_modules=TARGETS[recipe.targets], lora_dropout=0.0
        )
        torch.manual_seed(recipe.seed)
        peft.inject_adapter_in_model(config, model, ADAPTER)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():  # half precision is too coarse for small steps
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(trained.values(), lr=recipe.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
        state = _State(folder / "state.pt", {**vars(recipe), "stage": stage, "resolution": resolution, "family": family.name})
        losses = state.resume(trained, optimizer)
        loss = _loss(stage, model, data, ctx.device)
        progress, after = Progress(stage, len(losses), recipe.steps), None
        for step in range(len(losses), recipe.steps):
            ctx.check()
            losses.append(_step(step, loss, recipe, trained, optimizer))
            progress.step(losses[-1])
            done = step + 1
            if done % recipe.sample_every == 0 or done == recipe.steps:
                after = draw_sample(family, stage, model, data, resolution, ctx)
                write_picture(folder / "samples" / f"step_{done:05}.png", after)
            if done % SAVE_EVERY == 0 or done == recipe.steps:
                state.keep(trained, optimizer, losses)
                write_picture(folder / "loss.png", draw_curve(losses))
        progress.close()
        after = after or draw_sample(family, stage, model, data, resolution, ctx)  # a run that was complete before
        deltas = _deltas(model)
        with _without_adapter(model):
            before = draw_sample(family, stage, model, data, resolution, ctx)
    write_picture(folder / BEFORE_AFTER, above_each_other(before, after))
    write_whole(folder / "change.json", (json.dumps({"change": round(change_between(before, after), 5)}) + "\n").encode())
    write_whole(folder / "losses.json", (json.dumps([round(value, 5) for value in losses]) + "\n").encode())
    notes = {"family": family.name, "steps": str(recipe.steps), "trained_with": f"trellis_core, rank {recipe.rank}"}
    return save(out / f"{stage}.safetensors", {(stage, None if stage == "structure" else resolution): deltas}, notes=notes)


def _step(
    step: int, loss: Callable[[torch.Generator, int], Tensor], recipe: Recipe, trained: dict[str, nn.Parameter], optimizer: Any
) -> float:
    """One update; its random numbers depend on the step alone, so a run that was interrupted goes on as it would have."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / WARM_UP)
    value = loss(generator, recipe.batch)
    value.backward()
    norm = nn.utils.clip_grad_norm_(trained.values(), CLIP)
    if norm.isfinite():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value.item()


def _loss(stage: str, model: nn.Module, data: Prepared, device: torch.device) -> Callable[[torch.Generator, int], Tensor]:
    """What makes a step's flow-matching loss on random objects and random pictures of them."""
    tokens = data.tokens if stage == "structure" else data.fine_tokens

    def loss(generator: torch.Generator, batch: int) -> Tensor:
        objects = torch.randint(len(data), (batch,), generator=generator)
        cond = tokens[objects, torch.randint(tokens.shape[1], (batch,), generator=generator)].float()
        if stage == "structure":
            x0, sample = data.structure[objects], torch.arange(batch)
        else:
            rows, coords = data.rows(objects.tolist())
            x0, sample = (data.shape if stage == "shape" else data.texture)[rows], coords[:, 0].long()
        noise = torch.randn(x0.shape, generator=generator)
        t = TIMES[stage].sample(batch, generator)
        cond = drop_condition(cond, P_UNCOND, torch.rand(batch, generator=generator).numpy()).to(device)
        x_t, target = (v.to(device) for v in diffuse(x0, noise, t[sample].view(-1, *[1] * (x0.ndim - 1))))
        tau = 1000 * t.to(device)
        if stage == "structure":
            return F.mse_loss(model(x_t, tau, cond), target)
        known = data.shape[rows].to(device) if stage == "texture" else None
        return F.mse_loss(model(x_t, coords.to(device), tau, cond, known), target)

    return loss


class _State:
    """What a run needs to go on, in one file that is replaced as a whole."""

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        self.recipe = {key: value for key, value in recipe.items() if key not in ("steps", "sample_every")}

    def resume(self, trained: dict[str, nn.Parameter], optimizer: Any) -> list[float]:
        """Fill parameters and optimizer from the file, if there is one; the losses so far."""
        if not self.path.is_file():
            return []
        state = torch.load(self.path, weights_only=True)
        if state["recipe"] != self.recipe or set(state["trained"]) != set(trained):
            raise InputError(f"{self.path.parent} holds a run with other settings: choose another folder, or delete it.")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        return state["losses"]

    def keep(self, trained: dict[str, nn.Parameter], optimizer: Any, losses: list[float]) -> None:
        values = {name: parameter.detach() for name, parameter in trained.items()}
        state = {"recipe": self.recipe, "trained": values, "optimizer": optimizer.state_dict(), "losses": losses}
        write_state(self.path, state)


@contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    """The network as it was before, for as long as a `with` lasts."""
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A") and hasattr(layer, "enable_adapters")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _deltas(model: nn.Module) -> dict[str, Delta]:
    """What PEFT's layers have learnt, by parameter."""
    found: dict[str, Delta] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A:
            down, up = (side[ADAPTER].weight.detach().float().cpu() for side in (layer.lora_A, layer.lora_B))
            found[f"{name}.weight"] = LowRank(down, up, float(layer.scaling[ADAPTER]))
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        if find_spec("peft") is not None:
            raise InputError(f"PEFT is installed and cannot be imported: {error}") from error
        raise InputError(
            'Training LoRAs needs PEFT, which is not installed: pip install peft, or this package with its extra "lora": '
            "pip install -e .[lora]"
        ) from None
    return peft


def _move(bar: tqdm, done: float, name: str) -> None:
    bar.n = round(done, 3)
    bar.set_postfix_str(name)
