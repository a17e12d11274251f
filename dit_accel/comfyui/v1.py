"""Declared nodes as classes of ComfyUI's first node interface, which every version reads."""

from __future__ import annotations

from typing import Any

from dit_accel.comfyui.node import Input, Node

TYPES = {"int": "INT", "float": "FLOAT", "string": "STRING", "boolean": "BOOLEAN"}


def node_class(node: Node) -> type:
    """The class that ComfyUI registers."""

    def input_types(cls: type) -> dict[str, Any]:
        groups: dict[str, Any] = {"required": {}, "optional": {}}
        for given in node.inputs:
            groups["optional" if given.optional else "required"][given.name] = _told(given)
        return groups

    def execute(self: Any, **inputs: Any) -> tuple[Any, ...]:
        return node.run(**inputs)

    def is_changed(cls: type, /, **inputs: Any) -> list[Any]:
        return node.fingerprint(inputs)

    members: dict[str, Any] = {"IS_CHANGED": classmethod(is_changed)} if node.files else {}
    return type(
        node.id,
        (),
        {
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": tuple(output.type for output in node.outputs),
            "RETURN_NAMES": tuple(output.name for output in node.outputs),
            "FUNCTION": "execute",
            "CATEGORY": node.category,
            "DESCRIPTION": node.description,
            "execute": execute,
            **members,
            "__doc__": node.description,
        },
    )


def _told(given: Input) -> tuple[Any, dict[str, Any]]:
    """Type and options of an input."""
    more = {
        "default": given.default,
        "min": given.low,
        "max": given.high,
        "step": given.step,
        "multiline": given.multiline or None,
        "tooltip": given.tooltip,
    }
    options = {name: value for name, value in more.items() if value is not None}
    if given.kind == "combo":
        return list(given.options), options
    return given.type if given.kind == "socket" else TYPES[given.kind], options
