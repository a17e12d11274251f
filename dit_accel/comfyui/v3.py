"""Declared nodes as classes of ComfyUI's third node interface. Only imported inside a ComfyUI that has it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from dit_accel.comfyui.node import Input, Node

WIDGETS = {
    "int": io.Int,
    "float": io.Float,
    "string": io.String,
    "boolean": io.Boolean,
    "combo": io.Combo,
}


def node_class(node: Node) -> type[io.ComfyNode]:
    """The class that ComfyUI registers."""

    def define_schema(cls: type) -> io.Schema:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=node.category,
            description=node.description,
            inputs=[_input(given) for given in node.inputs],
            outputs=[io.Custom(o.type).Output(display_name=o.name) for o in node.outputs],
        )

    def execute(cls: type, /, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(*node.run(**inputs))

    def fingerprint_inputs(cls: type, /, **inputs: Any) -> list[Any]:
        return node.fingerprint(inputs)

    members: dict[str, Any] = {
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    if node.files:
        members["fingerprint_inputs"] = classmethod(fingerprint_inputs)
    return type(node.id, (io.ComfyNode,), {**members, "__doc__": node.description})


def extension(nodes: list[Node]) -> ComfyExtension:
    """All nodes as ComfyUI asks for them."""
    classes = [node_class(node) for node in nodes]

    class DitAccel(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return classes

    return DitAccel()


def _input(given: Input) -> Any:
    """An input of the schema."""
    if given.kind == "socket":
        return io.Custom(given.type).Input(
            given.name, optional=given.optional, tooltip=given.tooltip
        )
    more = {
        "default": given.default,
        "min": given.low,
        "max": given.high,
        "step": given.step,
        "options": list(given.options) or None,
        "multiline": given.multiline or None,
    }
    options = {name: value for name, value in more.items() if value is not None}
    return WIDGETS[given.kind].Input(given.name, tooltip=given.tooltip, **options)
