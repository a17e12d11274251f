"""Find the family of a transformer: declared in dit_accel_pipelines, or recognized by its attention."""

from __future__ import annotations

from torch import nn

import dit_accel_pipelines
from dit_accel.errors import DitAccelError
from dit_accel.hooks.install import is_patchable
from dit_accel_pipelines import REFUSED, Family, register_family


class UnknownFamily(DitAccelError, dit_accel_pipelines.UnknownFamily):
    """A transformer that no declared family has, and whose self-attention was not recognized."""


def find_family(transformer: nn.Module, *, linear: bool = False) -> Family:
    """Return the family of a transformer, declared or recognized.

    Args:
        transformer: The transformer.
        linear: Also find families with linear attention, which only guidance supports.

    Raises:
        UnknownFamily: if the transformer is refused, or if no self-attention is found in it.
    """
    try:
        return dit_accel_pipelines.find_family(transformer, linear=linear)
    except dit_accel_pipelines.UnknownFamily:
        name = type(transformer).__name__
        family = None
        if name not in REFUSED:
            family = dit_accel_pipelines.generic_family(transformer, is_patchable)
        if family is None:
            raise UnknownFamily(name) from None
        return family


__all__ = ["Family", "UnknownFamily", "find_family", "register_family"]
