"""One training loop for every stage: budgeted in CPU-seconds, checkpointed, resumable, logged as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import write_state
from .optim import Average, Optimizers, rate_factor

Loss = Callable[[torch.Generator], dict[str, Tensor]]
"""Makes one step's terms from a generator; the entry `loss` is minimised, the others are logged."""

CHECKPOINT_SECONDS = 60.0


@dataclass
class Recipe:
    """How one stage is trained.

    Attributes:
        seconds: CPU-seconds of this process; the learning rate falls to zero at the end of them.
        restarts: CPU-seconds at which the rate has already once fallen to zero, to go on where a longer fall would be.
        lr: peak learning rate; clip: gradient norm limit; muon: see `Optimizers`.
        decay: of the weight average, which is what evaluation and export use.
        eval_every: CPU-seconds between held-out evaluations.
    """

    seconds: float
    lr: float = 2e-3
    clip: float = 1.0
    muon: bool = True
    decay: float = 0.998
    eval_every: float = 60.0
    seed: int = 0
    betas: tuple[float, float] = field(default=(0.9, 0.98))
    restarts: tuple[float, ...] = ()

    def progress(self, spent: float) -> float:
        """Place in the present fall of the learning rate, 0..1, after `spent` CPU-seconds."""
        return spent / next((end for end in self.restarts if spent < end), self.seconds)

    def scaled(self, share: float) -> Recipe:
        """The same with `share` times the CPU-seconds."""
        return replace(self, seconds=self.seconds * share, restarts=tuple(end * share for end in self.restarts))


def train_stage(
    name: str, modules: dict[str, nn.Module], loss: Loss, evaluate: Callable[[], dict[str, float]], folder: Path, recipe: Recipe
) -> None:
    """Train `modules` in place until the budget is spent; they end with the averaged weights.

    The folder gets NAME.pt (everything needed to go on after an interruption) and NAME.jsonl (one line an evaluation).
    A finished stage is only loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(modules.values(), recipe.lr, muon=recipe.muon, betas=recipe.betas)
    average = Average(modules.values(), recipe.decay)
    step, spent = _resume(folder / f"{name}.pt", modules, optimizers, average)
    started, saved, evaluated = time.process_time() - spent, spent, spent
    sums: dict[str, float] = {}
    since = 0
    while spent < recipe.seconds:
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_000 + step)
        terms = loss(generator)
        terms["loss"].backward()
        norm = optimizers.step(rate_factor(recipe.progress(spent)), recipe.clip)
        average.update()
        for key, value in {**terms, "grad_norm": norm}.items():
            sums[key] = sums.get(key, 0.0) + (value if isinstance(value, float) else value.item())
        step, since = step + 1, since + 1
        spent = time.process_time() - started
        last = spent >= recipe.seconds
        if spent - evaluated >= recipe.eval_every or step == 1 or last:
            average.swap()
            held_out = _evaluate(modules, evaluate)
            average.swap()
            line = {"stage": name, "cpu_s": round(spent, 1), "step": step, **{k: round(v / since, 5) for k, v in sums.items()}}
            _log(folder / f"{name}.jsonl", {**line, **{f"held_out_{k}": round(v, 5) for k, v in held_out.items()}})
            sums, since, evaluated = {}, 0, time.process_time() - started
        if spent - saved >= CHECKPOINT_SECONDS or last:
            _save(folder / f"{name}.pt", modules, optimizers, average, step, spent)
            saved = spent
    average.swap()
    for module in modules.values():
        module.eval()


def load_averaged(name: str, modules: dict[str, nn.Module], folder: Path) -> float:
    """Put the averaged weights of a (possibly unfinished) stage into `modules`; returns the CPU-seconds spent."""
    state = torch.load(folder / f"{name}.pt", weights_only=True)
    parameters = [p for m in modules.values() for p in m.parameters()]
    with torch.no_grad():
        for p, s in zip(parameters, state["average"], strict=True):
            p.copy_(s)
    for module in modules.values():
        module.eval()
    return state["spent"]


@torch.no_grad()
def _evaluate(modules: dict[str, nn.Module], evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    for module in modules.values():
        module.eval()
    result = evaluate()
    for module in modules.values():
        module.train()
    return result


def _save(path: Path, modules, optimizers: Optimizers, average: Average, step: int, spent: float) -> None:
    state = {
        "modules": {k: m.state_dict() for k, m in modules.items()},
        "optimizers": optimizers.state_dict(),
        "average": average.shadow,
        "average_steps": average.steps,
        "step": step,
        "spent": spent,
    }
    write_state(path, state)


def _resume(path: Path, modules, optimizers: Optimizers, average: Average) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for key, module in modules.items():
        module.load_state_dict(state["modules"][key])
    optimizers.load_state_dict(state["optimizers"])
    average.shadow = state["average"]
    average.steps = state["average_steps"]
    return state["step"], state["spent"]


def _log(path: Path, line: dict) -> None:
    with path.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
