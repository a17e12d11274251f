"""The example workflows, and their conversion from the form of ComfyUI's page to the form of its API."""

from __future__ import annotations

import json
from typing import Any

from dit_accel.comfyui.install import find_workflows
from dit_accel.comfyui.registry import NODES

WORKFLOWS = {path.stem: path for path in find_workflows()}
CORE_WIDGETS = {
    "SaveWEBM": ("filename_prefix", "codec", "fps", "crf"),
    "PreviewAny": (),
    "PreviewImage": (),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPLoader": ("clip_name", "type", "device"),
    "VAELoader": ("vae_name",),
    "CLIPTextEncode": ("text",),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
    "KSampler": ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "VAEDecode": (),
}
"""Names of the widgets of ComfyUI's own nodes, in the order of the page."""
WIDGETS = CORE_WIDGETS | {
    node.id: tuple(declared.name for declared in node.inputs if declared.kind != "socket")
    for node in NODES
}


def load_workflow(name: str) -> dict[str, Any]:
    """Return an example workflow in the form of ComfyUI's page."""
    return json.loads(WORKFLOWS[name].read_text())


def read_widgets(node: dict[str, Any]) -> dict[str, Any]:
    """Return the widget values of a node by name."""
    values = list(node["widgets_values"])
    names = WIDGETS[node["type"]]
    if "seed" in names:
        # The page adds a widget after a seed, which tells how the seed changes.
        assert values.pop(names.index("seed") + 1) == "fixed"
    return dict(zip(names, values, strict=True))


def to_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow in the form that ``POST /prompt`` takes."""
    links = {link: [str(source), output] for link, source, output, *_ in workflow["links"]}
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": {
                **read_widgets(node),
                **{s["name"]: links[s["link"]] for s in node["inputs"] if s["link"] is not None},
            },
        }
        for node in workflow["nodes"]
    }
