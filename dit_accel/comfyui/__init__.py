"""ComfyUI nodes. Each is declared once and becomes ComfyUI's third interface where there is one, else its
first; outside ComfyUI they are plain classes.
"""

from dit_accel.comfyui import native_nodes, pipeline_nodes, v1

NODES = [*pipeline_nodes.NODES, *native_nodes.NODES]

try:
    from dit_accel.comfyui.v3 import extension
except ImportError:
    NODE_CLASS_MAPPINGS = {node.id: v1.node_class(node) for node in NODES}
    NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.title for node in NODES}
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
else:

    async def comfy_entrypoint():  # type: ignore[no-untyped-def]
        """What ComfyUI asks a pack for."""
        return extension(NODES)

    __all__ = ["comfy_entrypoint"]
