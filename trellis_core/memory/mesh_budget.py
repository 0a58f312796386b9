"""Memory that the steps from mesh to asset take, known before they start.

All steps work in blocks of a fixed size; beside these they take so many bytes for every triangle and every texel.
"""

from __future__ import annotations

from pathlib import Path

from ..context import RunContext
from ..errors import OutOfBudgetError

_PER_FACE = {"remesh": 330, "clean": 120, "decimate": 400, "unwrap": 360, "bake": 230, "detail": 600}
_PER_TEXEL = {"unwrap": 27, "bake": 36, "detail": 60}
_BLOCKS = 20_000_000
_ADVICE = {"remesh": "Choose a lower resolution", "clean": "Choose a lower resolution", "decimate": "Choose a lower resolution"}
_USUAL_ADVICE = "Choose a smaller texture_size, fewer vertices or faces"


def step_bytes(step: str, faces: int, texels: int = 0) -> int:
    """What a step takes at its peak beside what was there before it.

    Args:
        step: remesh, clean, decimate, unwrap, bake or detail.
        faces: triangles that it works on; for "detail" those before decimation.
        texels: of the texture.
    """
    return _BLOCKS + faces * _PER_FACE[step] + texels * _PER_TEXEL.get(step, 0)


def check_room(step: str, faces: int, texels: int, ctx: RunContext) -> None:
    """See that a step will fit: the run's budget if it computes on the CPU, else the machine's free memory.

    Raises:
        OutOfBudgetError: it will not; says what would help.
    """
    need, room = step_bytes(step, faces, texels), _room(ctx)
    if room is not None and need > room:
        parts = [f"{count:,} {name}" for count, name in ((faces, "triangles"), (texels, "texels")) if count]
        raise OutOfBudgetError(
            f"The step {step!r} takes about {need / 1e9:.2f} GB of memory for {' and '.join(parts)}, and there are "
            f"{room / 1e9:.2f} GB for it. {_ADVICE.get(step, _USUAL_ADVICE)}, or close other programs."
        )


def _room(ctx: RunContext) -> int | None:
    """Bytes, None if nobody can tell."""
    if ctx.device.type == "cpu" and ctx.memory_budget is not None:
        return ctx.memory_budget
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except ImportError:
        facts = Path("/proc/meminfo")
        lines = facts.read_text().splitlines() if facts.is_file() else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
