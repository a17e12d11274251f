"""Which levers tuning tries: those that were named, or all that the model and the device can use."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dit_accel.core.caches import CACHES as CACHE_CLASSES
from dit_accel.errors import InvalidSettings
from dit_accel.generation.lever_checks import check_levers
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings
from dit_accel.hooks.step_cache import check_cache_kind
from dit_accel_eval.tune.ladders import CACHES, KINDS, LINEARS


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
        names: Names among `LEVERS` and of kinds; None takes all that can be used.
        base: Request of all clips.
        card: Card of the model.

    Raises:
        InvalidSettings: if a lever or a kind that was named cannot be used, with the reason.
    """
    device = "cpu" if base.device == "cpu" else "cuda"
    checks: dict[str, tuple[tuple[str, ...], Callable[[str], None]]] = {
        "cache": (CACHES, lambda kind: _check_cache(kind, card)),
        "linears": (LINEARS[device], lambda kind: _check_linears(kind, base, card)),
        "compile": (("compile",), lambda _: _check_compile(base, card)),
    }
    found: dict[str, tuple[str, ...]] = dict.fromkeys(checks, ())
    for lever, (kinds, check) in checks.items():
        try:
            if names is None or lever in names:
                found[lever] = _without_refused(kinds, check)
        except InvalidSettings:
            if names is not None:
                raise
    for lever, kinds in KINDS.items():
        for kind in (kind for kind in kinds if kind in (names or ())):
            checks[lever][1](kind)
            found[lever] = tuple(dict.fromkeys((*found[lever], kind)))
    return Usable(found["cache"], found["linears"], bool(found["compile"]))


def _check_cache(kind: str, card: ModelCard) -> None:
    import diffusers

    model = getattr(diffusers, card.transformer_class)
    check_cache_kind(model, CACHE_CLASSES[kind](), card.family)


def _check_linears(kind: str, base: RenderSettings, card: ModelCard) -> None:
    check_levers(replace(base, levers={"linears": {"kind": kind}}), card)


def _check_compile(base: RenderSettings, card: ModelCard) -> None:
    check_levers(replace(base, levers={"compile": {}}), card)
    if base.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise InvalidSettings("compile needs a C++ compiler on a CPU: install g++, or leave it out")
    if base.device != "cpu" and importlib.util.find_spec("triton") is None:
        raise InvalidSettings("compile needs triton on a GPU: install it, or leave compile out")


def _without_refused(names: Sequence[str], check: Callable[[str], None]) -> tuple[str, ...]:
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

    passed = tuple(passing())
    if not passed:
        raise reasons[0]
    return passed
