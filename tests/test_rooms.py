"""The rooms of the house and the arrows between them, as design says: every import is looked at, those for types and those
inside functions too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST = {"comfy", "comfy_execution", "folder_paths", "server", "execution", "nodes", "app"}
"""Modules of ComfyUI that only nodes/host may see; `comfy_api`, which defines nodes, all of nodes/ may."""

FLOOR = {"errors", "context", "values", "settings", "files", "layers", "threads", "fetch", "outside", "network_params"}
"""Ground-floor modules that any room may use."""
MESHES = {"ovoxel", "mesh", "texturing", "gltf", "asset", "preview", "reference"}
BELOW = {
    "kernels": set(),
    "sparse": {"kernels"},
    "flow": {"kernels"},
    "vae": {"sparse", "kernels"},
    "image": set(),
    "ovoxel": {"sparse"},
    "mesh": {"ovoxel", "reference"},
    "texturing": {"mesh", "ovoxel"},
    "gltf": {"mesh", "ovoxel"},
    "preview": {"mesh", "asset", "gltf"},
    "reference": {"mesh", "ovoxel"},
    "projection": {"mesh", "texturing"},
    "asset": {"projection", "texturing", "gltf", "mesh", "ovoxel", "memory", "reference"},
    "nodes.host": {"fal", "family", "file_names", "latent_preview", "lora", "memory", "preview", "weights"},
}
"""What else a room may import; rooms that are not named here are on top of these."""
TOP = {"training", "cli", "__main__", "nodes", "nodes.host"}
"""What no room of the core but those of TOP may import."""


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of everything that ships."""
    found = {}
    for file in [*root.glob("trellis_core/**/*.py"), *root.glob("nodes/**/*.py")]:
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path) -> Iterator[str]:
    """Every name that a module imports, wherever in it, absolute: `a.b` of `from a import b`."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The pack is a package inside the host: what is above nodes/ there is the root here.
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}".strip(".") for alias in node.names)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    known = modules(root)
    edges = {}
    for name, file in known.items():
        wanted = (target if target in known else target.rpartition(".")[0] for target in imported(name, file))
        edges[name] = {target for target in wanted if target in known} - {name}
    return edges


def room(name: str) -> str:
    """ "flow" of "trellis_core.flow.block", "settings" of "trellis_core.settings", "nodes.host" of "nodes.host.run"."""
    if name.startswith("nodes"):
        return "nodes.host" if name.startswith("nodes.host") else "nodes"
    return name.split(".")[1] if "." in name else name


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Names that import each other in a ring, or nothing."""
    state: dict[str, bool] = {}  # False while it is walked through, True when all below it is known to be free of rings

    def walk(name: str, path: list[str]) -> list[str]:
        if state.get(name) is False:
            return path[path.index(name) :]
        if name not in state:
            state[name] = False
            for target in sorted(edges[name]):
                if found := walk(target, [*path, name]):
                    return found
            state[name] = True
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def reached(edges: Mapping[str, set[str]], start: str) -> set[str]:
    """All that a module imports, directly or not."""
    found, todo = set(), [start]
    while todo:
        new = edges[todo.pop()] - found
        found |= new
        todo.extend(new)
    return found


def test_no_modules_import_each_other() -> None:
    assert circle(graph()) == []


def test_rooms_import_only_what_is_below_them() -> None:
    wrong = {
        f"{name} -> {target}"
        for name, targets in graph().items()
        for target in targets
        if room(target) != room(name)
        and room(name) in BELOW
        and room(target) not in BELOW[room(name)] | FLOOR | ({"trellis_core"} if room(name) == "nodes.host" else set())
    }
    assert not wrong


def test_mesh_rooms_know_nothing_of_networks() -> None:
    """Not even by way of others."""
    edges = graph()
    networks = {"flow", "vae", "image", "weights", "lora", "family", "sampling", "stages", "fal", "training"}
    wrong = {
        (name, target) for name in edges if room(name) in MESHES for target in reached(edges, name) if room(target) in networks
    }
    assert not wrong


def test_the_ground_floor_stands_on_itself() -> None:
    wrong = {f"{n} -> {t}" for n, targets in graph().items() if room(n) in FLOOR for t in targets if room(t) not in FLOOR}
    assert not wrong


def test_nobody_imports_faces_and_training() -> None:
    allowed = {"cli": {"__main__"}, "training": {"cli"}, "nodes": set(), "nodes.host": {"nodes"}, "__main__": set()}
    wrong = {
        f"{name} -> {target}"
        for name, targets in graph().items()
        for target in targets
        if room(target) in TOP and room(name) != room(target) and room(name) not in allowed[room(target)]
    }
    assert not wrong


def test_only_the_host_room_sees_the_host() -> None:
    names = {name: {target.split(".")[0] for target in imported(name, file)} for name, file in modules(ROOT).items()}
    ours = {"nodes"}  # our own room of that name
    assert any(HOST & found for name, found in names.items() if room(name) == "nodes.host")
    assert not {n: found for n, used in names.items() if room(n) != "nodes.host" and (found := (used & HOST) - ours)}
    assert not {n for n, used in names.items() if n.startswith("trellis_core") and "comfy_api" in used}


@pytest.mark.parametrize(
    "line", ["from .b import x", "if TYPE_CHECKING:\n    from . import b", "def f():\n    import trellis_core.b"]
)
def test_a_circle_is_found_however_it_is_made(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "trellis_core"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text(line + "\n")
    (folder / "b.py").write_text("from trellis_core.c import y\n")
    (folder / "c.py").write_text("")
    assert circle(graph(tmp_path)) == []
    (folder / "c.py").write_text("from .a import z\n")
    assert sorted(circle(graph(tmp_path))) == ["trellis_core.a", "trellis_core.b", "trellis_core.c"]


def test_importing_the_package_loads_neither_networks_nor_pillow() -> None:
    code = (
        "import sys, trellis_core; print([m for m in ('torch', 'PIL', 'pydantic', 'trellis_core.stages') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_pages_that_the_code_cites_are_there() -> None:
    files = [file for folder in ("trellis_core", "nodes", "tests") for file in (ROOT / folder).rglob("*.py")]
    cited = {page for file in files for page in re.findall(r"docs/method/\w+\.md", file.read_text(encoding="utf-8"))}
    assert "docs/method/networks.md" in cited
    assert not {page for page in cited if not (ROOT / page).is_file()}
