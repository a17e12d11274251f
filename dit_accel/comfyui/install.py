"""Installation of the node pack: a folder in ComfyUI's ``custom_nodes`` that imports this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write, check_writable

NAME = "dit_accel"
EXAMPLES = "example_workflows"
"""Name of the subfolder in which ComfyUI looks for a pack's example workflows."""

SHIM = '''"""DiT-Accel: the nodes live in the installed package dit_accel."""
import sys
from pathlib import Path

# With custom_nodes on the path, this folder would hide the package of the same name.
if __name__ == "dit_accel":
    del sys.modules[__name__]
_NODES, _PATH = Path(__file__).resolve().parent.parent, sys.path[:]
sys.path[:] = [folder for folder in _PATH if Path(folder).resolve() != _NODES]
try:
    from dit_accel.comfyui import *  # noqa: F403
    from dit_accel.comfyui import __all__  # noqa: F401
finally:
    sys.path[:] = _PATH
'''


def find_workflows() -> list[Path]:
    """Return the JSON files of the example workflows, as ComfyUI's page opens them."""
    return sorted((Path(__file__).parent / "workflows").glob("*.json"))


def install(comfyui: Path) -> Path:
    """Write the pack's folder and its example workflows. Installing twice changes nothing.

    Args:
        comfyui: Folder of ComfyUI.

    Returns:
        The folder that was written.

    Raises:
        InvalidSettings: If the folder is not ComfyUI's, or if it has other files under the pack's name.
    """
    folder = _find_pack(comfyui)
    if folder.exists() and not _is_ours(folder):
        raise InvalidSettings(f"{folder} is not ours: move it away first")
    check_writable(folder / "__init__.py")
    with atomic_write(folder / "__init__.py") as temporary:
        temporary.write_text(SHIM)
    for workflow in find_workflows():
        with atomic_write(folder / EXAMPLES / workflow.name) as temporary:
            temporary.write_text(workflow.read_text())
    return folder


def uninstall(comfyui: Path) -> Path | None:
    """Remove the pack's folder.

    Args:
        comfyui: Folder of ComfyUI.

    Returns:
        The folder that was removed, or None if the pack was not installed.

    Raises:
        InvalidSettings: If the folder is not ComfyUI's, or if it has other files under the pack's name.
    """
    folder = _find_pack(comfyui)
    if not folder.exists():
        return None
    if not _is_ours(folder):
        raise InvalidSettings(f"{folder} is not ours: remove it by hand")
    shutil.rmtree(folder)
    return folder


def _find_pack(comfyui: Path) -> Path:
    nodes = comfyui / "custom_nodes"
    if not nodes.is_dir():
        raise InvalidSettings(f"{comfyui} has no custom_nodes: give ComfyUI's folder")
    return nodes / NAME


def _is_ours(folder: Path) -> bool:
    """Return True if a folder has only the files that `install` writes, apart from Python's cache."""
    if folder.is_symlink() or not (folder / "__init__.py").is_file():
        return False
    known = {"__init__.py", "__pycache__", EXAMPLES}
    known |= {f"{EXAMPLES}/{workflow.name}" for workflow in find_workflows()}
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    others = [n for n in names if n not in known and not n.startswith("__pycache__/")]
    return not others and "dit_accel.comfyui" in (folder / "__init__.py").read_text()
