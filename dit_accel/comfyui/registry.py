"""All nodes, in the order of the documentation."""

from dit_accel.comfyui import native_nodes, pipeline_nodes

NODES = [*pipeline_nodes.NODES, *native_nodes.NODES]
