"""Node classes of ComfyUI's V3 interface, made from node declarations. Only ComfyUI can import this module."""

from __future__ import annotations

from inspect import Parameter, Signature, signature
from typing import Any

from comfy_api.latest import ComfyExtension, io

from dit_accel.comfyui.node_declaration import Input, Node
from dit_accel.comfyui.node_text import show_text

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
            **_keep_known(io.Schema, search_aliases=list(node.aliases)),
        )

    def execute(cls: Any, /, **inputs: Any) -> io.NodeOutput:
        outputs = node.run(**inputs)
        if node.shows is not None:
            show_text(outputs[node.shows])
        return io.NodeOutput(*outputs)

    def validate_inputs(cls: Any, /, **inputs: Any) -> bool | str:
        checked = {name: inputs.get(name) for name in node.checked_inputs}
        return node.find_error(checked) or True

    def fingerprint_inputs(cls: Any, /, **inputs: Any) -> list[int | None]:
        return node.fingerprint(inputs)

    members: dict[str, Any] = {
        "__doc__": node.description,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    if node.check is not None:
        # ComfyUI reads the names from the signature, and checks the range of all other inputs itself. It gives the
        # values of a dynamic choice only to a function that takes all inputs.
        names = ("cls", *node.checked_inputs)
        parameters = [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD, default=None) for n in names]
        if node.is_dynamic:
            parameters.append(Parameter("others", Parameter.VAR_KEYWORD))
        validate_inputs.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        members["validate_inputs"] = classmethod(validate_inputs)
    if node.files:
        members["fingerprint_inputs"] = classmethod(fingerprint_inputs)
    return type(node.id, (io.ComfyNode,), members)


def build_extension(nodes: list[Node]) -> ComfyExtension:
    """Return the extension object that ComfyUI asks a node pack for.

    Old versions of ComfyUI have no dynamic inputs, so they lack the nodes with some.
    """
    has_dynamic = hasattr(io, "DynamicCombo")
    classes = [build_class(node) for node in nodes if has_dynamic or not node.is_dynamic]

    class DitAccel(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return classes

    return DitAccel()


def _build_input(declared: Input) -> Any:
    if declared.kind == "socket":
        return io.Custom(declared.type).Input(
            declared.name, optional=declared.optional, tooltip=declared.tooltip
        )
    if declared.kind == "dynamic":
        return io.DynamicCombo.Input(
            declared.name,
            options=[
                io.DynamicCombo.Option(choice, [_build_input(added) for added in inputs])
                for choice, inputs in _default_first(declared).items()
            ],
            tooltip=declared.tooltip,
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
    kind = WIDGETS[declared.kind].Input
    options |= _keep_known(kind, advanced=declared.advanced or None)
    return kind(declared.name, optional=declared.optional, tooltip=declared.tooltip, **options)


def _default_first(declared: Input) -> dict[str, tuple[Input, ...]]:
    """Return the choices of a dynamic combo. The page starts with the first, because there is no default."""
    return {declared.default: declared.choices[declared.default], **declared.choices}


def _keep_known(kind: Any, **options: Any) -> dict[str, Any]:
    """Return the options that this version of ComfyUI knows."""
    known = signature(kind).parameters.values()
    names = {parameter.name for parameter in known}
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known)
    return {name: value for name, value in options.items() if takes_all or name in names}
