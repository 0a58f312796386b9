"""From decoded mesh to textured GLB on one CPU thread: CPU seconds, memory and quality, beside the libraries others use.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.mesh DIR [--peers] [--solid] [--repeat 3]

DIR holds npz files with verts [V, 3], faces [F, 3], coords [V, 3], attrs [V, 6] and res, as `tests.benchmarks.mesh_kinds`
makes them. Every case runs in a process of its own. `s` are user and system seconds of it and its children, medians of
the repeats, the columns after it their shares by step; `MB` is the peak of the process tree's resident memory less
what Python, torch and the loaded mesh take (`+ base`). Distances are in voxels; `psnr` compares baked colours of texels with
the painted truth, and `exact` does the same for colours looked up at the exact closest points of the decoded surface.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.mesh_kinds import paint
from trellis_core.asset.asset import Asset, make_asset
from trellis_core.context import RunContext
from trellis_core.mesh.distance import TriangleIndex
from trellis_core.ovoxel.attributes import sample_attributes
from trellis_core.settings import GenerationSettings
from trellis_core.values import Mesh, PbrVoxels

STEPS = ("remesh", "clean", "decimate", "unwrap", "bake", "write")
LARGE = 4_000_000
"""Triangles from which a case asks for 500k vertices and 4096 texels instead of 100k and 2048."""
_SAMPLES = 20_000
_XATLAS_FACES = 60_000


def load(path: Path) -> tuple[Mesh, PbrVoxels]:
    with np.load(path) as data:
        mesh = Mesh(torch.from_numpy(data["verts"].astype(np.float32)), torch.from_numpy(data["faces"].astype(np.int32)))
        coords, attrs = torch.from_numpy(data["coords"].astype(np.int32)), torch.from_numpy(data["attrs"].astype(np.float32))
        return mesh, PbrVoxels(coords, attrs, int(data["res"]))


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    return sum(os.times()[:4])


class PeakMemory:
    """The largest resident memory of this process and its children, in MB, sampled while the block runs (Linux).

    `seconds` is the time that the sampling itself took.
    """

    def __enter__(self) -> PeakMemory:
        self.seconds = 0.0
        self.base = self.peak = self._tree()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._tree())
            self.seconds = time.thread_time()

    def _tree(self) -> float:
        own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return sum(_resident(pid) for pid in ("self", *own)) / 1024


def _resident(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def one_case(path: Path, vertices: int, size: int, solid: bool, judge: bool) -> dict[str, Any]:
    """Run our pipeline on one file."""
    mesh, voxels = load(path)
    settings = GenerationSettings(decimation_target=vertices, texture_size=size, remesh=solid)
    marks: list[tuple[float, str]] = []

    def mark(fraction: float, name: str) -> None:
        if name in STEPS and (not marks or marks[-1][1] != name):
            marks.append((cpu_seconds() - memory.seconds, name))

    start = cpu_seconds()
    with PeakMemory() as memory:
        asset = make_asset(mesh, voxels, settings, RunContext(on_progress=mark))
    stop = cpu_seconds() - memory.seconds
    row: dict[str, Any] = {"case": path.stem, "in": len(mesh.faces), "s": stop - start}
    row |= dict.fromkeys(STEPS, 0.0)
    for (begin, name), (end, _) in zip(marks, marks[1:] + [(stop, "")], strict=True):
        row[name] += end - begin
    report = asset.report
    row |= {"MB": memory.peak - memory.base, "base": memory.base, "out": report.faces, "charts": report.charts}
    row |= {"use": report.atlas_use, "overlap%": 100 * report.overlap, "open": report.boundary_edges}
    row |= {"parts": report.components, "bad": report.non_manifold_edges}
    return row | (quality(asset, mesh, voxels) if judge else {})


def quality(asset: Asset, mesh: Mesh, voxels: PbrVoxels) -> dict[str, float]:
    """Distances to the decoded surface in voxels, stretch of the charts, and errors of the colours."""
    random = np.random.default_rng(0)
    there = _scatter(mesh, random)
    here = Mesh(asset.vertices, asset.faces)
    source = TriangleIndex(mesh.vertices, mesh.faces)
    spots, colour = _texels(asset, *_scatter_rows(here, random)[1:])
    back = source.query(spots)
    away = torch.cat([TriangleIndex(here.vertices, here.faces).query(there).distance, back.distance]) * voxels.resolution
    truth = torch.from_numpy(paint(back.point.numpy().astype(np.float64))[:, :3])
    exact = sample_attributes(voxels, back.point)[:, :3].clamp(0, 1).mul(255).round() / 255
    aniso = anisotropy(asset)
    return {
        "rms": float(away.square().mean().sqrt()),
        "haus": float(away.max()),
        "aniso50": aniso[0],
        "aniso95": aniso[1],
        "stretch99": asset.report.stretch_99,
        "psnr": _psnr(colour, truth),
        "exact": _psnr(exact, truth),
    }


def _texels(asset: Asset, face: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of points on faces [K] the texels that they fall into, if the centre lies in the same face: its place, its colour."""
    corners = asset.uvs[asset.faces[face].long()].double() * len(asset.base_color)
    centre = (corners * weights[:, :, None]).sum(1).floor() + 0.5
    a, b, arm = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], centre - corners[:, 0]
    cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]  # noqa: E731
    v, w = cross(arm, b) / cross(a, b), cross(a, arm) / cross(a, b)
    weights = torch.stack([1 - v - w, v, w], 1)
    inside = (weights >= 0).all(1)
    place = (asset.vertices[asset.faces[face].long()].double() * weights[:, :, None]).sum(1)[inside].float()
    column, row = centre[inside].long().unbind(1)
    return place, asset.base_color[row, column, :3].float() / 255


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def _scatter(mesh: Mesh, random: np.random.Generator) -> torch.Tensor:
    return _scatter_rows(mesh, random)[0]


def _scatter_rows(mesh: Mesh, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points spread evenly over a surface: [K, 3], their faces [K] and weights [K, 3]."""
    corners = mesh.vertices[mesh.faces.long()].double()
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1).numpy()
    face = torch.from_numpy(random.choice(len(area), _SAMPLES, p=area / area.sum()))
    weights = torch.from_numpy(random.dirichlet([1, 1, 1], _SAMPLES))
    return (corners[face] * weights[:, :, None]).sum(1).float(), face, weights.float()


def anisotropy(asset: Asset) -> list[float]:
    """Ratio of the singular values of each triangle's map to the atlas: its median and 95 % quantile by area."""
    corners, uv = asset.vertices[asset.faces.long()].double(), asset.uvs[asset.faces.long()].double()
    a, b = (corners[:, k] - corners[:, 0] for k in (1, 2))
    u, v = (uv[:, k] - uv[:, 0] for k in (1, 2))
    area = torch.linalg.cross(a, b).norm(dim=1)
    right = a / a.norm(dim=1, keepdim=True)
    x = (b * right).sum(1)
    y = (b - x[:, None] * right).norm(dim=1)
    local = torch.stack([torch.stack([a.norm(dim=1), x], 1), torch.stack([torch.zeros_like(x), y], 1)], 1)
    fine = (area > 1e-12) & (y > 1e-9)
    stretch = torch.linalg.svdvals(torch.stack([u, v], 2)[fine] @ torch.linalg.inv(local[fine]))
    ratio, order = (stretch[:, 0] / stretch[:, 1].clamp_min(1e-12)).sort()
    share = area[fine][order].cumsum(0) / area[fine].sum()
    return [float(ratio[torch.searchsorted(share, q).clamp(max=len(ratio) - 1)]) for q in (0.5, 0.95)]


def peers(path: Path, vertices: int, size: int) -> list[dict[str, Any]]:
    """Libraries on the same mesh, each where it can be imported."""
    mesh, _ = load(path)
    arrays = mesh.vertices.numpy(), mesh.faces.numpy()
    target = 2 * vertices
    works: dict[str, Callable[[], Any]] = {
        "trimesh clean": lambda: _trimesh_clean(*arrays),
        "fast-simplification, default": lambda: _simplified(*arrays, target, 7),
        "fast-simplification, agg 2": lambda: _simplified(*arrays, target, 2),
        "pyfqmr": lambda: _pyfqmr(*arrays, target),
        f"xatlas, {_XATLAS_FACES} faces": lambda: _xatlas(*_simplified(*arrays, _XATLAS_FACES, 3), size),
    }
    rows = []
    for name, work in works.items():
        start = cpu_seconds()
        try:
            with PeakMemory() as memory:
                spent = work()
        except ImportError:
            continue
        seconds = spent if isinstance(spent, float) else cpu_seconds() - start
        rows.append({"case": path.stem, "peer": name, "s": seconds, "MB": memory.peak - memory.base})
    return rows


def _trimesh_clean(vertices: np.ndarray, faces: np.ndarray) -> None:
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.merge_vertices()
    mesh.update_faces(mesh.unique_faces() & mesh.nondegenerate_faces())
    trimesh.graph.connected_component_labels(mesh.face_adjacency, len(mesh.faces))
    trimesh.repair.fill_holes(mesh)


def _simplified(vertices: np.ndarray, faces: np.ndarray, target: int, aggressiveness: int) -> tuple[np.ndarray, np.ndarray]:
    from fast_simplification import simplify

    return simplify(vertices, faces, target_count=min(target, len(faces)), agg=aggressiveness)


def _pyfqmr(vertices: np.ndarray, faces: np.ndarray, target: int) -> None:
    from pyfqmr import Simplify

    tool = Simplify()
    tool.setMesh(vertices, faces)
    tool.simplify_mesh(target_count=target, aggressiveness=7, verbose=False)
    tool.getMesh()


def _xatlas(vertices: np.ndarray, faces: np.ndarray, size: int) -> float:
    import xatlas

    start = cpu_seconds()
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, 2
    atlas.add_mesh(vertices, faces.astype(np.uint32))
    atlas.generate(pack_options=options)
    return cpu_seconds() - start


def _in_process(path: Path, mode: str, vertices: int, size: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", __spec__.name, str(path), "--mode", mode]
    command += ["--vertices", str(vertices), "--texture", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    show = lambda v: f"{v:.3g}" if isinstance(v, float) and abs(v) < 100 else f"{v:.0f}" if isinstance(v, float) else str(v)  # noqa: E731
    lines = [names, ["---"] * len(names), *([show(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of npz files, or one file")
    parser.add_argument("--peers", action="store_true", help="also run other libraries on each mesh")
    parser.add_argument("--solid", action="store_true", help="remesh to one outer wall first")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vertices", type=int, help="decimation target; else by the size of the mesh")
    parser.add_argument("--texture", type=int, help="side of the atlas; else by the size of the mesh")
    parser.add_argument("--mode", choices=("plain", "solid", "judged", "judged-solid", "peers"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        torch.set_num_threads(1)
        sized = options.folder, options.vertices, options.texture
        rows = (
            peers(*sized) if options.mode == "peers" else [one_case(*sized, "solid" in options.mode, "judged" in options.mode)]
        )
        print(json.dumps(rows))
        return
    paths = sorted(options.folder.glob("*.npz")) if options.folder.is_dir() else [options.folder]
    found, others = [], []
    for path in paths:
        with np.load(path) as data:
            large = len(data["faces"]) >= LARGE
        sized = options.vertices or (500_000 if large else 100_000), options.texture or (4096 if large else 2048)
        suffix = "-solid" if options.solid else ""
        runs = [_in_process(path, "judged" + suffix, *sized)[0]]
        runs += [_in_process(path, "solid" if options.solid else "plain", *sized)[0] for _ in range(options.repeat - 1)]
        found.append(runs[0] | {name: statistics.median(run[name] for run in runs) for name in ("s", *STEPS, "MB")})
        print(_table(found[-1:]), flush=True)
        if options.peers:
            others += _in_process(path, "peers", *sized)
    print("\n" + _table(found))
    if len(found) > 1:
        slope = np.polyfit(np.log([row["in"] for row in found]), np.log([row["s"] for row in found]), 1)[0]
        print(f"\nlog-log slope of seconds against input triangles: {slope:.2f}")
    if others:
        print("\n" + _table(others))


if __name__ == "__main__":
    main()
