"""Render settings out of a workflow that ComfyUI kept in a file: what our nodes in it were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dit_accel.comfyui.pipeline_nodes import guidance, head_set, sparse
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import read_card
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import ModelShape

Nodes = Mapping[str, Mapping[str, Any]]

RENDERING = ("DitAccelRender", "DitAccelCompare")
SOURCES = {"DitAccelSparse": sparse, "DitAccelGuidance": guidance, "DitAccelHeadSet": head_set}


def settings_of(nodes: Nodes) -> dict[str, Any]:
    """The settings of the one render in a workflow, as `RenderSettings.from_dict` reads them.

    Args:
        nodes: ComfyUI's ``prompt``: nodes with ``class_type`` and ``inputs``, by id.

    Raises:
        InvalidSettings: if there is not exactly one, or an input comes from a node that is not ours.
    """
    found = [name for name, node in nodes.items() if node.get("class_type") in RENDERING]
    if len(found) != 1:
        raise InvalidSettings(
            f"the workflow in the file has {len(found)} renders of ours: one is needed"
        )
    given = inputs_of(nodes, found[0])
    loaded = given.pop("pipeline")
    attention, guided = given.pop("attention", None), given.pop("guidance", None)
    given["negative_prompt"] = given["negative_prompt"] or None
    settings = {**given, **{name: loaded[name] for name in ("model", "device", "dtype", "offload")}}
    if attention is not None:
        settings |= attention.as_settings()
    if guided is not None:
        card = read_card(loaded["model"])
        shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
        settings["heads"] = guided.heads_of(shape).to_dict()
    return dataclasses.asdict(RenderSettings.from_dict(settings))


def inputs_of(nodes: Nodes, name: str) -> dict[str, Any]:
    """What a node was given, links followed to our other nodes."""
    return {key: value_of(nodes, name, key, v) for key, v in nodes[name]["inputs"].items()}


def value_of(nodes: Nodes, name: str, key: str, value: Any) -> Any:
    """A value, or what the node that a link leads to would give."""
    if not (isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes):
        return value
    source = str(value[0])
    kind = nodes[source].get("class_type")
    inputs = inputs_of(nodes, source) if kind in (*SOURCES, "DitAccelLoad") else {}
    if kind == "DitAccelLoad":
        return inputs
    if kind not in SOURCES:
        raise InvalidSettings(
            f"{key} of {nodes[name]['class_type']} comes from {kind}, which only ComfyUI can run"
        )
    return SOURCES[kind](**inputs)[0]  # type: ignore[operator]
