"""Speed and memory of the full-size networks on a GPU, beside a plain path and a re-creation of the reference's.

    python -m tests.benchmarks.gpu --json results.json
    python -m tests.benchmarks.gpu --device cpu --tiny         # tries the benchmark itself; its times mean nothing
    python -m tests.benchmarks.gpu --tune                      # measures a new table for trellis_core/kernels/tuning.py

Weights and inputs are random: no files are read. Times are medians of CUDA events after a warm-up; `share` is that of the
matrix product's rate measured in the same run. Flows are measured three ways in turn: `ours`; `plain`, the same without
kernels; and `reference`, where every call does everything anew, guided steps are two calls, and attention is flash-attn if
that is installed. Convolutions and decoders: `ours`, `plain`, and with FlexGEMM and spconv if these are installed. At the end
the goals, with what was measured for each.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from trellis_core.context import RunContext
from trellis_core.flow.attention import use_attention
from trellis_core.kernels import kernels, tuning, works_on
from trellis_core.memory.footprint import activation_bytes, sparse_decoder_bytes
from trellis_core.memory.meter import PeakMeter
from trellis_core.sparse.conv import NeighborMap, _run_kernel, _taps, submanifold_conv3d
from trellis_core.sparse.libraries import LIBRARIES, use_convolution

from . import gpu_cases as cases
from .gpu_goals import goals

GUIDED, UNGUIDED = {"structure": 10, "shape": 9, "texture": 0}, {"structure": 2, "shape": 3, "texture": 12}
"""Steps of the usual settings inside and outside of the guidance interval: 22, 21, 12 evaluations (docs/method/networks.md)."""
Row = dict[str, Any]


class Bench:
    """A device, and how to measure on it."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats, self.rows = device, repeats, []
        self.gpu = device.type == "cuda"

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """Median over `repeats` runs after two that warm up."""
        for _ in range(2):
            work()
        times = []
        for _ in range(self.repeats):
            if self.gpu:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
                start.record()
                work()
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop))
            else:
                start = time.process_time()
                work()
                times.append(1000 * (time.process_time() - start))
        return statistics.median(times)

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes that it takes beyond what is there."""
        if not self.gpu:
            with PeakMeter() as meter:
                work()
            return meter.peak
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def ceiling(self, dtype: torch.dtype, side: int) -> float:
        """TFLOP/s of a square matrix product."""
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in "ab")
        return 2e-9 * side**3 / self.milliseconds(lambda: a @ b)

    def row(
        self,
        part: str,
        way: str,
        work: Callable[[], Any],
        flops: float,
        ceiling: float,
        whole: Callable[[], Any] | None = None,
        **facts: Any,
    ) -> float:
        """Measure, remember and print one row; its milliseconds, infinite where memory was not enough.

        `whole` is `work` with what is made ready for it; its peak of memory is the row's.
        """
        try:
            ms, peak = self.milliseconds(work), self.peak(whole or work)
        except torch.OutOfMemoryError:
            ms, peak = float("inf"), 0
            gc.collect()
            torch.cuda.empty_cache()
        rate = 1e-9 * flops / ms
        row = {"part": part, "way": way, **facts, "ms": ms, "tflops": rate, "share": rate / ceiling, "peak_bytes": peak}
        self.rows.append(row)
        extra = "  ".join(f"{key} {value:,}" for key, value in facts.items())
        print(
            f"{part:34} {way:10} {ms:9.2f} ms {rate:8.1f} TFLOP/s {rate / ceiling:6.1%} {peak / 1e9:7.2f} GB  {extra}",
            flush=True,
        )
        return ms


def as_ours(_stack: ExitStack) -> None:
    """Nothing changed."""


def as_plain(stack: ExitStack) -> None:
    """Our shortcuts, torch's kernels."""
    stack.enter_context(kernels(False))


def as_reference(stack: ExitStack) -> None:
    """No shortcuts, torch's kernels, flash-attn where it is."""
    stack.enter_context(kernels(False))
    if find_spec("flash_attn") is not None:
        stack.enter_context(use_attention("flash"))


WAYS = {"ours": (as_ours, True), "plain": (as_plain, True), "reference": (as_reference, False)}
"""Name -> how to get there, and whether what stays between steps is kept."""


@torch.no_grad()
def measure_flows(bench: Bench, sizes: cases.Sizes, ceiling: float) -> None:
    """Every flow network at every token count, and what the whole sampling of 1024 and 1536 takes."""
    params, (short, long) = sizes.flow, sizes.contexts
    step: dict[tuple[str, int, str], dict[str, float]] = {}
    jobs = [
        ("structure", sizes.structure_side**3, short),
        *(("shape", n, short if i == 0 else long) for i, n in enumerate(sizes.tokens)),
    ]
    for stage, tokens, context in jobs:
        model = (cases.structure_flow if stage == "structure" else cases.flow)(sizes, bench.device)
        weights = sum(p.nbytes for p in model.parameters())
        for way, (enter, prepared) in WAYS.items():
            with ExitStack() as stack:
                enter(stack)
                make = partial(cases.evaluations, model, tokens, context, bench.device, prepared)
                fast = way == "ours" and works_on(bench.device)
                planned = activation_bytes(
                    model.params, tokens, model.dtype, False, fast, device_type=bench.device.type, context=context
                )
                found = make()
                facts = {"tokens": tokens, "planned_bytes": planned, "weights_bytes": weights}
                cond = cases.flow_flops(params, tokens, context, project=not prepared)
                neg = cases.flow_flops(params, tokens, context, project=not prepared, look=not prepared)
                part = f"{stage} flow, {tokens:,} tokens"
                whole = [lambda make=make: make().cond(), lambda make=make: make().both()]
                one = bench.row(part, way, found.cond, cond, ceiling, whole[0], **facts)
                two = bench.row(f"{part}, guided", way, found.both, cond + neg, ceiling, whole[1], **facts)
                step[stage, tokens, way] = {"one": one, "guided": two}
        del model, make, found
    _sampling(bench, sizes, step)


def _sampling(bench: Bench, sizes: cases.Sizes, step: dict[tuple[str, int, str], dict[str, float]]) -> None:
    def seconds(stage: str, kind: str, tokens: int, way: str) -> float:
        times = step["structure" if kind == "structure" else "shape", tokens, way]
        return (GUIDED[stage] * times["guided"] + UNGUIDED[stage] * times["one"]) / 1000

    low, *high = sizes.tokens
    for name, fine in zip(("1024", "1536"), high, strict=False):
        for way in WAYS:
            total = seconds("structure", "structure", sizes.structure_side**3, way)
            total += (
                seconds("shape", "shape", low, way)
                + seconds("shape", "shape", fine, way)
                + seconds("texture", "shape", fine, way)
            )
            bench.rows.append({"part": f"sampling {name}", "way": way, "seconds": total, "tokens": fine})
            print(f"sampling {name} cascade{'':13} {way:10} {total:9.2f} s   at {fine:,} tokens", flush=True)


@torch.no_grad()
def measure_convolutions(bench: Bench, sizes: cases.Sizes, ceiling: float, tune: bool) -> None:
    """Every kind of convolution in the decoder, on the voxels of its level."""
    dtype = sizes.decoder.torso_dtype(None)
    coords, guides = cases.guides(sizes, sizes.grids[min(1, len(sizes.grids) - 1)])
    levels = [coords]
    for logits in guides:
        levels.append(cases.split_plan(levels[-1], logits > 0).coords)
    for level, inputs, outputs in cases.conv_layers(sizes):
        at = levels[level].to(bench.device)
        nmap = NeighborMap.build(at)
        draw = lambda *shape: torch.randn(shape, device=bench.device).to(dtype)  # noqa: E731
        x, weight, bias = draw(len(at), inputs), draw(outputs, 3, 3, 3, inputs), draw(outputs)
        flops = 2.0 * int((nmap.table >= 0).sum()) * inputs * outputs
        part, facts = f"convolution {inputs} to {outputs}", {"rows": len(at)}
        if tune:
            _tune(bench, nmap, x, weight, bias, facts)
            continue
        ours = lambda: submanifold_conv3d(x, weight, bias, nmap)  # noqa: B023, E731
        bench.row(part, "ours", ours, flops, ceiling, **facts)
        with kernels(False):
            bench.row(part, "plain", ours, flops, ceiling, **facts)
        for peer in ("flex_gemm", "spconv"):
            if find_spec(peer) is not None and bench.gpu:
                try:
                    bench.row(part, peer, cases.peer_conv(peer, at, x, weight, bias), flops, ceiling, **facts)
                except Exception as error:  # of another version, or half installed
                    print(f"{part:34} {peer:10} cannot be used: {error}", file=sys.stderr)


def _tune(bench: Bench, nmap: NeighborMap, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, facts: Row) -> None:
    """Print the fastest cut of one layer as a line of the table."""
    from trellis_core.kernels.tiles import shared_memory

    outputs, inputs = weight.shape[0], weight.shape[4]
    out, taps = x.new_empty(len(x), outputs), _taps(weight, x.dtype)

    def measure(config: Any) -> float:
        tuning.TABLE[x.dtype.itemsize, inputs, outputs] = config
        tuning._choose.cache_clear()
        return bench.milliseconds(lambda: _run_kernel(out, slice(0, len(x)), x, taps, bias, nmap, None, None))

    best, ms = tuning.fastest(measure, x.dtype.itemsize, shared_memory(x.device.index or 0))
    cut = ", ".join(map(str, vars(best).values()))
    print(f"    ({x.dtype.itemsize}, {inputs}, {outputs}): Config({cut}),  # {ms:.2f} ms, {facts['rows']:,} rows", flush=True)


@torch.no_grad()
def measure_decoding(bench: Bench, sizes: cases.Sizes, ceiling: float) -> None:
    """The texture decoder, led to an analytic surface; the shape decoder does the same work."""
    decoder = cases.decoder(sizes, bench.device)
    weights = sum(p.nbytes for p in decoder.parameters())
    peers = [name for name in LIBRARIES if bench.gpu and find_spec(name) is not None]
    for grid in sizes.grids:
        coords, guides = cases.guides(sizes, grid)
        rows = [*map(len, guides), int((guides[-1] > 0).sum())]
        coords, guides = coords.to(bench.device), [logits.to(bench.device, decoder.dtype) for logits in guides]
        z = torch.randn(len(coords), sizes.decoder.latent_channels, device=bench.device)
        for way in ("ours", "frugal", "plain", *peers):
            with kernels(way != "plain"), use_convolution(way if way in peers else "ours"):
                ctx, fast = RunContext(bench.device, frugal=way == "frugal"), way != "plain" and works_on(bench.device)
                facts = {"voxels": rows[-1], "weights_bytes": weights}
                if way not in peers:
                    planned = sparse_decoder_bytes(sizes.decoder, rows, decoder.dtype, ctx.frugal, fast, bench.device.type)
                    facts["planned_bytes"] = planned
                work = lambda: decoder(z, coords, guides, ctx=ctx)  # noqa: B023, E731
                whole = lambda: decoder(z + 0, coords + 0, [logits + 0 for logits in guides], ctx=ctx)  # noqa: B023, E731
                bench.row(_decoder_name(sizes, grid), way, work, decoder_flops(sizes, rows), ceiling, whole, **facts)


def _decoder_name(sizes: cases.Sizes, grid: int) -> str:
    return f"decoder to {grid * sizes.decoded}^3"


def decoder_flops(sizes: cases.Sizes, rows: list[int]) -> float:
    """Of all existing pairs at 14.7 neighbours a voxel, and of the MLPs (docs/method/decoders.md)."""
    width, total = sizes.decoder.model_channels, 0.0
    for level, (count, c) in enumerate(zip(rows, width, strict=True)):
        total += sizes.decoder.num_blocks[level] * count * (14.7 * c * c + 8 * c * c)
        if level + 1 < len(rows):
            total += count * 14.7 * c * 8 * width[level + 1] + rows[level + 1] * 14.7 * width[level + 1] ** 2
    return 2 * total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=("flow", "convolution", "decoder"), help="one part")
    parser.add_argument("--tune", action="store_true", help="measure a table of cuts for the convolution's kernel")
    parser.add_argument("--json", type=Path, help="write all rows here")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here. `--device cpu --tiny` tries the benchmark itself.")
    bench, sizes = Bench(device, options.repeats), cases.TINY if options.tiny else cases.FULL
    dtype = getattr(torch, sizes.flow.dtype)
    ceiling = bench.ceiling(dtype, sizes.square)
    name = torch.cuda.get_device_name(device) if bench.gpu else "CPU"
    facts = {
        "date": datetime.date.today().isoformat(), "device": name, "torch": torch.__version__, "kernels": works_on(device),
        "ceiling_tflops": ceiling, "dtype": str(dtype),
    }  # fmt: skip
    print(" ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    if options.tune:
        measure_convolutions(bench, sizes, ceiling, tune=True)
        return
    if options.only in (None, "flow"):
        measure_flows(bench, sizes, ceiling)
    if options.only in (None, "convolution"):
        measure_convolutions(bench, sizes, ceiling, tune=False)
    if options.only in (None, "decoder"):
        measure_decoding(bench, sizes, ceiling)
    reached = goals(bench.rows, sizes.tokens, tuple(grid * sizes.decoded for grid in sizes.grids))
    for goal in reached:
        print(f"{'reached' if goal['reached'] else 'MISSED':8} {goal['goal']:70} {goal['measured']}")
    if options.json:
        options.json.write_text(json.dumps({**facts, "rows": bench.rows, "goals": reached}, indent=1) + "\n")


if __name__ == "__main__":
    main()
