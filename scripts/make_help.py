"""Writes the help pages of the nodes, in every language that the nodes have, from what the nodes say of themselves.

    python scripts/make_help.py

Names, ranges and tooltips come from the stored /object_info of tests/host and from locales/. The paragraphs between the
heading and "Inputs" of the English pages, web/docs/NODE.md, are written by hand and stay. Lists and no tables, for the help
panel is narrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCHEMAS = json.loads((ROOT / "tests" / "host" / "object_info.json").read_text())
PAGES = ROOT / "web" / "docs"
WORDS = {
    "en": ("Inputs", "Outputs", "{low} to {high}", "Default {default}", "on", "off", "One of {choices}", "may be left out"),
    "de": (
        "Eingänge",
        "Ausgänge",
        "{low} bis {high}",
        "Voreingestellt {default}",
        "an",
        "aus",
        "Eins von {choices}",
        "darf fehlen",
    ),
    "zh": ("输入", "输出", "{low} 至 {high}", "默认 {default}", "开", "关", "可选：{choices}", "可不连接"),
}


def page(node: str, language: str, prose: str = "") -> str:
    """The help page of a node."""
    schema, said = SCHEMAS[node], names(language).get(node, {})
    inputs, outputs = WORDS[language][:2]
    lines = [f"# {said.get('display_name', schema['name'])}", "", said.get("description", schema["description"]), ""]
    lines += [prose, ""] if prose else []
    if schema["inputs"]:
        lines += [f"## {inputs}", "", *(_input(name, node, language) for name in schema["inputs"]), ""]
    if schema["outputs"]:
        lines += [f"## {outputs}", "", *_outputs(node, language), ""]
    return "\n".join(lines)


@lru_cache
def names(language: str) -> dict[str, Any]:
    """What a language calls everything."""
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())


def prose_of(text: str) -> str:
    """The paragraphs of an English page that are written by hand."""
    head = text.split("\n## ")[0].strip()
    return "\n\n".join(head.split("\n\n")[2:])


def _input(name: str, node: str, language: str) -> str:
    _, _, span, default, on, off, one_of, optional = WORDS[language]
    fact, said = SCHEMAS[node]["inputs"][name], names(language)[node]["inputs"][name]
    label, tip = said["name"], said.get("tooltip", fact["tooltip"])
    known = f"**{label}**" if label == name else f"**{label}** (`{name}`)"
    notes = []
    if "options" in fact:
        notes.append(one_of.format(choices=", ".join(f"`{choice}`" for choice in fact["options"])))
    elif "max" in fact:
        notes.append(span.format(low=_number(fact["min"]), high=_number(fact["max"])))
    if fact.get("default") not in (None, ""):
        value = fact["default"]
        shown = (on if value else off) if isinstance(value, bool) else f"`{_number(value)}`"
        notes.append(default.format(default=shown))
    elif not fact["needed"] and "default" not in fact:
        notes.append(optional)
    return f"- {known}: {tip}" + (f" *{'; '.join(notes)}.*" if notes else "")


def _outputs(node: str, language: str) -> Iterator[str]:
    said = names(language)[node].get("outputs", {})
    for index, (name, _, _, tip) in enumerate(SCHEMAS[node]["outputs"]):
        own = said.get(str(index), {})
        yield f"- **{own.get('name', name)}**: {own.get('tooltip', tip)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def pages() -> Iterator[tuple[Path, str]]:
    """Every page and its text."""
    for node in SCHEMAS:
        english = PAGES / f"{node}.md"
        yield english, page(node, "en", prose_of(english.read_text()) if english.exists() else "")
        for language in sorted(set(WORDS) - {"en"}):
            yield PAGES / node / f"{language}.md", page(node, language)


def main() -> None:
    for path, text in pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
