"""The help pages that ComfyUI shows for a node, made from its declaration and from the methods' own docs.

``python -m dit_accel.comfyui.help_pages`` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dit_accel.comfyui import WEB_DIRECTORY
from dit_accel.comfyui.node_declaration import Input, Node
from dit_accel.core.knob_docs import SHARED, describe
from dit_accel.core.schedule import Guard, Schedule
from dit_accel.methods import METHODS

PAGES = Path(WEB_DIRECTORY, "docs")
"""Folder in which ComfyUI looks for ``NODE.md``."""


def format_page(node: Node) -> str:
    """Return the help page of a node in Markdown."""
    lines = [f"# {node.title}", "", node.description, "", "## Inputs", ""]
    lines += format_inputs(node.inputs)
    lines += ["", "## Outputs", "", *(f"- **{o.name}** ({o.type})" for o in node.outputs)]
    if any(declared.name == "method" for declared in node.inputs):
        lines += ["", "## Methods and their knobs"]
        shared = zip(SHARED, (Schedule, Guard), strict=True)
        for name, kind in (*METHODS.items(), *shared):
            lines += ["", *format_knobs(name, kind)]
    return "\n".join(lines) + "\n"


def format_inputs(inputs: Iterable[Input]) -> list[str]:
    """Return one line for each input."""
    return [
        f"- **{declared.name}** ({_format_kind(declared)}): {declared.tooltip}"
        for declared in inputs
    ]


def _format_kind(declared: Input) -> str:
    words = [declared.type or ("choice" if declared.options else declared.kind)]
    if declared.kind != "socket" and declared.default != "":
        words.append(f"default {declared.default}")
    if declared.optional:
        words.append("optional")
    return ", ".join(words)


def format_knobs(name: str, kind: type) -> list[str]:
    """Return what a method does, and one line for each of its knobs."""
    described = describe(kind, name)
    source = "" if described["source"] == "-" else f" Source: {described['source']}."
    lines = [f"### {name}", "", described["about"] + source]
    knobs = [
        f"- **{knob['name']}** ({knob['type']}, default {knob['default']}): {knob['about']}"
        for knob in described["knobs"]
    ]
    return [*lines, "", *knobs] if knobs else lines


def write_pages(nodes: Iterable[Node]) -> None:
    """Write the help pages of nodes."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for node in nodes:
        (PAGES / f"{node.id}.md").write_text(format_page(node))


if __name__ == "__main__":
    from dit_accel.comfyui.registry import NODES

    write_pages(NODES)
