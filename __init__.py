"""ComfyUI's entry into a clone of this repository in ``custom_nodes``."""

import sys
from pathlib import Path

# The folders hold one package each. A clone comes before an installed copy, so that its nodes are its own.
_ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(_ROOT / name) for name in ("", "kernels", "pipelines", "assets", "eval")]

# With custom_nodes on the path, this file hides the package of the same name.
if __name__ == "dit_accel":
    del sys.modules[__name__]

from dit_accel.comfyui import WEB_DIRECTORY, comfy_entrypoint  # noqa: E402

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
