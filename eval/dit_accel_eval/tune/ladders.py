"""Ladders: the settings of one lever from careful to bold, which tuning climbs before it joins levers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.core.caches import Cache, FirstBlockCache, MagCache, SeaCache, TaylorSeerCache
from dit_accel.errors import InvalidSettings

if TYPE_CHECKING:
    import optuna

LEVERS = ("attention", "cache", "linears", "compile")
CACHES = ("first-block", "taylorseer", "magcache", "seacache")
# Kinds of linear layers by device; diffusers' fp8 storage saves no time.
LINEARS = {"cpu": ("int8-dynamic", "int8-weights"), "cuda": ("int8-dynamic", "fp8-dynamic")}
# Kinds that may be named instead of their lever.
KINDS = {
    "cache": CACHES,
    "linears": tuple(dict.fromkeys(kind for kinds in LINEARS.values() for kind in kinds)),
}
NONE = "none"
# Parameters of a step that say nothing about how bold it is.
PLAIN = ("method", "cache", "precision", "dense_layers", "budget_middle", "budget_last")


def check_lever_names(names: Sequence[str] | None) -> None:
    """Check the names of levers and of kinds; None stands for all levers.

    Raises:
        InvalidSettings: for an unknown name, or none.
    """
    known = (*LEVERS, *KINDS["cache"], *KINDS["linears"])
    for name in LEVERS if names is None else names or ("",):
        if name not in known:
            raise InvalidSettings(f"unknown lever {name!r}: choose from {', '.join(known)}")


@dataclass(frozen=True)
class Ladder:
    """Settings of one lever that differ in one knob.

    Attributes:
        lever: ``"attention"``, ``"cache"``, ``"linears"`` or ``"compile"``.
        name: Name of the method, of the kind of cache, or of the numbers.
        knob: Name of the search's parameter that the steps differ in.
        steps: Parameters of the lever, from careful to bold.
    """

    lever: str
    name: str
    knob: str
    steps: tuple[Mapping[str, Any], ...]

    def holds_common(self, parameters: Mapping[str, Any]) -> bool:
        """Return True if parameters agree with all steps in what the steps have in common, besides the precision."""
        varied = (self.knob, "precision")
        common = {name: value for name, value in self.steps[0].items() if name not in varied}
        return common.items() <= parameters.items()

    def describe(self, step: Mapping[str, Any]) -> str:
        """Return the knobs of a step in words, first the one that the steps differ in; empty if it has none."""
        if self.lever in ("linears", "compile"):
            return ""
        names = dict.fromkeys((self.knob, *(name for name in step if name not in PLAIN)))
        return ", ".join(f"{name} {step[name]}" for name in names)

    def neighbour(self, value: Any) -> int | None:
        """Return the index of the first step that is bolder than a value of the knob, or None."""
        values = [step[self.knob] for step in self.steps]
        rises = values[-1] > values[0]
        bolder = (i for i, v in enumerate(values) if (v > value if rises else v < value))
        return next(bolder, None)


def attention_ladders(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[Ladder]:
    """Yield the ladders of methods, given by name with the parameters besides their knobs."""
    densities = (0.4, 0.28, 0.2, 0.14, 0.1, 0.07, 0.04)
    knobs: dict[str, tuple[str, Sequence[float], dict[str, Any]]] = {
        "svg2": (
            *("svg2_top_p", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
            {"svg2_share": 0.1, "svg2_refresh": 2, "dense_steps": 0.12},
        ),
        "svg-ear": ("ear_density", densities, {"ear_refresh": 2, "dense_steps": 0.16}),
        "re-ttention": (
            *("re_refresh", (2, 3, 4, 5, 6, 8, 10)),
            {"re_reuse_below": 1.0, "dense_steps": 0.2},
        ),
    }
    for name, common in methods.items():
        knob, values, others = knobs[name]
        steps = ({"method": name, **common, **others, knob: value} for value in values)
        yield Ladder("attention", name, knob, tuple(steps))


def cache_ladders(kinds: Sequence[str]) -> Iterator[Ladder]:
    """Yield the ladders of caches. All but first-block have one over the warm-up, too."""
    warm_ups = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
    knobs: dict[str, list[tuple[str, Sequence[float], dict[str, Any]]]] = {
        "first-block": [("first_block_threshold", (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8), {})],
        "taylorseer": [
            ("cache_warm_up", warm_ups, {"taylorseer_interval": 3, "taylorseer_order": 0}),
            ("cache_warm_up", warm_ups, {"taylorseer_interval": 2, "taylorseer_order": 1}),
            (
                *("taylorseer_interval", (2, 3, 4, 5, 6)),
                {"cache_warm_up": 0.4, "taylorseer_order": 0},
            ),
        ],
        "magcache": [
            ("cache_warm_up", warm_ups, {"magcache_threshold": 0.1, "magcache_skips": 2}),
            (
                *("magcache_threshold", (0.02, 0.05, 0.1, 0.2, 0.4)),
                {"magcache_skips": 3, "cache_warm_up": 0.4},
            ),
        ],
        "seacache": [
            ("cache_warm_up", warm_ups, {"seacache_threshold": 1.5, "seacache_skips": 1}),
            (
                *("seacache_threshold", (0.1, 0.2, 0.4, 0.6, 0.8, 1.1, 1.5)),
                {"seacache_skips": 2, "cache_warm_up": 0.4},
            ),
        ],
    }
    for kind in kinds:
        for knob, values, others in knobs[kind]:
            steps = tuple({"cache": kind, **others, knob: value} for value in values)
            yield Ladder("cache", kind, knob, steps)


def suggest_cache(
    trial: optuna.trial.BaseTrial, kinds: Sequence[str], num_steps: int, last: int | None = None
) -> Cache | None:
    """Return the cache that a trial's parameters describe. MagCache has no ratios yet.

    Args:
        trial: Trial of the search.
        kinds: Kinds of caches; none gives no cache.
        num_steps: Number of steps, of which the warm-up is a share.
        last: Number of the step that is always computed, counted from 1, or None.
    """
    if not kinds:
        return None
    kind = trial.suggest_categorical("cache", (NONE, *kinds))
    if kind == "first-block":
        return FirstBlockCache(threshold=_threshold(trial, kind))
    if kind == "taylorseer":
        return TaylorSeerCache(
            cache_interval=trial.suggest_int("taylorseer_interval", 2, 6),
            disable_cache_before_step=max(1, round(_warm_up(trial) * num_steps)),
            disable_cache_after_step=None if last is None else last - 1,
            max_order=trial.suggest_int("taylorseer_order", 0, 2),
        )
    if kind == "magcache":
        skips = trial.suggest_int("magcache_skips", 1, 4)
        return MagCache(
            threshold=_threshold(trial, kind),
            max_skip_steps=skips,
            retention_ratio=_warm_up(trial),
        )
    if kind == "seacache":
        skips = trial.suggest_int("seacache_skips", 1, 4)
        return SeaCache(
            threshold=_threshold(trial, kind),
            max_consecutive_cached=skips,
            retention_steps=max(1, round(_warm_up(trial) * num_steps)),
        )
    return None


def _warm_up(trial: optuna.trial.BaseTrial) -> float:
    """Return the share of the first steps that are computed."""
    return round(float(trial.suggest_float("cache_warm_up", 0.0, 0.8)), 2)


def _threshold(trial: optuna.trial.BaseTrial, kind: str) -> float:
    name = f"{kind.replace('-', '_')}_threshold"
    return round(float(trial.suggest_float(name, 0.01, 3.0, log=True)), 4)
