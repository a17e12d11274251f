"""ComfyUI nodes. They run without ComfyUI, too: plain classes with the attributes that it reads."""

from dit_accel.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
