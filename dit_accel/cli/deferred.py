"""Defer the import of slow modules until they are used, because short commands must start fast.

Python has no lazy import statement before 3.15. A stand-in takes the module's place in ``sys.modules``. Reading
one of its attributes, or importing a submodule, loads the real module, which then replaces the stand-in in every
module that imported it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """A module that is not loaded yet."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(self), name)


class _SubmoduleFinder(MetaPathFinder):
    """Finds a submodule of a deferred module by loading the module first.

    Without it, a first ``import torch.nn`` would load torch, which runs torch.nn, and then run torch.nn again.
    """

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._stand_in.__name__ or path is None:
            return None
        _load(self._stand_in)
        submodule = importlib.import_module(fullname)
        # Python would run the submodule again if it found it here; it puts the result of `_Loaded` back.
        del sys.modules[fullname]
        return ModuleSpec(fullname, _Loaded(submodule))


class _Loaded(Loader):
    """Returns a module that is already loaded, unchanged."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def defer(name: str) -> None:
    """Defer the import of a top-level module until an attribute or a submodule of it is used.

    A module that is loaded already, or is not installed, stays as it is.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    stand_in = _StandIn(name)
    stand_in.__spec__ = spec
    # Importing a submodule reads the path first, and only `_SubmoduleFinder` may load the module then.
    stand_in.__path__ = []
    sys.modules[name] = stand_in
    sys.meta_path.insert(0, _SubmoduleFinder(stand_in))


def _load(stand_in: _StandIn) -> ModuleType:
    """Return the real module; on the first call, import it and replace the stand-in wherever it was imported."""
    name = stand_in.__name__
    if sys.modules.get(name) is not stand_in:
        return importlib.import_module(name)
    del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "_stand_in", None) is not stand_in]
    module = importlib.import_module(name)
    for importer in list(sys.modules.values()):
        bound = getattr(importer, "__dict__", {})
        for variable in [key for key, value in list(bound.items()) if value is stand_in]:
            bound[variable] = module
    return module
