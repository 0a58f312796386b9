"""Benchmarks that are run by hand run through, on small networks; the one for GPUs in all its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu, gpu_goals, precision, shortcuts
from tests.benchmarks import gpu_cases as cases
from tests.benchmarks.flow_cases import of_width


def test_the_gpu_benchmark_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: every network, every way, plans beside peaks, times of whole runs, one JSON file."""
    file = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--repeats", "1", "--json", str(file)])
    gpu.main()
    written = json.loads(file.read_text())
    assert written["device"] == "CPU" and written["ceiling_tflops"] > 0
    rows = written["rows"]
    timed = [row for row in rows if "ms" in row]
    assert all(row["ms"] > 0 and row["peak_bytes"] > 0 and 0 < row["share"] for row in timed)
    parts = ("structure", "shape", "convolution", "decoder", "sampling")
    ways = {part: {row["way"] for row in rows if row["part"].startswith(part)} for part in parts}
    assert ways["structure"] == ways["shape"] == ways["sampling"] == {"ours", "plain", "reference"}
    assert ways["convolution"] == {"ours", "plain"} and {"ours", "frugal", "plain"} == ways["decoder"]
    goals = {goal["goal"]: goal for goal in written["goals"]}
    assert all(isinstance(goal["reached"], bool) for goal in goals.values())
    plans = [goal for name, goal in goals.items() if "plan 1 to 1.15" in name]
    assert len(plans) == 2 * (1 + len(cases.TINY.tokens)) + 3 and all(goal["reached"] for goal in plans), plans
    for start in (
        "shape flow, 200 tokens: at least 55%",
        "sampling 1024: at most 5.0 s",
        "sampling 1024: at least 2",
        "shape and texture",
    ):
        assert any(name.startswith(start) for name in goals), start


def test_goals_are_judged_by_what_was_measured() -> None:
    flow = {
        "weights_bytes": 2**30,
        "planned_bytes": 3 * 2**30,
        "peak_bytes": 3 * 2**30,
        "way": "ours",
        "ms": 9.0,
        "tokens": 9600,
    }
    rows = [
        {**flow, "part": "shape flow, 9,600 tokens", "share": 0.56},
        {**flow, "part": "shape flow, 9,600 tokens, guided", "share": 0.5},
        {**flow, "part": "shape flow, 2,200 tokens, guided", "share": 0.5, "tokens": 2200, "peak_bytes": 5 * 2**30},
        {"part": "sampling 1024", "way": "ours", "seconds": 4.0},
        {"part": "sampling 1024", "way": "reference", "seconds": 7.0},
        {"part": "convolution 64 to 64", "way": "ours", "ms": 1.0},
        {"part": "convolution 64 to 64", "way": "flex_gemm", "ms": 1.2},
    ]
    judged = {goal["goal"]: goal["reached"] for goal in gpu_goals.goals(rows, (2200, 9600), (512, 1024))}
    assert judged == {
        "shape flow, 9,600 tokens: at least 55% of the ceiling": True,
        "sampling 1024: at most 5.0 s": True,
        "sampling 1024: at least 2.0 times the re-created reference": False,
        "convolution 64 to 64: at least 1.1 times FlexGEMM": True,
        "resolution 512: at most 4 GiB": False,
        "resolution 1024: at most 6 GiB": True,
        "shape flow, 9,600 tokens, guided, ours: plan 1 to 1.15 times the peak": True,
        "shape flow, 2,200 tokens, guided, ours: plan 1 to 1.15 times the peak": False,
    }


def test_the_gpu_benchmark_has_the_cases_that_count() -> None:
    assert cases.FULL.tokens == (2200, 9600, 22000, 49152) and cases.FULL.structure.resolution == 16
    assert [16 * grid for grid in cases.FULL.grids] == [512, 1024, 1536]
    assert (cases.FULL.flow.model_channels, cases.FULL.flow.num_blocks, cases.FULL.decoder.model_channels[0]) == (
        1536,
        30,
        1024,
    )
    found = cases.surface(64, 9600)
    assert 9600 <= len(found) < 10000 and len(cases.surface(128)) / 128**2 == pytest.approx(2.6, abs=0.3)


def test_without_a_gpu_the_benchmark_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu --tiny"):
        gpu.main()


def test_precision_and_shortcuts_are_measured() -> None:
    case = of_width(128, 2, 60, 9, 16)
    rows = {row["precision"]: row for row in precision.measure(case)}
    assert {"bfloat16", "int8", "fp8", "fp8 file", "int8_convrot file"} <= set(rows)
    for name, row in rows.items():
        assert 1e-4 < row["error"] < (0.3 if "Q4" in name or "Q5" in name else 0.08) and row["cosine"] > 0.95, row
        assert row["lora"] is None or row["lora"] < 1e-6, row
    assert rows["int8"]["error"] < rows["fp8"]["error"]
    assert shortcuts.measure(case, 1) > 0
    with torch.no_grad():
        assert torch.allclose(shortcuts.plain(case), shortcuts.taken(case), atol=1e-4)
