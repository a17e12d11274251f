"""Which levers tuning tries: those that were named, or all that the model and the device can use."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dit_accel.core.levers import CACHES as CACHE_CLASSES
from dit_accel.errors import InvalidSettings
from dit_accel.generation.lever_checks import check_levers
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings
from dit_accel.hooks.step_cache import check_cache_kind
from dit_accel_eval.tune.ladders import CACHES, LEVERS

# Kinds of linear layers by device; diffusers' fp8 storage saves no time.
LINEARS = {"cpu": ("int8-dynamic", "int8-weights"), "cuda": ("int8-dynamic", "fp8-dynamic")}


@dataclass(frozen=True)
class Usable:
    """Levers besides attention that a search may try.

    Attributes:
        caches: Kinds of step caches.
        linears: Kinds of linear layers.
        compiles: True if blocks can be compiled.
    """

    caches: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    compiles: bool = False


def usable_levers(names: Sequence[str] | None, base: RenderSettings, card: ModelCard) -> Usable:
    """Return what a model and a device can use.

    Args:
        names: Names among `LEVERS`; None takes all that can be used.
        base: Request of all clips.
        card: Card of the model.

    Raises:
        InvalidSettings: if a lever that was named cannot be used, with the reason.
    """
    chosen: dict[str, Any] = {}
    finders: dict[str, Callable[[RenderSettings, ModelCard], Any]] = {
        "cache": _caches,
        "linears": _linears,
        "compile": _compiles,
    }
    for name in LEVERS if names is None else names:
        if name not in finders:
            continue
        try:
            chosen[name] = finders[name](base, card)
        except InvalidSettings:
            if names is not None:
                raise
    caches, linears = tuple(chosen.get("cache", ())), tuple(chosen.get("linears", ()))
    return Usable(caches, linears, bool(chosen.get("compile")))


def _caches(base: RenderSettings, card: ModelCard) -> list[str]:
    return _without_refused(CACHES, lambda kind: _check_cache(kind, card))


def _check_cache(kind: str, card: ModelCard) -> None:
    import diffusers

    model = getattr(diffusers, card.transformer_class)
    check_cache_kind(model, CACHE_CLASSES[kind](), card.family)


def _linears(base: RenderSettings, card: ModelCard) -> list[str]:
    kinds = LINEARS["cpu" if base.device == "cpu" else "cuda"]
    sections = {kind: {"linears": {"kind": kind}} for kind in kinds}
    return _without_refused(kinds, lambda k: check_levers(replace(base, levers=sections[k]), card))


def _compiles(base: RenderSettings, card: ModelCard) -> bool:
    check_levers(replace(base, levers={"compile": {}}), card)
    if base.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise InvalidSettings("compile needs a C++ compiler on a CPU: install g++, or leave it out")
    if base.device != "cpu" and importlib.util.find_spec("triton") is None:
        raise InvalidSettings("compile needs triton on a GPU: install it, or leave compile out")
    return True


def _without_refused(names: Sequence[str], check: Callable[[str], None]) -> list[str]:
    """Return the names that pass a check.

    Raises:
        InvalidSettings: the reason of the first name, if none passes.
    """
    reasons: list[InvalidSettings] = []

    def passing() -> Iterator[str]:
        for name in names:
            try:
                check(name)
            except InvalidSettings as error:
                reasons.append(error)
            else:
                yield name

    passed = list(passing())
    if not passed:
        raise reasons[0]
    return passed
