"""The match report: what a LoRA changes, how strongly, and what one should know before trusting the result."""

from __future__ import annotations

from dataclasses import dataclass

from .detect import Origin
from .read import Adapter, LoraFile

SHOWN = 6


@dataclass(frozen=True)
class MatchReport:
    """One LoRA on one stage of a family.

    Attributes:
        name: of the file.
        stage: "structure", "shape" or "texture"; None where no family was given and the file leaves it open.
        networks: roles that it changes.
        applied: parameters that it changes; skipped: what is in the file and changes nothing, with the reason.
        share: mean of |difference| / |weight| at strength 1, None where no weights were read.
    """

    name: str
    stage: str | None
    networks: tuple[str, ...]
    applied: tuple[str, ...]
    skipped: tuple[str, ...]
    adapter: Adapter
    origin: Origin
    strength: float = 1.0
    share: float | None = None
    warnings: tuple[str, ...] = ()

    def to_text(self) -> str:
        """A few lines for people."""
        kinds = " and ".join(sorted(self.adapter.kinds))
        ranks = ", ".join(map(str, self.adapter.ranks))
        where = f"{self.stage} ({', '.join(self.networks)})" if self.networks else self.stage or "not known"
        lines = [
            f"LoRA {self.name}",
            f"  stage       {where}",
            f"  made for    {self._made_for()}",
            f"  form        {kinds}{', rank ' + ranks if ranks else ''}{self._alpha()}",
            f"  strength    {self.strength:g}",
            f"  applied     {len(self.applied)} parameters",
            f"  skipped     {_some(self.skipped)}",
        ]
        if self.share is not None:
            at = f", {abs(self.strength) * self.share:.2%} at this strength" if self.strength != 1 else ""
            lines.append(f"  change      {self.share:.2%} of the weights (mean of |dW| / |W|){at}")
        return "\n".join([*lines, *(f"  warning     {text}" for text in self.warnings)])

    def _made_for(self) -> str:
        stages = " or ".join(self.origin.stages)
        resolution = f" {self.origin.resolution}" if self.origin.resolution else ""
        return f"{stages}{resolution}, {self.origin.evidence}"

    def _alpha(self) -> str:
        if not self.adapter.alphas:
            return ""
        values = ", ".join(f"{alpha:g}" for alpha in sorted({alpha for alpha, _ in self.adapter.alphas}))
        return f", alpha {values} ({', '.join(sorted({source for _, source in self.adapter.alphas}))})"


def describe(file: LoraFile, origins: list[Origin]) -> str:
    """What a file holds, where no family is at hand to match it with."""
    reports = [
        MatchReport(file.path.name, origin.stage, (), tuple(adapter.deltas), file.skipped, adapter, origin)
        for adapter, origin in zip(file.adapters, origins, strict=True)
    ]
    return "\n".join(report.to_text() for report in reports)


def _some(items: tuple[str, ...]) -> str:
    if not items:
        return "nothing"
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)}: {'; '.join(items[:SHOWN])}{more}"
