"""A sample of the trial in tests/trial_client.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.trial_client import trial  # noqa: E402


def test_killed_clients_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    account = trial(6, 1, tmp_path)
    assert account.kills == 6 and account.jobs == 3
    assert account.lost == [] and account.paid_twice == [] and account.made + account.unsure == account.jobs
