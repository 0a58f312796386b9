"""What the rows of `gpu` say about the goals: each with what was measured, and whether it is reached."""

from __future__ import annotations

from typing import Any

from trellis_core.memory.plan import MARGIN

Row = dict[str, Any]
GIB = 2**30
SHARE, SPEEDUP, CONVOLUTION, VOXELS = 0.55, 2.0, 1.1, 2_500_000
SECONDS = {"1024": 5.0, "1536": 14.0}
LIMITS = {"512": 4, "1024": 6, "1536": 8}
"""GiB of the largest network's weights and work, by resolution."""


def goals(rows: list[Row], tokens: tuple[int, ...], sides: tuple[int, ...]) -> list[Row]:
    """Of whatever parts were measured.

    Args:
        rows: as `gpu.Bench` keeps them.
        tokens: latent voxels at 512, 1024, 1536; more are looked at for the plan alone.
        sides: voxels per axis that decoders reach at 512, 1024, 1536.
    """
    found = [*_speed(rows, tokens), *_convolutions(rows), *_decoding(rows, sides), *_memory(rows, tokens, sides), *_plans(rows)]
    return [{"goal": goal, "measured": measured, "reached": reached} for goal, measured, reached in found]


def _speed(rows: list[Row], tokens: tuple[int, ...]):
    for row in _of(rows, "shape flow", "ours"):
        if row["tokens"] == tokens[min(1, len(tokens) - 1)] and not row["part"].endswith("guided"):
            yield f"{row['part']}: at least {SHARE:.0%} of the ceiling", f"{row['share']:.1%}", row["share"] >= SHARE
    for name, most in SECONDS.items():
        times = {row["way"]: row["seconds"] for row in rows if row["part"] == f"sampling {name}"}
        if times:
            ratio = times["reference"] / times["ours"]
            yield f"sampling {name}: at most {most} s", f"{times['ours']:.2f} s", times["ours"] <= most
            yield f"sampling {name}: at least {SPEEDUP} times the re-created reference", f"{ratio:.2f} times", ratio >= SPEEDUP


def _convolutions(rows: list[Row]):
    for row in _of(rows, "convolution", "ours"):
        for peer in (r for r in rows if r["part"] == row["part"] and r["way"] == "flex_gemm"):
            ratio = peer["ms"] / row["ms"]
            yield f"{row['part']}: at least {CONVOLUTION} times FlexGEMM", f"{ratio:.2f} times", ratio >= CONVOLUTION


def _decoding(rows: list[Row], sides: tuple[int, ...]):
    for row in _of(rows, f"decoder to {sides[min(1, len(sides) - 1)]}^3", "ours"):
        seconds = 2e-3 * row["ms"] * VOXELS / row["voxels"]
        text = f"{seconds:.2f} s, from {row['voxels']:,} voxels"
        yield f"shape and texture of {VOXELS:,} voxels decoded in 1 s", text, seconds <= 1


def _memory(rows: list[Row], tokens: tuple[int, ...], sides: tuple[int, ...]):
    """Networks take turns, so it is that of the largest."""
    for (name, limit), count, side in zip(LIMITS.items(), tokens, sides, strict=False):
        parts = [r for r in _of(rows, "shape flow", "ours") if r["tokens"] == count and r["part"].endswith("guided")]
        parts += _of(rows, f"decoder to {side}^3", "ours") + _of(rows, "structure flow", "ours")
        if parts:
            peak = max(r["weights_bytes"] + r["peak_bytes"] for r in parts) / GIB
            yield f"resolution {name}: at most {limit} GiB", f"{peak:.2f} GiB", 0 < peak <= limit


def _plans(rows: list[Row]):
    for row in rows:
        if (
            "planned_bytes" not in row
            or row["way"] == "reference"
            or "flow" in row["part"]
            and not row["part"].endswith("guided")
        ):
            continue
        measured = row["weights_bytes"] + row["peak_bytes"]
        ratio = MARGIN * (row["weights_bytes"] + row["planned_bytes"]) / measured
        goal = f"{row['part']}, {row['way']}: plan 1 to 1.15 times the peak"
        yield goal, f"{ratio:.3f} times {measured / 1e9:.2f} GB", row["peak_bytes"] > 0 and 1 <= ratio <= 1.15


def _of(rows: list[Row], start: str, way: str) -> list[Row]:
    return [row for row in rows if row["part"].startswith(start) and row["way"] == way and "ms" in row]
