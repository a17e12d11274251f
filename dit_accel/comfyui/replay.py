"""Render settings from a workflow that ComfyUI stored in a file: the inputs of our nodes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dit_accel.comfyui.pipeline_nodes import load_head_set, make_attention, make_guidance
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import read_card
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import ModelShape

Nodes = Mapping[str, Mapping[str, Any]]
"""ComfyUI's ``prompt``: nodes with ``class_type`` and ``inputs``, by id."""

RENDER_NODES = ("DitAccelRender", "DitAccelCompare")
SETTINGS_NODES: dict[str, Callable[..., tuple[Any]]] = {
    "DitAccelSparse": make_attention,
    "DitAccelGuidance": make_guidance,
    "DitAccelHeadSet": load_head_set,
}


def read_workflow_settings(nodes: Nodes) -> dict[str, Any]:
    """Return the settings of a workflow's only render, in the form that `RenderSettings.from_dict` takes.

    Raises:
        InvalidSettings: If the workflow does not have exactly one render, or if an input comes from a node of another
            pack.
    """
    renders = [name for name, node in nodes.items() if node.get("class_type") in RENDER_NODES]
    if len(renders) != 1:
        raise InvalidSettings(
            f"the workflow in the file has {len(renders)} renders of ours: one is needed"
        )
    inputs = read_inputs(nodes, renders[0])
    loaded = inputs.pop("pipeline")
    attention, guidance = inputs.pop("attention", None), inputs.pop("guidance", None)
    inputs["negative_prompt"] = inputs["negative_prompt"] or None
    settings = {
        **inputs,
        **{name: loaded[name] for name in ("model", "device", "dtype", "offload")},
    }
    if attention is not None:
        settings |= attention.as_settings()
    if guidance is not None:
        card = read_card(loaded["model"])
        shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
        settings["heads"] = guidance.bind(shape).to_dict()
    return dataclasses.asdict(RenderSettings.from_dict(settings))


def read_inputs(nodes: Nodes, name: str) -> dict[str, Any]:
    """Return the inputs of a node, with links to our other nodes resolved."""
    inputs = nodes[name]["inputs"]
    return {key: resolve_input(nodes, name, key, value) for key, value in inputs.items()}


def resolve_input(nodes: Nodes, name: str, key: str, value: Any) -> Any:
    """Return a value, or the output of the node that a link leads to.

    Raises:
        InvalidSettings: If that node belongs to another pack.
    """
    if not (isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes):
        return value
    source = str(value[0])
    kind = nodes[source].get("class_type")
    if kind == "DitAccelLoad":
        return read_inputs(nodes, source)
    if kind not in SETTINGS_NODES:
        raise InvalidSettings(
            f"{key} of {nodes[name]['class_type']} comes from {kind}, which only ComfyUI can run"
        )
    (output,) = SETTINGS_NODES[kind](**read_inputs(nodes, source))
    return output
