"""Texts on nodes of ComfyUI's page. Outside ComfyUI they are not shown."""

from __future__ import annotations


def find_node() -> str | None:
    """Return the id of the node that ComfyUI runs now, or None outside ComfyUI."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return None if context is None else str(context.node_id)


def show_text(text: str, node: str | None = None) -> None:
    """Show a text on a node of ComfyUI's page.

    Args:
        text: Some lines.
        node: Id of the node. None means the node that runs now.
    """
    node = node or find_node()
    if node is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node)
