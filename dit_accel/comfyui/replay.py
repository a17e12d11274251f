"""Render settings from a workflow that ComfyUI stored in a file: the inputs of our nodes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dit_accel.comfyui import pipeline_nodes, settings_nodes
from dit_accel.comfyui.node_declaration import Input, Node
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import read_card
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import ModelShape

Nodes = Mapping[str, Mapping[str, Any]]
"""ComfyUI's ``prompt``: nodes with ``class_type`` and ``inputs``, by id."""

RENDER_NODES = ("DitAccelRender", "DitAccelCompare")
SETTINGS_NODES = tuple(node.id for node in settings_nodes.NODES)
DECLARED = {node.id: node for node in (*pipeline_nodes.NODES, *settings_nodes.NODES)}
TYPES = {
    "int": int,
    "float": int | float,
    "string": str,
    "combo": str,
    "boolean": bool,
    "dynamic": dict,
}


def read_workflow_settings(nodes: Nodes) -> dict[str, Any]:
    """Return the settings of a workflow's only render, in the form that `RenderSettings.from_dict` takes.

    Raises:
        InvalidSettings: If the workflow does not have exactly one render, if an input is missing, unknown or of another
            type, or if it comes from a node of another pack.
    """
    check_nodes(nodes)
    renders = [name for name, node in nodes.items() if node["class_type"] in RENDER_NODES]
    if len(renders) != 1:
        raise InvalidSettings(
            f"the workflow in the file has {len(renders)} renders of ours: one is needed"
        )
    try:
        inputs = read_inputs(nodes, renders[0])
    except RecursionError:
        raise InvalidSettings(
            "the workflow in the file has nodes that lead to themselves"
        ) from None
    loaded = inputs.pop("pipeline")
    placement = pipeline_nodes.choose_placement(
        *(loaded[n] for n in ("device", "dtype", "offload"))
    )
    attention, guidance = inputs.pop("attention", None), inputs.pop("guidance", None)
    inputs["negative_prompt"] = inputs["negative_prompt"] or None
    settings = {
        **inputs,
        "model": loaded["model"],
        **{name: getattr(placement, name) for name in ("device", "dtype", "offload")},
    }
    if attention is not None:
        settings |= attention.as_settings()
    if guidance is not None:
        card = read_card(loaded["model"])
        shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
        settings["heads"] = guidance.bind(shape).to_dict()
    return dataclasses.asdict(RenderSettings.from_dict(settings))


def check_nodes(nodes: Any) -> None:
    """Check that a value has the form of ComfyUI's ``prompt``.

    Raises:
        InvalidSettings: If it has not.
    """
    if not isinstance(nodes, dict) or not all(map(is_node, nodes.values())):
        raise InvalidSettings("the workflow in the file is not one that ComfyUI saves")


def is_node(value: Any) -> bool:
    """Return True if a value has the form of a node in ComfyUI's ``prompt``."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_type"), str)
        and isinstance(value.get("inputs"), dict)
    )


def read_inputs(nodes: Nodes, name: str) -> dict[str, Any]:
    """Return the inputs of a node, with links to our other nodes resolved.

    Raises:
        InvalidSettings: If they are not those that the node declares.
    """
    node = DECLARED[nodes[name]["class_type"]]
    inputs = nodes[name]["inputs"]
    values = {key: resolve_input(nodes, name, key, value) for key, value in inputs.items()}
    values = nest_choices(node, values)
    check_inputs(node, values)
    return values


def nest_choices(node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs in which a dynamic choice holds the inputs that it adds, stored as ``CHOICE.INPUT``."""
    nested = dict(values)
    for declared in node.inputs:
        if declared.kind == "dynamic" and declared.name in nested:
            prefix = f"{declared.name}."
            added = {key: nested.pop(key) for key in values if key.startswith(prefix)}
            choice = {declared.name: nested[declared.name]}
            nested[declared.name] = choice | {
                key.removeprefix(prefix): value for key, value in added.items()
            }
    return nested


def check_inputs(node: Node, values: Mapping[str, Any]) -> None:
    """Check the inputs of a node against its declaration.

    Raises:
        InvalidSettings: Naming the input.
    """
    unknown = values.keys() - {declared.name for declared in node.inputs}
    if unknown:
        raise InvalidSettings(f"{node.id} in the workflow has an unknown input {min(unknown)!r}")
    for declared in node.inputs:
        if declared.name in values:
            check_type(node, declared, values[declared.name])
        elif not declared.optional:
            raise InvalidSettings(f"{node.id} in the workflow has no {declared.name}: add it")


def check_type(node: Node, declared: Input, value: Any) -> None:
    """Check the type of a widget's value.

    Raises:
        InvalidSettings: Naming the input.
    """
    if declared.kind != "socket" and not isinstance(value, TYPES[declared.kind]):
        raise InvalidSettings(
            f"{declared.name} of {node.id} in the workflow must be of type {declared.kind}, got {value!r}"
        )


def resolve_input(nodes: Nodes, name: str, key: str, value: Any) -> Any:
    """Return a value, or the output of the node that a link leads to.

    Raises:
        InvalidSettings: If that node belongs to another pack, or if an input needs a link and has none.
    """
    kinds = {i.name: i.type for i in DECLARED[nodes[name]["class_type"]].inputs}
    if not (isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes):
        if kinds.get(key):
            raise InvalidSettings(
                f"{key} of {nodes[name]['class_type']} in the workflow needs a link to a node"
            )
        return value
    source = str(value[0])
    kind = nodes[source]["class_type"]
    made = [output.type for output in DECLARED[kind].outputs] if kind in DECLARED else []
    if kind not in SETTINGS_NODES and kind != "DitAccelLoad":
        raise InvalidSettings(
            f"{key} of {nodes[name]['class_type']} comes from {kind}, which only ComfyUI can run"
        )
    if kinds.get(key) not in made:
        raise InvalidSettings(
            f"{key} of {nodes[name]['class_type']} in the workflow cannot come from {kind}"
        )
    if kind == "DitAccelLoad":
        return read_inputs(nodes, source)
    return DECLARED[kind].run(**read_inputs(nodes, source))[int(value[1])]
