"""ComfyUI nodes, declared once and turned into classes of ComfyUI's V3 interface.

Importing this package loads no node, so the command line can install the pack without torch.
"""

from pathlib import Path
from typing import Any

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = str(Path(__file__).parent / "web")
"""Folder with help pages, which ComfyUI reads from a node pack."""


async def comfy_entrypoint() -> Any:
    """Return the extension that ComfyUI asks a node pack for."""
    from dit_accel.comfyui.node_classes import build_extension
    from dit_accel.comfyui.registry import NODES

    return build_extension(NODES)
