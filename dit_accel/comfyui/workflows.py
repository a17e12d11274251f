"""Example workflows, made from the nodes' declarations: as ComfyUI's page opens them, and as its API takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dit_accel.comfyui.native_nodes import NODES as NATIVE
from dit_accel.comfyui.node import (
    Input,
    Node,
    Output,
    choice,
    number,
    socket,
    text,
    whole,
)
from dit_accel.comfyui.pipeline_nodes import NODES as AROUND_PIPELINES

COLUMN, MARGIN, GAP = 420, 40, 60  # pixels of the page
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
WAN = (
    _own(
        "UNETLoader",
        [
            choice("unet_name", (), "wan2.1_t2v_1.3B_fp16.safetensors", ""),
            choice("weight_dtype", (), "default", ""),
        ],
        [Output("MODEL", "MODEL")],
    ),
    _own(
        "CLIPLoader",
        [
            choice("clip_name", (), "umt5_xxl_fp8_e4m3fn_scaled.safetensors", ""),
            choice("type", (), "wan", ""),
            choice("device", (), "default", ""),
        ],
        [Output("CLIP", "CLIP")],
    ),
    _own(
        "VAELoader",
        [choice("vae_name", (), "wan_2.1_vae.safetensors", "")],
        [Output("VAE", "VAE")],
    ),
    _own(
        "CLIPTextEncode",
        [socket("clip", "CLIP", ""), text("text", "", "", multiline=True)],
        [Output("CONDITIONING", "CONDITIONING")],
    ),
    _own(
        "EmptyHunyuanLatentVideo",
        [
            whole("width", 832, 16, 16384, "", 16),
            whole("height", 480, 16, 16384, "", 16),
            whole("length", 81, 1, 16384, "", 4),
            whole("batch_size", 1, 1, 4096, ""),
        ],
        [Output("LATENT", "LATENT")],
    ),
    _own(
        "KSampler",
        [
            socket("model", "MODEL", ""),
            socket("positive", "CONDITIONING", ""),
            socket("negative", "CONDITIONING", ""),
            socket("latent_image", "LATENT", ""),
            whole("seed", 0, 0, 2**64 - 1, ""),
            whole("steps", 30, 1, 10000, ""),
            number("cfg", 6.0, 0.0, 100.0, 0.1, ""),
            choice("sampler_name", (), "euler", ""),
            choice("scheduler", (), "simple", ""),
            number("denoise", 1.0, 0.0, 1.0, 0.01, ""),
        ],
        [Output("LATENT", "LATENT")],
    ),
    _own(
        "VAEDecode",
        [socket("samples", "LATENT", ""), socket("vae", "VAE", "")],
        [Output("IMAGE", "IMAGE")],
    ),
)
KNOWN = {node.id: node for node in (*AROUND_PIPELINES, *NATIVE, SAVE, PREVIEW, *WAN)}


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
IN_WAN = (
    Step("UNETLoader"),
    Step("CLIPLoader"),
    Step("VAELoader"),
    Step("DitAccelNativeAttention", {"method": "svg-ear"}, {"model": (0, 0)}),
    Step("DitAccelNativeGuidance", {"scale": 1.0}, {"model": (3, 0)}),
    Step("CLIPTextEncode", {"text": "a cat walks on wet grass at sunrise"}, {"clip": (1, 0)}),
    Step("CLIPTextEncode", {"text": "blurry, static, low quality"}, {"clip": (1, 0)}),
    Step("EmptyHunyuanLatentVideo"),
    Step(
        "KSampler",
        {},
        {"model": (4, 0), "positive": (5, 0), "negative": (6, 0), "latent_image": (7, 0)},
    ),
    Step("VAEDecode", {}, {"samples": (8, 0), "vae": (2, 0)}),
    Step("SaveWEBM", {}, {"images": (9, 0)}),
)
EXAMPLES: dict[str, Sequence[Step]] = {
    "tiny_world_render": RENDER,
    "tiny_world_compare": COMPARE,
    "wan_native_attention": IN_WAN,
}


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
    for node, place in zip(nodes, _places(steps, [node["size"][1] for node in nodes]), strict=True):
        node["pos"] = place
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


def _places(steps: Sequence[Step], heights: Sequence[int]) -> list[list[int]]:
    """Left upper corner of each node: its column is its distance from the sources."""
    columns: list[int] = []
    below: dict[int, int] = {}
    places = []
    for step, height in zip(steps, heights, strict=True):
        column = max((columns[source] + 1 for source, _ in step.links.values()), default=0)
        columns.append(column)
        places.append([MARGIN + COLUMN * column, below.get(column, MARGIN)])
        below[column] = places[-1][1] + height + GAP
    return places


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
        "size": [360, height],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": o.name, "type": o.type, "links": []} for o in step.declared.outputs],
        "properties": {"Node name for S&R": step.node},
        "widgets_values": values,
    }
