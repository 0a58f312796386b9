"""What people read: the list of settings is that of the code, links of the pages outside of the site lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")  # those in docs/ are checked when the site is built


def test_the_page_of_settings_is_made_from_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("make_settings_page", ROOT / "scripts" / "make_settings_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = "docs/settings.md is out of date: python scripts/make_settings_page.py"
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), told


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_readme_is_read_in_three_minutes() -> None:
    words = re.sub(r"```.*?```|^    .*?$", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S | re.M).split()
    assert len(words) < 900
