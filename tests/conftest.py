import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.golden_harness import DEFAULT, find_cases

# PEFT's tests import what imports torchvision, and a build for CUDA may be what is at hand.
runpy.run_path(str(Path(__file__).parent / "host" / "site" / "sitecustomize.py"))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be there before anything imports Triton


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=DEFAULT, help="folder with golden cases (default: tests/golden)")
    parser.addoption(
        "--without", action="append", default=[], metavar="PACKAGE",
        help="run as on a machine that lacks this optional package; can be given again",
    )  # fmt: skip
    parser.addoption("--slow", action="store_true", help="also the tests marked slow: larger cases of what others try small")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


def pytest_configure(config: pytest.Config) -> None:
    sys.modules.update(dict.fromkeys(config.getoption("--without")))  # None there makes an import fail


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        root: Path = metafunc.config.getoption("--golden")
        cases = list(find_cases(root))
        metafunc.parametrize("golden_case", cases, ids=[str(c.path.relative_to(root)) for c in cases])
