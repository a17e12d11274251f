"""Load slow modules when they are first used, so that short commands start fast.

Python has no lazy import statement before 3.15. A stand-in takes the module's place in ``sys.modules``. The
first read of an attribute imports the real module and puts it wherever the stand-in was bound.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """A module that is not loaded yet."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(self), name)


def defer(name: str) -> None:
    """Put off the import of a top-level module until one of its attributes is read.

    A module that is already loaded, or not installed, is left alone.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    stand_in = _StandIn(name)
    stand_in.__spec__ = spec
    sys.modules[name] = stand_in


def _load(stand_in: _StandIn) -> ModuleType:
    name = stand_in.__name__
    if sys.modules.get(name) is stand_in:
        del sys.modules[name]
    module = importlib.import_module(name)
    for user in list(sys.modules.values()):
        bound = getattr(user, "__dict__", {})
        for variable in [key for key, value in list(bound.items()) if value is stand_in]:
            bound[variable] = module
    return module
