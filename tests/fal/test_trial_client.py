"""A sample of the trial in tests/trial_client.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.trial_client import trial  # noqa: E402


@pytest.mark.parametrize("marks", [False, True])
def test_killed_clients_lose_nothing_and_pay_nothing_twice(tmp_path: Path, marks: bool) -> None:
    account = trial(4, 1, tmp_path, marks)
    assert account.kills == 4 and account.jobs == 2
    assert account.lost == [] and account.paid_twice == [] and account.made + account.unsure == account.jobs
    assert not (marks and account.unsure)
