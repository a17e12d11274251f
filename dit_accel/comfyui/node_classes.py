"""Node classes of ComfyUI's V3 interface, made from node declarations. Only ComfyUI can import this module."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from dit_accel.comfyui.node_declaration import Input, Node

WIDGETS = {
    "int": io.Int,
    "float": io.Float,
    "string": io.String,
    "boolean": io.Boolean,
    "combo": io.Combo,
}


def build_class(node: Node) -> type[io.ComfyNode]:
    """Return the class that ComfyUI registers for a node."""

    def define_schema(cls: Any, /) -> io.Schema:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=node.category,
            description=node.description,
            inputs=[_build_input(declared) for declared in node.inputs],
            outputs=[io.Custom(o.type).Output(display_name=o.name) for o in node.outputs],
        )

    def execute(cls: Any, /, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(*node.run(**inputs))

    def fingerprint_inputs(cls: Any, /, **inputs: Any) -> list[int | None]:
        return node.fingerprint(inputs)

    members: dict[str, Any] = {
        "__doc__": node.description,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    if node.files:
        members["fingerprint_inputs"] = classmethod(fingerprint_inputs)
    return type(node.id, (io.ComfyNode,), members)


def build_extension(nodes: list[Node]) -> ComfyExtension:
    """Return the extension object that ComfyUI asks a node pack for."""
    classes = [build_class(node) for node in nodes]

    class DitAccel(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return classes

    return DitAccel()


def _build_input(declared: Input) -> Any:
    if declared.kind == "socket":
        return io.Custom(declared.type).Input(
            declared.name, optional=declared.optional, tooltip=declared.tooltip
        )
    values = {
        "default": declared.default,
        "min": declared.low,
        "max": declared.high,
        "step": declared.step,
        "options": list(declared.options) or None,
        "multiline": declared.multiline or None,
    }
    options = {name: value for name, value in values.items() if value is not None}
    return WIDGETS[declared.kind].Input(declared.name, tooltip=declared.tooltip, **options)
