"""Our numbers against the reference implementation's, case by case."""

import pytest

from tests.golden_harness import Case, find_cases, runner_for


def test_golden(golden_case: Case) -> None:
    runner = runner_for(golden_case)
    assert runner is not None, f"{golden_case.name} is of a known kind but nothing here can run it"
    runner(golden_case)


def test_golden_folder_has_cases(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.getoption("--golden")
    assert any(find_cases(root)), f"no golden case found under {root}"
