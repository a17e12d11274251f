"""Tiny random transformers of all families, without those that the installed diffusers lacks.

A module has the name of the family's module in dit_accel_pipelines.
"""

import importlib
import pkgutil

from support.tiny_transformers.base import TinyTransformer, absent

MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
]
ROWS: list[TinyTransformer] = [
    row for module in MODULES for row in getattr(module, "ROWS", []) if row.build is not absent
]
