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

# Packages whose name on the package index differs from the name of their module.
DISTRIBUTIONS = {"imageio_ffmpeg": "imageio-ffmpeg", "sklearn": "scikit-learn"}


def require_extra(user: str, *modules: str, extra: str = "eval") -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        user: What needs the packages, such as ``"`dit-accel tune`"`` or ``"writing an mp4 file"``.
        modules: Names of top-level modules.
        extra: The extra of dit_accel that brings the packages.

    Raises:
        RunFailed: If packages are missing, with the command that installs them.

    Example:
        >>> require_extra("writing an mp4 file", "imageio_ffmpeg", extra="video")
    """
    missing = [DISTRIBUTIONS.get(name, name) for name in modules if not _is_installed(name)]
    if missing:
        raise RunFailed(f"{user} needs {', '.join(missing)}: pip install 'dit_accel[{extra}]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a loaded module without a spec
        return True


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
