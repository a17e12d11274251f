"""The profiles that tuning may try: attention with its schedule, budgets and precision, and the other levers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from dit_accel import SVG2, Method, Profile, ReTtention, Rule, Schedule, SVGEar
from dit_accel.core.levers import Compile, Linears
from dit_accel.core.precision import Precision
from dit_accel.errors import InvalidSettings
from dit_accel.methods import Dense
from dit_accel_eval.tune.budgets import By, ErrorCurve, allocate, sparse_curves
from dit_accel_eval.tune.ladders import (
    NONE,
    Ladder,
    attention_ladders,
    cache_ladders,
    suggest_cache,
)

if TYPE_CHECKING:
    import optuna

METHODS = ("svg2", "svg-ear", "re-ttention")
DENSE = Dense.name
# Number of steps that a warm-up is a share of where the pipeline chooses the number.
USUAL_STEPS = 50
# Name of the knob that sets the share of the keys.
SHARE = {"svg2": "min_key_share", "svg-ear": "density", "re-ttention": "density"}


def check_methods(names: Sequence[str]) -> None:
    """Check that tuning knows all methods.

    Raises:
        InvalidSettings: for another one.
    """
    for name in names:
        if name not in METHODS:
            raise InvalidSettings(f"cannot tune method {name!r}: choose from {', '.join(METHODS)}")


@dataclass(frozen=True)
class Space:
    """A search space of profiles.

    Attributes:
        methods: Names among `METHODS`. With other levers, dense attention is also tried.
        layers: Number of attention layers of a transformer.
        precisions: Precisions of sparse and dense calls.
        curves: Errors of svg-ear in each layer and range of steps, which allow budgets. Empty if not measured.
        caches: Kinds of step caches.
        linears: Kinds of cheaper linear layers.
        compiles: True if compiled blocks are tried.
        num_steps: Number of denoising steps, of which a cache's warm-up is a share; None if the pipeline chooses it.
        computes_last: True if the last step of a transformer is the last one of the run.
    """

    methods: tuple[str, ...]
    layers: int
    precisions: tuple[Precision, ...] = ("full",)
    curves: tuple[ErrorCurve, ...] = ()
    caches: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    compiles: bool = False
    num_steps: int | None = None
    computes_last: bool = True

    @property
    def has_levers(self) -> bool:
        """Return True if the space has more than attention."""
        return bool(self.caches or self.linears or self.compiles)

    @property
    def neutral(self) -> dict[str, Any]:
        """Return the parameters with every lever off."""
        neutral: dict[str, Any] = {"method": DENSE}
        neutral |= {"cache": NONE} if self.caches else {}
        neutral |= {"linears": NONE} if self.linears else {}
        return neutral | ({"compile": False} if self.compiles else {})

    def ladders(self) -> list[Ladder]:
        """Return the ladders of all levers."""
        ladders = [
            *cache_ladders(self.caches),
            *attention_ladders({name: self.common(name) for name in self.methods}),
        ]
        if self.compiles:
            ladders.append(Ladder("compile", "compile", "compile", ({"compile": True},)))
        ladders += [Ladder("linears", k, "linears", ({"linears": k},)) for k in self.linears]
        return ladders

    def common(self, method: str) -> dict[str, Any]:
        """Return the parameters besides its knobs that a method starts with."""
        common: dict[str, Any] = {"precision": self.precisions[0], "dense_layers": 0}
        if self.curves and method == SVGEar.name:
            return {**common, "ear_budgets": "layers"}
        thirds = {"budget_middle": 1.0, "budget_last": 1.0} if self.layers >= 3 else {}
        return {**common, **thirds}

    def profile(self, trial: optuna.trial.BaseTrial) -> Profile:
        """Return the profile that a trial's parameters describe. MagCache has no ratios yet."""
        profile = self._attention(trial)
        if not self.has_levers:
            return profile
        last = self.num_steps if self.computes_last else None
        cache = suggest_cache(trial, self.caches, self.num_steps or USUAL_STEPS, last)
        kinds = (NONE, *self.linears)
        linears: Any = trial.suggest_categorical("linears", kinds) if self.linears else NONE
        compiles = self.compiles and trial.suggest_categorical("compile", (False, True))
        return replace(
            profile,
            cache=cache,
            linears=None if linears == NONE else Linears(kind=linears),
            compile=Compile() if compiles else None,
        )

    def _attention(self, trial: optuna.trial.BaseTrial) -> Profile:
        """Return the attention that a trial's parameters describe."""
        methods = (DENSE, *self.methods) if self.has_levers else self.methods
        name = trial.suggest_categorical("method", methods)
        if name == DENSE:
            return Profile(Dense())
        method = SUGGEST[name](trial)
        precision = trial.suggest_categorical("precision", self.precisions)
        dense_layers = trial.suggest_int("dense_layers", 0, min(2, self.layers - 1))
        schedule = Schedule(
            dense_steps=trial.suggest_float("dense_steps", 0.0, 0.4, step=0.04),
            dense_layers=tuple(range(dense_layers)),
            min_tokens=0,
        )
        rules = (
            self._measured_budgets(trial, method, schedule)
            if isinstance(method, SVGEar) and self.curves
            else self._budgets(trial, method)
        )
        schedule = replace(schedule, rules=tuple(rules))
        return Profile(method, schedule, precision=precision, dense_precision=precision)

    def _measured_budgets(
        self, trial: optuna.trial.BaseTrial, method: SVGEar, schedule: Schedule
    ) -> Sequence[Rule]:
        """Return rules that spend the density where it lowers the measured error most."""
        by = trial.suggest_categorical("ear_budgets", ("uniform", *get_args(By)))
        if by == "uniform":
            return []
        return allocate(sparse_curves(self.curves, schedule), method.densities[0], by)

    def _budgets(self, trial: optuna.trial.BaseTrial, method: Method) -> Sequence[Rule]:
        """Return rules that change the share of the keys in the middle and the last third of the layers."""
        knob, third = SHARE[method.name], self.layers // 3
        if not third:
            return []
        parts = {"middle": (third, 2 * third - 1), "last": (2 * third, self.layers - 1)}
        share = getattr(method, knob)
        rules = []
        for part, (first, last) in parts.items():
            factor = trial.suggest_categorical(f"budget_{part}", (0.5, 1.0, 2.0))
            if factor != 1.0 and not (isinstance(method, ReTtention) and method.repeats_all):
                changed = {knob: round(min(1.0, factor * share), 4)}
                rules.append(Rule(layers=f"{first}-{last}", knobs=changed))
        return rules


def _svg2(trial: optuna.trial.BaseTrial) -> Method:
    return SVG2(
        top_p=trial.suggest_float("svg2_top_p", 0.2, 0.95, step=0.05),
        min_key_share=_share(trial, "svg2_share"),
        refresh=trial.suggest_int("svg2_refresh", 1, 4),
    )


def _svg_ear(trial: optuna.trial.BaseTrial) -> Method:
    return SVGEar(
        density=_share(trial, "ear_density"), refresh=trial.suggest_int("ear_refresh", 1, 4)
    )


def _re_ttention(trial: optuna.trial.BaseTrial) -> Method:
    refresh = trial.suggest_int("re_refresh", 2, 10)
    reuse_below = trial.suggest_float("re_reuse_below", 0.0, 1.0, step=0.25)
    if reuse_below == 1.0:  # all heads repeat their output, so there is no mask
        return ReTtention(refresh=refresh, reuse_below=reuse_below)
    return ReTtention(density=_share(trial, "re_density"), refresh=refresh, reuse_below=reuse_below)


def _share(trial: optuna.trial.BaseTrial, name: str) -> float:
    return round(float(trial.suggest_float(name, 0.03, 0.5, log=True)), 4)


SUGGEST = {"svg2": _svg2, "svg-ear": _svg_ear, "re-ttention": _re_ttention}


def first_trials(space: Space) -> Sequence[Mapping[str, Any]]:
    """Return the parameters to try first: a careful and a bold profile of every method."""
    knobs = {
        "svg2": [
            {"svg2_top_p": 0.9, "svg2_share": 0.1, "svg2_refresh": 1, "dense_steps": 0.24},
            {"svg2_top_p": 0.5, "svg2_share": 0.1, "svg2_refresh": 3, "dense_steps": 0.16},
        ],
        "svg-ear": [
            {"ear_density": 0.25, "ear_refresh": 1, "dense_steps": 0.2},
            {"ear_density": 0.1, "ear_refresh": 3, "dense_steps": 0.12},
        ],
        "re-ttention": [
            {"re_density": 0.2, "re_refresh": 4, "re_reuse_below": 0.0, "dense_steps": 0.2},
            {"re_refresh": 2, "re_reuse_below": 1.0, "dense_steps": 0.32},
        ],
    }
    return [
        {"method": name, **space.common(name), **values}
        for name in space.methods
        for values in knobs[name]
    ]
