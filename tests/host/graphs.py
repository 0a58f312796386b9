"""The editor's files as the prompts that they post: its rules, kept here in a few lines.

The editor stores the values of widgets by position: required ones first, then optional ones, each seed followed by what
happens to it after a run, each upload by its button.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")


def posted(workflow: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt of a workflow.

    Args:
        workflow: as saved by the editor.
        known: the host's /object_info.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = {}
        values = iter(node["widgets_values"])
        for name, kind, options in _inputs(known[node["type"]]):
            if kind in WIDGETS:
                inputs[name] = next(values, options.get("default"))  # of widgets that were added since
                if options.get("control_after_generate") or options.get("image_upload"):
                    next(values, None)
        assert not list(values), f"{node['type']} has fewer widgets than it was saved with"
        linked = {socket["name"]: sources[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return prompt


def bare(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt without the titles of its nodes."""
    return {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in prompt.items()}


def defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """What the editor puts into a new node's optional widgets, by the node's part of /object_info."""
    given = {name: (kind, options) for name, kind, options in _inputs(node) if name in node["input"].get("optional", {})}
    return {name: _first(kind, options) for name, (kind, options) in given.items() if kind in WIDGETS}


def _first(kind: str, options: Mapping[str, Any]) -> Any:
    return options["default"] if "default" in options or kind != "COMBO" else options["options"][0]


def _inputs(node: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for group in ("required", "optional"):
        for name, (kind, *more) in node["input"].get(group, {}).items():
            yield name, "COMBO" if isinstance(kind, list) else kind, more[0] if more else {}
