"""All nodes, in the order of the page. Those that run pipelines need diffusers, and the others do not."""

from __future__ import annotations

import logging

from dit_accel.comfyui import native_nodes, result_nodes, settings_nodes
from dit_accel.comfyui.node_declaration import Node

log = logging.getLogger("dit_accel")


def find_pipeline_nodes() -> list[Node]:
    """Return the nodes that run pipelines of diffusers, or none and a warning if diffusers is unusable."""
    try:
        from dit_accel.comfyui import pipeline_nodes
    except (ImportError, RuntimeError, AttributeError) as error:
        log.warning(
            "dit_accel: the nodes for diffusers pipelines are missing, because diffusers cannot be imported (%s). "
            'Install them with: pip install "dit_accel[comfyui]"',
            error,
        )
        return []
    return pipeline_nodes.NODES


NODES = [*find_pipeline_nodes(), *settings_nodes.NODES, *native_nodes.NODES, *result_nodes.NODES]
