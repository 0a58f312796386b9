import os
from pathlib import Path

import pytest
import torch

from tests.reference.golden_harness import DEFAULT, find_cases

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be there before anything imports Triton


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=DEFAULT, help="folder with golden cases (default: tests/golden)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        root: Path = metafunc.config.getoption("--golden")
        cases = list(find_cases(root))
        metafunc.parametrize("golden_case", cases, ids=[str(c.path.relative_to(root)) for c in cases])
