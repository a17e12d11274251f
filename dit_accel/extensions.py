"""Find what other packages add to this one: commands and comparison metrics.

A package registers a module or a command in the entry-point groups below; nothing here names it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dit_accel.errors import RunFailed

COMMANDS = "dit_accel.commands"
EXTENSIONS = "dit_accel.extensions"


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
        RunFailed: if nothing is registered under the name, or it cannot be imported.
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
        raise RunFailed(f"cannot import {entry.value}: {error}; reinstall dit_accel") from error
