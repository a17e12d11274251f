"""Example workflows, made from the nodes' declarations: as ComfyUI's page opens them, and as its API takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dit_accel.comfyui.declaration import Input, Node, Output, choice, number, socket, text
from dit_accel.comfyui.native_nodes import NODES as NATIVE
from dit_accel.comfyui.pipeline_nodes import NODES as AROUND_PIPELINES

PLACES = ([40, 40], [40, 300], [460, 40], [880, 40], [880, 400], [880, 760])
CHOSEN_SEED = "fixed"  # the page adds a widget of its own after a seed


def _none(**_: Any) -> tuple[Any, ...]:
    raise NotImplementedError("one of ComfyUI's own nodes")


def _own(node: str, inputs: Sequence[Input], outputs: Sequence[Output] = ()) -> Node:
    """A node of ComfyUI's own, as far as an example needs it."""
    return Node(node, node, "", "", inputs, outputs, _none)


SAVE = _own(
    "SaveWEBM",
    [
        socket("images", "IMAGE", ""),
        text("filename_prefix", "dit_accel", ""),
        choice("codec", ("vp9", "av1"), "vp9", ""),
        number("fps", 16.0, 0.01, 1000.0, 0.01, ""),
        number("crf", 24.0, 0.0, 63.0, 1.0, ""),
    ],
)
PREVIEW = _own("PreviewImage", [socket("images", "IMAGE", "")])
KNOWN = {node.id: node for node in (*AROUND_PIPELINES, *NATIVE, SAVE, PREVIEW)}


@dataclass(frozen=True)
class Step:
    """A node in a workflow: what differs from its defaults, and which outputs lead into it."""

    node: str
    values: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # input: (step, output)

    @property
    def declared(self) -> Node:
        return KNOWN[self.node]

    def widgets(self) -> dict[str, Any]:
        """Values of all inputs that are no sockets."""
        given = {i.name: i.default for i in self.declared.inputs if i.kind != "socket"}
        return {**given, **self.values}


SIZE = {"width": 128, "height": 128, "frames": 17, "steps": 12, "guidance_scale": 1.0}
PROMPT = {"prompt": "a red circle moving up on a navy background", **SIZE}
RENDER = (
    Step("DitAccelLoad"),
    Step("DitAccelSparse", {"method": "svg-ear", "knobs": "density=0.3\nschedule.min_tokens=0"}),
    Step("DitAccelRender", PROMPT, {"pipeline": (0, 0), "attention": (1, 0)}),
    Step("SaveWEBM", {}, {"images": (2, 0)}),
)
COMPARE = (
    Step("DitAccelLoad"),
    Step("DitAccelSparse", {"method": "re-ttention", "knobs": "schedule.min_tokens=0"}),
    Step("DitAccelCompare", PROMPT, {"pipeline": (0, 0), "attention": (1, 0)}),
    *(Step("PreviewImage", {}, {"images": (2, output)}) for output in range(3)),
)
EXAMPLES: dict[str, Sequence[Step]] = {"tiny_world_render": RENDER, "tiny_world_compare": COMPARE}


def as_prompt(steps: Sequence[Step]) -> dict[str, Any]:
    """What ``POST /prompt`` takes."""
    return {
        str(number): {
            "class_type": step.node,
            "inputs": {
                **step.widgets(),
                **{name: [str(source), output] for name, (source, output) in step.links.items()},
            },
        }
        for number, step in enumerate(steps)
    }


def as_page(steps: Sequence[Step]) -> dict[str, Any]:
    """What ComfyUI's page opens: nodes in columns from left to right."""
    links: list[list[Any]] = []
    nodes = [_page_node(number, step, links) for number, step in enumerate(steps)]
    for link, source, output, *_ in links:
        nodes[source]["outputs"][output]["links"].append(link)
    return {
        "last_node_id": len(steps) - 1,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _page_node(number: int, step: Step, links: list[list[Any]]) -> dict[str, Any]:
    """One node, its incoming links added to ``links``."""
    sockets = []
    for place, given in enumerate(i for i in step.declared.inputs if i.kind == "socket"):
        link = None
        if given.name in step.links:
            link = len(links) + 1
            links.append([link, *step.links[given.name], number, place, given.type])
        sockets.append({"name": given.name, "type": given.type, "link": link})
    values = []
    for name, value in step.widgets().items():
        values += [value, CHOSEN_SEED] if name == "seed" else [value]
    height = 90 + 26 * len(values) + (120 if "prompt" in step.widgets() else 0)
    return {
        "id": number,
        "type": step.node,
        "pos": PLACES[number],
        "size": [360, height],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": o.name, "type": o.type, "links": []} for o in step.declared.outputs],
        "properties": {"Node name for S&R": step.node},
        "widgets_values": values,
    }
