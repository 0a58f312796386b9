"""Writes docs/settings.md, the list of all settings, from the one place that knows them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
HEAD = """# Settings

<!-- Written by scripts/make_settings_page.py from trellis_core/settings.py: change it there. -->

Every face of the program has these settings: the nodes' widgets, the flags of the command line (`texture_size` is
`--texture-size`), the fields of `GenerationSettings`, and the fields of a request to fal or to your own server. Where the
weights' `pipeline.json` recommends another default, that one is used unless you give a value.

"""


def page() -> str:
    """The whole page as Markdown."""
    from trellis_core.settings import LOCAL_FIELDS, SOURCE_FIELDS, GenerationSettings

    lines = [HEAD, "| setting | default | range | what it does |\n|---|---|---|---|\n"]
    for name, field in GenerationSettings.model_fields.items():
        if name in SOURCE_FIELDS:
            continue
        default = {"seed": "random"}.get(name, "none" if field.default in (None, "") else f"`{field.default}`")
        text = (field.description or "").replace("|", "\\|")
        own = " Not sent to fal." if name in LOCAL_FIELDS else ""
        lines.append(f"| `{name}` | {default} | {_range(field)} | {text}{own} |\n")
    return "".join(lines)


def _range(field: Any) -> str:
    choices = next(
        (get_args(kind) for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal), ()
    )
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if field.annotation is bool:
        return "on, off"
    found = {key: getattr(part, key) for part in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(part, key)}
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt", 0) - 1 if "lt" in found else None)
    return "" if low is None and high is None else f"{low} to {high}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
