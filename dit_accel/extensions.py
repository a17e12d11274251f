"""Find the commands and the comparison that other packages register, and name missing extras.

A package registers a module or a command in the entry-point groups below.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dit_accel.errors import RunFailed

COMMANDS = "dit_accel.commands"
EXTENSIONS = "dit_accel.extensions"


def require(module: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: the module that is imported from the package.
        extra: the extra of dit_accel that brings it.
        purpose: plural noun phrase for what needs it, such as ``"mp4 files"``.

    Raises:
        RunFailed: if it is missing, with the command that installs it.

    Example:
        >>> require("imageio_ffmpeg", "video", "mp4 files")
    """
    if importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        raise RunFailed(f"{purpose} need {package}: pip install 'dit_accel[{extra}]'")


def command_names() -> list[str]:
    """Return the names of the registered commands."""
    return sorted(entry.name for entry in entry_points(group=COMMANDS))


def load_command(name: str) -> Any:
    """Return a registered click command, or None for an unknown name."""
    entry = _find(COMMANDS, name)
    return None if entry is None else _load(entry)


def load_extension(name: str) -> Any:
    """Return a registered module.

    Raises:
        RunFailed: if nothing is registered under the name, or its import fails.
    """
    entry = _find(EXTENSIONS, name)
    if entry is None:
        raise RunFailed(f"no package provides {name!r}: reinstall dit_accel")
    return _load(entry)


def _find(group: str, name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None)


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as error:
        raise RunFailed(
            f"cannot import {entry.value}: {error}; pip install 'dit_accel[eval]'"
        ) from error
