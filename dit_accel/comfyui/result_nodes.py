"""Nodes that show results: the report of a model's last run, and the difference of two clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_accel.comfyui.native_nodes import REPORTS
from dit_accel.comfyui.node_declaration import Node, Output, socket_input
from dit_accel.comfyui.settings_nodes import CATEGORY
from dit_accel.errors import InvalidSettings


def report(model: Any, after: Any) -> tuple[str]:
    """Return what our nodes did in a model's last run.

    Args:
        model: ComfyUI's model after our nodes.
        after: Output of the sampler. It only makes this node run later.

    Raises:
        InvalidSettings: If no node of ours changed the model.
    """
    reports = model.get_attachment(REPORTS)
    if not reports:
        raise InvalidSettings("no node of DiT-Accel changed this model: connect its output")
    return ("\n".join(describe() for describe in reports),)


def compare_images(first: Tensor, second: Tensor) -> tuple[Tensor, str]:
    """Return four times the difference of two clips, and their PSNR.

    Args:
        first, second: ComfyUI's IMAGE, ``[T, H, W, C]`` in [0, 1].

    Raises:
        InvalidSettings: If their shapes differ.
    """
    if first.shape != second.shape:
        raise InvalidSettings(
            f"the clips have different shapes, {tuple(first.shape)} and {tuple(second.shape)}: "
            "make both of one size and one number of frames"
        )
    difference = (second.float() - first.float()).abs()
    error = difference.square().mean((1, 2, 3))
    if not error.any():
        return difference, "The clips are equal."
    # An equal frame in a clip with other frames counts as 100 dB.
    decibels = (-10 * torch.log10(error)).clamp(max=100.0)
    worst = int(decibels.argmin())
    figures = (
        f"PSNR {float(decibels.mean()):.2f} dB, worst frame {worst} with {float(decibels[worst]):.2f} dB\n"
        f"mean difference {float(difference.mean()):.4f}, largest {float(difference.max()):.4f}"
    )
    return (4 * difference).clamp(0, 1), figures


NODES = [
    Node(
        "DitAccelReport",
        "Report of MODEL (DiT-Accel)",
        CATEGORY,
        "Tell what our nodes did in a model's last run: sparse calls, and why others stayed dense.",
        [
            socket_input("model", "MODEL", "The model after our nodes, as the sampler gets it."),
            socket_input("after", "*", "The sampler's output, so that the report comes after it."),
        ],
        [Output("STRING", "report")],
        report,
        aliases=("sparse attention report", "density", "statistics"),
        shows=0,
    ),
    Node(
        "DitAccelCompareImages",
        "Compare two clips",
        CATEGORY,
        "Measure how far two clips or images are apart, such as a dense and a sparse one.",
        [
            socket_input("first", "IMAGE", "The clip to compare with, such as the dense one."),
            socket_input("second", "IMAGE", "The other clip, of the same shape."),
        ],
        [Output("IMAGE", "difference"), Output("STRING", "figures")],
        compare_images,
        aliases=("psnr", "difference", "image quality", "dense and sparse"),
        shows=1,
    ),
]
