"""Register model families, and find the family of a transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_accel_pipelines.family import Family

if TYPE_CHECKING:
    from torch import nn

LINEAR_ATTENTION = "its self-attention is linear, so there is no attention map to make sparse"
REFUSED = {
    "SanaTransformer2DModel": f"{LINEAR_ATTENTION} or to quantize; perturbed guidance works",
    "SanaVideoTransformer3DModel": LINEAR_ATTENTION,
}
"""Transformers that cannot be made sparse, by class name, with the reason."""

_REGISTRY: dict[str, Family] = {}


class UnknownFamily(LookupError):
    """Error for a transformer that no registered family declares."""

    def __init__(self, name: str) -> None:
        if name in REFUSED:
            super().__init__(f"{name} is not supported: {REFUSED[name]}")
            return
        known = ", ".join(t for family in families() for t in family.transformers)
        super().__init__(
            f"no family declares {name}: declare one with register_family, or use one of {known}"
        )


def register_family(family: Family) -> None:
    """Add a family to the registry; it replaces a family of the same name."""
    _REGISTRY[family.name] = family


def families(*, linear: bool = False) -> tuple[Family, ...]:
    """Return all registered families, in the order of registration; with linear attention only if ``linear``."""
    return tuple(family for family in _REGISTRY.values() if linear or not family.linear)


def find_family(transformer: nn.Module | str, *, linear: bool = False) -> Family:
    """Return the family of a transformer, given as a module or as a class name.

    A module also belongs to the families of its base classes.

    Args:
        transformer: The transformer.
        linear: Also find families with linear attention, which only guidance supports.

    Raises:
        UnknownFamily: if no family declares it.
    """
    if isinstance(transformer, str):
        names = [transformer]
    else:
        names = [c.__name__ for c in type(transformer).__mro__]
    for name in names:
        for family in families(linear=linear):
            if name in family.transformers:
                return family
    raise UnknownFamily(names[0])
