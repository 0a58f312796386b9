"""Our numbers against the reference implementation's, case by case."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference import golden_harness
from tests.reference.golden_harness import Case, find_cases, runner_for


def test_golden(golden_case: Case) -> None:
    runner = runner_for(golden_case)
    if runner is None and not golden_case.is_known:
        pytest.skip(f"{golden_case.name} is of a kind that the golden README does not name")
    assert runner is not None, f"{golden_case.name} is of a known kind but nothing here can run it"
    runner(golden_case)


def test_golden_folder_has_cases(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.getoption("--golden")
    assert any(find_cases(root)), f"no golden case found under {root}"


def make_case(folder: Path) -> Case:
    folder.mkdir(parents=True)
    (folder / "outputs.safetensors").write_bytes(b"")
    return Case(folder)


def test_a_known_kind_that_cannot_be_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path / "ss_flow_other")
    assert list(find_cases(tmp_path)) == [case]
    monkeypatch.setattr(golden_harness, "_load_runners", lambda: None)
    monkeypatch.setattr(golden_harness, "_RUNNERS", [(re.compile("slat_flow.*"), lambda _: None)])
    with pytest.raises(AssertionError, match="ss_flow_other is of a known kind but nothing here can run it"):
        test_golden(case)


def test_a_known_kind_that_lacks_its_files_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        test_golden(make_case(tmp_path / "ss_flow_other"))


def test_an_unknown_kind_is_skipped_with_a_reason(tmp_path: Path) -> None:
    case = make_case(tmp_path / "deep" / "99_new_kind")
    assert list(find_cases(tmp_path)) == [case]
    with pytest.raises(pytest.skip.Exception, match="99_new_kind is of a kind"):
        test_golden(case)


@pytest.mark.parametrize("name", golden_harness.KNOWN)
def test_every_kind_has_a_runner_for_cases_of_any_name(name: str, tmp_path: Path) -> None:
    ending = {"02_block_": "convnext_x", "03_fdg_decoder": "_x", "04_tex_decoder": "_x"}.get(name, "_x")
    assert runner_for(Case(tmp_path / f"{name}{ending}")) is not None


def test_a_case_may_be_named_itself_and_folders_in_it_are_no_cases(tmp_path: Path) -> None:
    case = make_case(tmp_path / "dinov3")
    (case.path / "dinov3-tiny").mkdir()
    (case.path / "dinov3-tiny" / "config.json").write_text("{}")
    assert list(find_cases(case.path)) == list(find_cases(tmp_path)) == [case]
