"""A folder in ComfyUI's ``custom_nodes`` that leads to this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dit_accel.comfyui.workflows import EXAMPLES, as_page
from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write, check_writable

NAME, WORKFLOWS = "dit_accel", "example_workflows"
SHIM = '''"""DiT-Accel: the nodes live in the installed package dit_accel."""
from dit_accel.comfyui import *  # noqa: F403
from dit_accel.comfyui import __all__  # noqa: F401
'''


def install(comfyui: Path) -> Path:
    """Write the shim and the example workflows; a second time changes nothing.

    Raises:
        InvalidSettings: if the folder is no ComfyUI, or holds something else under that name.
    """
    folder = _folder(comfyui)
    if folder.exists() and not _ours(folder):
        raise InvalidSettings(f"{folder} is not ours: move it away first")
    check_writable(folder / "__init__.py")
    with atomic_write(folder / "__init__.py") as temporary:
        temporary.write_text(SHIM)
    for name, steps in EXAMPLES.items():
        with atomic_write(folder / WORKFLOWS / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(as_page(steps), indent=1) + "\n")
    return folder


def uninstall(comfyui: Path) -> Path | None:
    """Remove the shim; None if there is none.

    Raises:
        InvalidSettings: if the folder is no ComfyUI, or what is there is not the shim.
    """
    folder = _folder(comfyui)
    if not folder.exists():
        return None
    if not _ours(folder):
        raise InvalidSettings(f"{folder} is not ours: remove it by hand")
    shutil.rmtree(folder)
    return folder


def _folder(comfyui: Path) -> Path:
    nodes = comfyui / "custom_nodes"
    if not nodes.is_dir():
        raise InvalidSettings(f"{comfyui} has no custom_nodes: give ComfyUI's folder")
    return nodes / NAME


def _ours(folder: Path) -> bool:
    """Whether a folder holds the shim and the examples and nothing else, but for Python's cache."""
    if folder.is_symlink() or not (folder / "__init__.py").is_file():
        return False
    known = {"__init__.py", "__pycache__", WORKFLOWS}
    known |= {f"{WORKFLOWS}/{name}.json" for name in EXAMPLES}
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*")]
    rest = [name for name in found if name not in known and not name.startswith("__pycache__/")]
    return not rest and "dit_accel.comfyui" in (folder / "__init__.py").read_text()
