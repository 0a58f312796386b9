"""Optimiser, learning-rate schedule and weight average of the training recipes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic whose iteration sends singular values to about 1 (Jordan et al. 2024, Muon)."""


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrix, roughly: singular values land in about 0.7..1.2. matrix float32 [m, n]."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    x = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.t()
        x = torch.addmm(a * x, torch.addmm(b * gram, gram, gram, beta=1, alpha=c), x)
    return x if wide is matrix else x.t()


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, in float32, for weight matrices; convolutions count as [out, rest].

    The update is scaled by 0.2 sqrt(max(out, in)), which gives it the size of an Adam update, so that one learning
    rate serves both (Liu et al. 2025).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonalize(ahead).mul_(0.2 * max(ahead.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(p), alpha=group["lr"])


class Optimizers:
    """Muon for the inner weight matrices, AdamW for everything else, seen as one optimiser.

    Args:
        modules: what is trained.
        lr: peak learning rate of both.
        muon: False trains everything with AdamW.
    """

    def __init__(
        self, modules: Iterable[nn.Module], lr: float, *, muon: bool = True, betas: tuple[float, float] = (0.9, 0.98)
    ) -> None:
        named = [(name, p) for m in modules for name, p in m.named_parameters() if p.requires_grad]
        inner = [p for name, p in named if muon and _is_inner_matrix(name, p)]
        chosen = set(map(id, inner))
        rest = [p for _, p in named if id(p) not in chosen]
        self.parameters = [p for _, p in named]
        self.members: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.01)]
        if inner:
            self.members.append(Muon(inner, lr=lr))
        self.lr = lr

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Clip the gradients, update with `factor` times the peak rate, clear the gradients. Returns the norm.

        A step with a gradient that is not finite is skipped (docs/method/sampling.md).
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, clip).item()
        if norm == norm and norm != float("inf"):
            for member in self.members:
                for group in member.param_groups:
                    group["lr"] = self.lr * factor
                member.step()
        for p in self.parameters:
            p.grad = None
        return norm

    def state_dict(self) -> list[dict]:
        return [m.state_dict() for m in self.members]

    def load_state_dict(self, states: list[dict]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


def _is_inner_matrix(name: str, p: nn.Parameter) -> bool:
    """Matrices between hidden layers; embeddings, heads and in/out layers are better off with AdamW."""
    outer = (
        "embeddings",
        "input_layer",
        "out_layer",
        "output_layer",
        "t_embedder",
        "from_latent",
        "to_latent",
        "to_subdiv",
        "head",
    )
    return p.ndim >= 2 and min(p.flatten(1).shape) >= 8 and not any(word in name for word in outer) and "gamma" not in name


def rate_factor(progress: float, warmup: float = 0.03, power: float = 0.8) -> float:
    """Share of the peak learning rate at `progress` 0..1 of the budget: linear warm-up, then (1 - p)^power to zero."""
    progress = min(max(progress, 0.0), 1.0)
    return min(1.0, (progress + 1e-3) / warmup) * (1 - progress) ** power


class Average:
    """Exponential moving average of parameters; early on it forgets faster, so it is useful from the first step."""

    def __init__(self, modules: Iterable[nn.Module], decay: float = 0.998) -> None:
        self.parameters = [p for m in modules for p in m.parameters()]
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values; call twice to come back."""
        for p, s in zip(self.parameters, self.shadow, strict=True):
            kept = p.detach().clone()
            p.copy_(s)
            s.copy_(kept)
