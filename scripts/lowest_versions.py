"""Prints the lowest version of every package that a user may install with this one, as pip's requirements."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("lora", "fal", "serve", "heic")
"""Extras that the sampled tests use; the others pull in what takes long to install."""


def lowest(requirement: str) -> str:
    """name>=1.2,<3 -> name==1.2; markers stay."""
    found = re.fullmatch(r"([\w.\[\]-]+)>=([\w.]+)(?:,<[\w.]+)?(;.*)?", requirement.replace(" ", ""))
    if found is None:
        raise SystemExit(f"{requirement!r} should name its lowest and its first forbidden version: name>=1.2,<3")
    return f"{found[1]}=={found[2]}{found[3] or ''}"


def requirements() -> list[str]:
    """Lines of requirements.txt and of the extras."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    text = (ROOT / "pyproject.toml").read_text()
    for extra in EXTRAS:
        listed = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
        lines += re.findall(r'"([^"]+)"', listed[1])
    return sorted(set(lines))


if __name__ == "__main__":
    print("\n".join(map(lowest, requirements())))
